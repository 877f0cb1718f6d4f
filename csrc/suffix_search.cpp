// Python module megatron.attribution._suffix_search: what of a query stands in tokens, by their suffix array.
//
// A suffix array holds places of tokens in the order of what follows each place. All suffixes that begin with one token
// are a run of it: starts[t] to starts[t + 1]. In that run a query q_i, q_{i+1}, … has its place found by halving; the
// longest match of q_i … is with a neighbour of that place (Manber and Myers, 1993). While halving, the bounds' common
// prefixes with the query, l and r, are kept: what is between them shares min(l, r) tokens, which are not read again.
//
// Excluded tokens are runs [first, end), ascending and apart, of whole documents: a suffix that starts in one is passed
// over. Neighbours farther away match less, so the first one on each side that is not excluded decides.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
class Suffixes {
  public:
    Suffixes(const Array<T>& tokens, const Array<uint32_t>& places, const Array<uint32_t>& starts,
             const Array<int64_t>& excluded)
        : tokens_(tokens.data()), num_tokens_(tokens.size()), places_(places.data()), starts_(starts.data()),
          num_ids_(starts.size() - 1), runs_(excluded.data()), num_runs_(excluded.size() / 2) {
        if (starts.size() < 1 || static_cast<py::ssize_t>(starts_[num_ids_]) != places.size() || excluded.size() % 2 != 0) {
            throw std::invalid_argument("suffix array: starts do not fit it");
        }
    }

    // Most tokens of query [0, size) that stand anywhere.
    int64_t longest(const int64_t* query, int64_t size) const {
        int64_t low, high;
        if (!run_of(query[0], low, high)) return 0;
        const int64_t place = lower_bound(query, size, low, high);
        int64_t best = 0;
        for (int64_t i = place; i-- > low;) {
            if (is_excluded(at(i))) continue;
            best = common(at(i), query, size, 1);
            break;
        }
        for (int64_t i = place; i < high; ++i) {
            if (is_excluded(at(i))) continue;
            best = std::max(best, common(at(i), query, size, 1));
            break;
        }
        return best;
    }

    // The run of suffixes that begin with all of query.
    void run_of_all(const int64_t* query, int64_t size, int64_t& low, int64_t& high) const {
        if (!run_of(query[0], low, high)) return;
        low = lower_bound(query, size, low, high);
        int64_t end = high, start = low;  // past the last one that begins with it
        while (start < end) {
            const int64_t middle = start + (end - start) / 2;
            if (common(at(middle), query, size, 0) == size) {
                start = middle + 1;
            } else {
                end = middle;
            }
        }
        high = start;
    }

    int64_t at(int64_t i) const {
        const int64_t place = places_[i];
        if (place >= num_tokens_) throw py::value_error("a suffix beyond the end");
        return place;
    }

    bool is_excluded(int64_t token) const {
        int64_t low = 0, high = num_runs_;  // the first run that ends behind it
        while (low < high) {
            const int64_t middle = low + (high - low) / 2;
            if (runs_[2 * middle + 1] <= token) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low < num_runs_ && runs_[2 * low] <= token;
    }

    bool excludes() const { return num_runs_ > 0; }

  private:
    bool run_of(int64_t id, int64_t& low, int64_t& high) const {
        low = high = 0;
        if (id < 0 || id >= num_ids_) return false;
        low = starts_[id];
        high = starts_[id + 1];
        if (high < low || high > static_cast<int64_t>(starts_[num_ids_])) throw py::value_error("starts out of order");
        return low < high;
    }

    int64_t common(int64_t place, const int64_t* query, int64_t size, int64_t known) const {
        const int64_t most = std::min(size, num_tokens_ - place);
        int64_t length = std::min(known, most);
        while (length < most && static_cast<int64_t>(tokens_[place + length]) == query[length]) ++length;
        return length;
    }

    // The first suffix of a run of one first token that is not before query.
    int64_t lower_bound(const int64_t* query, int64_t size, int64_t low, int64_t high) const {
        int64_t left = 1, right = 1;
        while (low < high) {
            const int64_t middle = low + (high - low) / 2, place = at(middle);
            const int64_t length = common(place, query, size, std::min(left, right));
            const bool is_before = length < size && (place + length == num_tokens_ || tokens_[place + length] < query[length]);
            if (is_before) {
                low = middle + 1;
                left = length;
            } else {
                high = middle;
                right = length;
            }
        }
        return low;
    }

    const T* tokens_;
    int64_t num_tokens_;
    const uint32_t* places_;
    const uint32_t* starts_;
    int64_t num_ids_;
    const int64_t* runs_;
    int64_t num_runs_;
};

template <typename T>
py::array_t<int64_t> longest_matches(Array<T> tokens, Array<uint32_t> places, Array<uint32_t> starts,
                                     Array<int64_t> excluded, Array<int64_t> query, Array<int64_t> positions) {
    const Suffixes<T> suffixes(tokens, places, starts, excluded);
    py::array_t<int64_t> result(positions.size());
    int64_t* length = result.mutable_data();
    const int64_t* position = positions.data();
    const int64_t count = positions.size(), size = query.size();
    py::gil_scoped_release release;
    for (int64_t i = 0; i < count; ++i) {
        if (position[i] < 0 || position[i] >= size) throw std::invalid_argument("longest_matches: no such position");
        length[i] = suffixes.longest(query.data() + position[i], size - position[i]);
    }
    return result;
}

// (count, up to `most` of the places, spread evenly over the run) of where query stands.
template <typename T>
py::tuple occurrences(Array<T> tokens, Array<uint32_t> places, Array<uint32_t> starts, Array<int64_t> excluded,
                      Array<int64_t> query, int64_t most) {
    const Suffixes<T> suffixes(tokens, places, starts, excluded);
    if (query.size() == 0 || most < 0) throw std::invalid_argument("occurrences: an empty query");
    std::vector<int64_t> found;
    int64_t count = 0;
    {
        py::gil_scoped_release release;
        int64_t low = 0, high = 0;
        suffixes.run_of_all(query.data(), query.size(), low, high);
        std::vector<int64_t> kept;
        if (suffixes.excludes()) {
            for (int64_t i = low; i < high; ++i) {
                if (!suffixes.is_excluded(suffixes.at(i))) kept.push_back(i);
            }
        }
        count = suffixes.excludes() ? static_cast<int64_t>(kept.size()) : high - low;
        const int64_t taken = std::min(count, most);
        for (int64_t i = 0; i < taken; ++i) {
            const int64_t number = taken == count ? i : static_cast<int64_t>(static_cast<__int128>(i) * count / taken);
            found.push_back(suffixes.at(suffixes.excludes() ? kept[number] : low + number));
        }
    }
    return py::make_tuple(count, py::array_t<int64_t>(static_cast<py::ssize_t>(found.size()), found.data()));
}

template <typename T>
void define_for(py::module_& module) {
    module.def("longest_matches", &longest_matches<T>, py::arg("tokens").noconvert(), py::arg("places").noconvert(),
               py::arg("starts").noconvert(), py::arg("excluded"), py::arg("query"), py::arg("positions"));
    module.def("occurrences", &occurrences<T>, py::arg("tokens").noconvert(), py::arg("places").noconvert(),
               py::arg("starts").noconvert(), py::arg("excluded"), py::arg("query"), py::arg("most"));
}

}  // namespace

PYBIND11_MODULE(_suffix_search, module) {
    module.doc() = "Search in suffix arrays of tokens for megatron.attribution.";
    define_for<uint8_t>(module);
    define_for<uint16_t>(module);
    define_for<int32_t>(module);
    define_for<int64_t>(module);
}
