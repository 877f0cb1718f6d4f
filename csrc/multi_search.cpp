// Python module megatron.curation._multi_search: many texts looked for in one pass, exactly, normalised or in part.
//
// normalise(text, hash, slash): the text without white space and comments, in lower case; what stands inside quotes
//   keeps its comment signs. hash: `#` begins a comment; slash: `//` and `/* */` do.
// StringSearch(patterns): find(text) gives (pattern, begin, end) in bytes, each pattern once, whatever the case of ASCII
//   letters; find_normalised looks in the normalised text, and gives the places in the text as it was.
// GramSearch(n, patterns, shape): find(text, least) gives (pattern, matched, total, begin, end): how many different runs
//   of n tokens of a pattern stand within twice its length, if they are at least that part of its runs.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "gram_search.h"
#include "string_search.h"

namespace py = pybind11;

PYBIND11_MODULE(_multi_search, module) {
    module.doc() = "Texts of benchmarks in documents, for megatron.curation.";
    module.def(
        "normalise", [](View text, bool hash, bool slash) { return py::bytes(normalised(text, hash, slash)); },
        py::arg("text"), py::arg("hash"), py::arg("slash"));
    py::class_<StringSearch>(module, "StringSearch")
        .def(py::init<std::vector<std::string>>(), py::arg("patterns"))
        .def("find", &StringSearch::find, py::arg("text"))
        .def("find_normalised", &StringSearch::find_normalised, py::arg("text"), py::arg("hash"), py::arg("slash"));
    py::class_<GramSearch>(module, "GramSearch")
        .def(py::init<size_t, const std::vector<std::string>&, bool>(), py::arg("n"), py::arg("patterns"),
             py::arg("shape"))
        .def("find", &GramSearch::find, py::arg("text"), py::arg("least") = 0.0);
}
