// Python module megatron.kernels._prediction: what a model on a CPU predicts with, its weights in fp32 or bf16.
//
// multiply: x W^T + bias, and its GELU, for a weight that `pack` has laid out, on any number of rows.
// Stage (prediction_stage.h): tokens through the embedding, a run of layers and the LM head, in one call.
// highest: the likeliest token of each row.
//
// All numbers but weights are fp32. With weights in bf16 the inputs of a product are rounded to bf16, and the products
// summed in fp32: by the instruction that does it where there is one, else widened. Threads share out the outputs of a
// product, and the heads of attention; no sum is split among them, so their number changes no bit.
//
// Memory is passed as addresses: megatron/kernels/prediction.py holds the tensors and checks them. The loops are in
// prediction_kernels.h, compiled for AVX-512 with and without bf16, for AVX2 and for any processor.

#include <memory>
#include <optional>
#include <tuple>

#include "platform.h"

namespace py = pybind11;

namespace {

constexpr size_t kGroupRows = 64;   // whose inputs stay in a cache while a weight goes by
constexpr size_t kWidest = 32;      // panel
constexpr size_t kMostHeads = 8;    // that share the keys they read
constexpr size_t kSmall = 1 << 16;  // multiplications for which a second thread is not woken

size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

// Rows of what is computed in between are apart by a number that spreads them over a cache's sets.
size_t padded(size_t size) { return ceil_div(size, 16) * 16 + 16; }

// The floats that a thread needs for products with in_size inputs and attention to so many tokens: sums of a group of
// rows, and these as pairs of bf16; scores of heads, in whole panels with a vector behind them.
size_t scratch_size(size_t in_size, size_t seen) {
    return std::max(kGroupRows * (kWidest + padded(ceil_div(in_size, 2))), kMostHeads * (seen + 3 * kWidest));
}

struct Product {
    const float *x, *weight, *bias;  // weight: as `pack` lays it out
    float* out;
    size_t rows, in_size, out_size, x_stride, out_stride;
    bool has_gelu, adds;
};

struct Attention {
    const float *queries;
    const float *keys;    // of a cache [rows, num_groups, capacity / panel, head_dim, panel]
    const float *values;  // [rows, num_groups, capacity, head_dim]
    float* out;
    const int64_t *rows, *positions;  // of the tokens whose queries these are
    size_t query_stride, out_stride, num_groups, head_dim, capacity, window;
    float scale;
};

struct Kernels {
    size_t panel;
    size_t heads;  // that share the keys they read
    void (*multiply_fp32)(const Product&, size_t, size_t, float*);
    void (*multiply_bf16)(const Product&, size_t, size_t, float*);
    void (*normalize)(const float*, const float*, const float*, float, size_t, float*);
    void (*attend)(const Attention&, size_t, size_t, size_t, size_t, float*);
    std::pair<float, int64_t> (*highest)(const float*, size_t);

    void multiply(const Product& p, bool is_bf16, size_t begin, size_t end, float* scratch) const {
        (is_bf16 ? multiply_bf16 : multiply_fp32)(p, begin, end, scratch);
    }
};

#define KERNELS "prediction_kernels.h"
#include "processors.h"

// This thread's part of the outputs from a panel on.
void multiply_share(const Kernels& kernels, const Product& p, bool is_bf16, float* scratch, size_t first_panel = 0) {
    const auto [begin, end] = share(ceil_div(p.out_size, kernels.panel) - first_panel);
    kernels.multiply(p, is_bf16, first_panel + begin, first_panel + end, scratch);
}

// A piece of attention's work is a few heads of a group of a token, so that there is one for each thread.
void attend_share(const Kernels& kernels, const Attention& a, size_t tokens, size_t heads, size_t threads, float* scratch) {
    const size_t group_size = heads / a.num_groups, piece = std::clamp(tokens * heads / threads, size_t{1}, kernels.heads);
    const size_t parts = ceil_div(group_size, piece);
    const auto [begin, end] = share(tokens * a.num_groups * parts);
    for (size_t i = begin; i < end; ++i) {
        const size_t token = i / parts / a.num_groups, group = i / parts % a.num_groups, first = i % parts * piece;
        kernels.attend(a, token, group, group * group_size + first, std::min(piece, group_size - first), scratch);
    }
}

#include "prediction_stage.h"

// Lay out a weight [out, in] in panels of `inputs` numbers of T a step: to holds
// ceil(out / panel) * ceil(in / inputs) * panel * inputs.
template <class T>
void pack_as(const T* weight, size_t out_size, size_t in_size, size_t inputs, size_t panel, T* to) {
    for (size_t first = 0; first < out_size; first += panel) {
        const size_t count = std::min(panel, out_size - first);
        for (size_t k = 0; k < in_size; k += inputs, to += panel * inputs) {
            std::fill(to, to + panel * inputs, T{});
            for (size_t o = 0; o < count; ++o) {
                const T* from = weight + (first + o) * in_size + k;
                std::copy(from, from + std::min(inputs, in_size - k), to + o * inputs);
            }
        }
    }
}

void pack(Address weight, size_t out_size, size_t in_size, bool is_bf16, Address packed, const std::string& kind) {
    const size_t panel = kernels_of(kind).panel;
    py::gil_scoped_release release;
    if (is_bf16) {
        pack_as(at<const uint16_t>(weight), out_size, in_size, 2, panel, at<uint16_t>(packed));
    } else {
        pack_as(at(weight), out_size, in_size, 1, panel, at<float>(packed));
    }
}

void multiply(Address x, size_t rows, Address weight, Address bias, Address out, size_t in_size, size_t out_size, bool is_bf16,
              bool has_gelu, const std::string& kind, int threads) {
    const Kernels& kernels = kernels_of(kind);
    const Product product{at(x), at(weight), at(bias), at<float>(out), rows, in_size, out_size, in_size, out_size, has_gelu, false};
    if (rows * in_size * out_size < kSmall) threads = 1;
    const size_t size = scratch_size(in_size, 0);
    const std::unique_ptr<float[]> scratch(new float[size * std::max(threads, 1)]);
    py::gil_scoped_release release;
#pragma omp parallel num_threads(threads) if (threads > 1)
    multiply_share(kernels, product, is_bf16, scratch.get() + size * thread_number());
}

// Of each row of x [rows, columns], stride apart: the highest number, and its first place. A NaN counts as the highest.
void highest(Address x, size_t rows, size_t columns, size_t stride, Address best, Address places, const std::string& kind) {
    const Kernels& kernels = kernels_of(kind);
    py::gil_scoped_release release;
    for (size_t r = 0; r < rows; ++r) {
        const auto [value, place] = kernels.highest(at(x) + r * stride, columns);
        at<float>(best)[r] = value;
        at<int64_t>(places)[r] = place;
    }
}

}  // namespace

PYBIND11_MODULE(_prediction, module) {
    module.doc() = "Products and stages of a model on a CPU for megatron.kernels.prediction.";
    module.attr("VERSION") = 3;  // of what prediction.py lays out: to be counted up with cpu_library.py's
    module.def("kinds", &kinds, "Name the kinds of kernels that the processor runs, the fastest first.");
    module.def("panel_size", [](const std::string& kind) { return kernels_of(kind).panel; }, py::arg("kind"),
               "Give how many rows of a weight lie together.");
    module.def("pack", &pack, py::arg("weight"), py::arg("out_size"), py::arg("in_size"), py::arg("is_bf16"), py::arg("packed"),
               py::arg("kind"), "Lay out a weight [out_size, in_size].");
    module.def("multiply", &multiply, py::arg("x"), py::arg("rows"), py::arg("weight"), py::arg("bias"), py::arg("out"),
               py::arg("in_size"), py::arg("out_size"), py::arg("is_bf16"), py::arg("has_gelu"), py::arg("kind"), py::arg("threads"),
               "Compute out [rows, out_size] = x W^T + bias, or its GELU, of x [rows, in_size].");
    module.def("highest", &highest, py::arg("x"), py::arg("rows"), py::arg("columns"), py::arg("stride"), py::arg("best"),
               py::arg("places"), py::arg("kind"), "Find the highest number of each row, and its first place.");
    py::class_<Sizes>(module, "Sizes", "Of a stage's layers, which are alike.")
        .def(py::init<size_t, size_t, size_t, size_t, size_t, size_t, float>(), py::arg("hidden_size"), py::arg("num_heads"),
             py::arg("num_groups"), py::arg("head_dim"), py::arg("ffn_size"), py::arg("window"), py::arg("epsilon"));
    py::class_<Stage>(module, "Stage", "Layers, with embedding and head or without. Not for several threads at once.")
        .def(py::init<const Sizes&, bool, const std::string&, const std::vector<std::vector<Address>>&, const Embedding&, const Head&>(),
             py::arg("sizes"), py::arg("is_bf16"), py::arg("kind"), py::arg("layers"), py::arg("embedding"), py::arg("head"))
        .def("run", &Stage::run, py::arg("tokens"), py::arg("num_tokens"), py::arg("rows"), py::arg("positions"), py::arg("cache"),
             py::arg("rotation"), py::arg("wanted"), py::arg("out"), py::arg("threads"),
             "Run tokens through the stage and keep their keys and values.");
}
