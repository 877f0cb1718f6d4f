// Python module megatron.kernels._prediction: what a model on a CPU predicts with, in fp32.
//
// multiply: x W^T + bias, and its GELU, for a weight that `pack` has laid out, on any number of rows.
// Decoder: one token of each sequence through a run of layers, each x + attention(norm(x)), then x + MLP(norm(x)):
//
//     [q, k, v] = W_1 norm(x) + b_1            queries of n heads, keys and values of g, interleaved by head
//     x += W_2 softmax(q K^T / sqrt(d)) V + b_2     K and V: a row's cells of a cache, to which k and v are added
//     x += W_4 gelu(W_3 norm(x) + b_3) + b_4
//
// in one call, without a tensor in between. Threads share out the outputs of a product, and the heads of attention, and
// wait for each other after each; no sum is split among them, so their number changes no bit.
//
// Memory is passed as addresses: megatron/kernels/prediction.py holds the tensors and checks them. The loops are in
// prediction_kernels.h, compiled for AVX-512, for AVX2 and for any processor.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_X86
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between functions of one width only
#endif

namespace {

using Address = uintptr_t;

constexpr size_t kHeads = 4;        // that share the keys they read
constexpr size_t kGroupRows = 64;   // whose inputs stay in a cache while a weight goes by
constexpr size_t kSmall = 1 << 16;  // multiplications for which a second thread is not woken

struct Product {
    const float *x, *weight, *bias;
    float* out;
    size_t rows, in_size, out_size, x_stride, out_stride;
    bool has_gelu, adds;
};

struct Attention {
    const float *queries, *keys, *values;
    float* out;
    const int64_t* positions;  // of the tokens whose queries these are
    size_t query_stride, out_stride, num_groups, head_dim, capacity, window;
    size_t num_rows, first_row;  // token i is of row first_row + i % num_rows of the cache
    float scale;
};

struct Kernels {
    size_t panel;
    void (*multiply)(const Product&, size_t, size_t, float*);
    void (*normalize)(const float*, const float*, const float*, float, size_t, float*);
    void (*attend)(const Attention&, size_t, size_t, size_t, size_t, float*);
    std::pair<float, int64_t> (*highest)(const float*, size_t);
};

#ifdef HAS_X86
namespace avx512 {
#define LANES 16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#include "prediction_kernels.h"
#undef LANES
#undef TARGET
}  // namespace avx512
namespace avx2 {
#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#include "prediction_kernels.h"
#undef LANES
#undef TARGET
}  // namespace avx2
#endif
namespace any {
#define LANES 4
#define TARGET
#include "prediction_kernels.h"
}  // namespace any

// The widths of vectors that this processor has, in floats, the widest first.
std::vector<int> widths() {
    std::vector<int> found;
#ifdef HAS_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        found.push_back(16);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(8);
#endif
    found.push_back(4);
    return found;
}

const Kernels& kernels_of(int width) {
    const std::vector<int> allowed = widths();
    if (std::find(allowed.begin(), allowed.end(), width) == allowed.end()) {
        throw std::invalid_argument("prediction: the processor has no vectors of this width");
    }
#ifdef HAS_X86
    if (width == 16) return avx512::kKernels;
    if (width == 8) return avx2::kKernels;
#endif
    return any::kKernels;
}

const float* floats(Address address) { return reinterpret_cast<const float*>(address); }

size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

size_t thread_number() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// This thread's part of a loop.
std::pair<size_t, size_t> share(size_t count) {
#ifdef _OPENMP
    const size_t threads = omp_get_num_threads();
#else
    const size_t threads = 1;
#endif
    return {count * thread_number() / threads, count * (thread_number() + 1) / threads};
}

void wait_for_others() {
#pragma omp barrier
}

void multiply_share(const Kernels& kernels, const Product& p) {
    const auto [begin, end] = share(ceil_div(p.out_size, kernels.panel));
    alignas(64) float scratch[kGroupRows * 32];
    kernels.multiply(p, begin, end, scratch);
}

// Lay out a weight [out, in] in panels: to holds ceil(out / panel) * panel * in floats.
void pack(Address from, size_t out_size, size_t in_size, Address to, int width) {
    const size_t panel = kernels_of(width).panel;
    const float* weight = floats(from);
    float* packed = reinterpret_cast<float*>(to);
    py::gil_scoped_release release;
    for (size_t first = 0; first < out_size; first += panel) {
        const size_t count = std::min(panel, out_size - first);
        for (size_t k = 0; k < in_size; ++k, packed += panel) {
            for (size_t o = 0; o < count; ++o) packed[o] = weight[(first + o) * in_size + k];
            std::fill(packed + count, packed + panel, 0.0f);
        }
    }
}

void multiply(Address x, size_t rows, Address weight, Address bias, Address out, size_t in_size, size_t out_size, bool has_gelu,
              int width, int threads) {
    const Kernels& kernels = kernels_of(width);
    const Product product{floats(x), floats(weight), floats(bias), reinterpret_cast<float*>(out), rows,  in_size,
                          out_size,  in_size,        out_size,     has_gelu,                       false};
    py::gil_scoped_release release;
    if (rows * in_size * out_size < kSmall) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    multiply_share(kernels, product);
}

// Of each row of x [rows, columns], stride apart: the highest number, and its first place. A NaN counts as the highest.
void highest(Address x, size_t rows, size_t columns, size_t stride, Address best, Address places, int width) {
    const Kernels& kernels = kernels_of(width);
    py::gil_scoped_release release;
    for (size_t r = 0; r < rows; ++r) {
        const auto [value, place] = kernels.highest(floats(x) + r * stride, columns);
        reinterpret_cast<float*>(best)[r] = value;
        reinterpret_cast<int64_t*>(places)[r] = place;
    }
}

// A piece of attention's work is a few heads of a group of a token.
size_t parts_of_group(size_t heads, size_t groups) { return ceil_div(heads / groups, kHeads); }

void attend_share(const Kernels& kernels, const Attention& a, size_t tokens, size_t heads, std::vector<float>& scratch) {
    const size_t group_size = heads / a.num_groups, parts = parts_of_group(heads, a.num_groups);
    const auto [begin, end] = share(tokens * a.num_groups * parts);
    for (size_t i = begin; i < end; ++i) {
        const size_t token = i / parts / a.num_groups, group = i / parts % a.num_groups, first = i % parts * kHeads;
        scratch.resize(std::max(scratch.size(), kHeads * (a.positions[token] + 1 + 2 * kernels.panel)));
        kernels.attend(a, token, group, group * group_size + first, std::min(kHeads, group_size - first), scratch.data());
    }
}

// Queries [tokens, heads, d], tokens query_stride apart, against keys and values of a cache [rows, groups, capacity, d]
// -> out [tokens, heads, d].
void attend(Address queries, size_t query_stride, size_t tokens, size_t heads, Address keys, Address values, Address positions, size_t num_rows,
            size_t first_row, size_t groups, size_t head_dim, size_t capacity, size_t window, Address out, int width, int threads) {
    const Kernels& kernels = kernels_of(width);
    const Attention a{floats(queries), floats(keys), floats(values), reinterpret_cast<float*>(out),
                      reinterpret_cast<const int64_t*>(positions), query_stride, heads * head_dim, groups, head_dim, capacity,
                      window == 0 ? SIZE_MAX : window, num_rows, first_row, 1.0f / std::sqrt(static_cast<float>(head_dim))};
    py::gil_scoped_release release;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<float> scratch;
        attend_share(kernels, a, tokens, heads, scratch);
    }
}

// The sizes and weights of layers that are alike, as addresses; 0 where there is none.
struct Layer {
    const float *norm_1, *norm_1_bias, *qkv, *qkv_bias, *dense, *dense_bias;
    const float *norm_2, *norm_2_bias, *up, *up_bias, *down, *down_bias;
};

class Decoder {
  public:
    Decoder(size_t hidden, size_t heads, size_t groups, size_t head_dim, size_t ffn, size_t window, float epsilon, int width,
            const std::vector<std::vector<Address>>& layers)
        : kernels_(kernels_of(width)), hidden_(hidden), heads_(heads), groups_(groups), head_dim_(head_dim), ffn_(ffn),
          window_(window == 0 ? SIZE_MAX : window), epsilon_(epsilon) {
        if (heads == 0 || groups == 0 || heads % groups) throw std::invalid_argument("prediction: heads are no multiple of groups");
        for (const std::vector<Address>& w : layers) {
            if (w.size() != 12) throw std::invalid_argument("prediction: a layer has 12 weights and biases");
            layers_.push_back({floats(w[0]), floats(w[1]), floats(w[2]), floats(w[3]), floats(w[4]), floats(w[5]),
                               floats(w[6]), floats(w[7]), floats(w[8]), floats(w[9]), floats(w[10]), floats(w[11])});
        }
    }

    // x [rows, hidden], of one token each, becomes what the last layer gives. keys and values: of each layer
    // [rows or more, groups, capacity, head_dim]; lengths int64 [rows]: tokens in there. cos and sin [rows, head_dim / 2]
    // turn queries and keys; 0: they stay.
    void run(Address x, size_t rows, Address lengths, const std::vector<Address>& keys, const std::vector<Address>& values,
             size_t capacity, Address cos, Address sin, int threads) {
        if (keys.size() != layers_.size() || values.size() != layers_.size()) {
            throw std::invalid_argument("prediction: keys and values are not those of the layers");
        }
        py::gil_scoped_release release;
        reserve(rows);
        scratch_.resize(std::max<size_t>(scratch_.size(), std::max(threads, 1)));
        const Attention attention{qkv_.data(), nullptr, nullptr, context_.data(), reinterpret_cast<const int64_t*>(lengths),
                                  qkv_stride(), context_stride(), groups_, head_dim_, capacity, window_, rows, 0,
                                  1.0f / std::sqrt(static_cast<float>(head_dim_))};
        float* hidden = reinterpret_cast<float*>(x);
#pragma omp parallel num_threads(threads) if (threads > 1)
        for (size_t i = 0; i < layers_.size(); ++i) {
            Attention mine = attention;
            mine.keys = floats(keys[i]);
            mine.values = floats(values[i]);
            attend(layers_[i], hidden, rows, mine, floats(cos), floats(sin));
            wait_for_others();
            feed_forward(layers_[i], hidden, rows);
            wait_for_others();
        }
    }

  private:
    // Rows of what is computed in between are apart by a number that spreads them over a cache's sets.
    static size_t padded(size_t size) { return ceil_div(size, 16) * 16 + 16; }
    size_t qkv_size() const { return (heads_ + 2 * groups_) * head_dim_; }
    size_t qkv_stride() const { return padded(qkv_size()); }
    size_t context_stride() const { return padded(heads_ * head_dim_); }

    void reserve(size_t rows) {
        const std::pair<std::vector<float>*, size_t> sizes[] = {{&normed_, rows * padded(hidden_)},
                                                               {&qkv_, rows * qkv_stride()},
                                                               {&context_, rows * context_stride()},
                                                               {&active_, rows * padded(ffn_)}};
        for (const auto& [buffer, size] : sizes) {
            if (buffer->size() < size) buffer->resize(size);
        }
    }

    void normalize(const float* x, size_t rows, const float* weight, const float* bias) {
        const auto [begin, end] = share(rows);
        for (size_t r = begin; r < end; ++r) {
            kernels_.normalize(x + r * hidden_, weight, bias, epsilon_, hidden_, &normed_[r * padded(hidden_)]);
        }
    }

    void turn(float* head, const float* cos, const float* sin) const {
        const size_t half = head_dim_ / 2;
        for (size_t i = 0; i < half; ++i) {
            const float first = head[i], second = head[half + i];
            head[i] = first * cos[i] - second * sin[i];
            head[half + i] = second * cos[i] + first * sin[i];
        }
    }

    // Turn a row's queries and keys, and add its keys and values to the cache.
    void keep(size_t row, const Attention& a, const float* cos, const float* sin) {
        const size_t d = head_dim_, half = d / 2;
        float* queries = &qkv_[row * qkv_stride()];
        float* pairs = queries + heads_ * d;  // [groups, (key, value), d]
        if (cos) {
            for (size_t h = 0; h < heads_; ++h) turn(queries + h * d, cos + row * half, sin + row * half);
            for (size_t g = 0; g < groups_; ++g) turn(pairs + 2 * g * d, cos + row * half, sin + row * half);
        }
        for (size_t g = 0; g < groups_; ++g) {
            const size_t cell = ((row * groups_ + g) * a.capacity + a.positions[row]) * d;
            std::memcpy(const_cast<float*>(a.keys) + cell, pairs + 2 * g * d, d * sizeof(float));
            std::memcpy(const_cast<float*>(a.values) + cell, pairs + (2 * g + 1) * d, d * sizeof(float));
        }
    }

    void attend(const Layer& layer, float* x, size_t rows, const Attention& a, const float* cos, const float* sin) {
        normalize(x, rows, layer.norm_1, layer.norm_1_bias);
        wait_for_others();
        multiply_share(kernels_, {normed_.data(), layer.qkv, layer.qkv_bias, qkv_.data(), rows, hidden_, qkv_size(),
                                  padded(hidden_), qkv_stride(), false, false});
        wait_for_others();
        const auto [first_row, last_row] = share(rows);
        for (size_t r = first_row; r < last_row; ++r) keep(r, a, cos, sin);
        wait_for_others();
        attend_share(kernels_, a, rows, heads_, scratch_[thread_number()]);
        wait_for_others();
        multiply_share(kernels_, {context_.data(), layer.dense, layer.dense_bias, x, rows, heads_ * head_dim_, hidden_,
                                  context_stride(), hidden_, false, true});
    }

    void feed_forward(const Layer& layer, float* x, size_t rows) {
        normalize(x, rows, layer.norm_2, layer.norm_2_bias);
        wait_for_others();
        multiply_share(kernels_, {normed_.data(), layer.up, layer.up_bias, active_.data(), rows, hidden_, ffn_, padded(hidden_),
                                  padded(ffn_), true, false});
        wait_for_others();
        multiply_share(kernels_, {active_.data(), layer.down, layer.down_bias, x, rows, ffn_, hidden_, padded(ffn_), hidden_,
                                  false, true});
    }

    const Kernels& kernels_;
    size_t hidden_, heads_, groups_, head_dim_, ffn_, window_;
    float epsilon_;
    std::vector<Layer> layers_;
    std::vector<float> normed_, qkv_, context_, active_;
    std::vector<std::vector<float>> scratch_;  // of each thread
};

}  // namespace

PYBIND11_MODULE(_prediction, module) {
    module.doc() = "Products and decoding on a CPU for megatron.kernels.prediction.";
    module.def("widths", &widths, "Give the widths of vectors, in floats, that the processor has: the widest first.");
    module.def("panel_size", [](int width) { return kernels_of(width).panel; }, py::arg("width"),
               "Give how many rows of a weight lie together.");
    module.def("pack", &pack, py::arg("weight"), py::arg("out_size"), py::arg("in_size"), py::arg("packed"), py::arg("width"),
               "Lay out a weight [out_size, in_size] for multiply.");
    module.def("multiply", &multiply, py::arg("x"), py::arg("rows"), py::arg("weight"), py::arg("bias"), py::arg("out"),
               py::arg("in_size"), py::arg("out_size"), py::arg("has_gelu"), py::arg("width"), py::arg("threads"),
               "Compute out [rows, out_size] = x W^T + bias, or its GELU, of x [rows, in_size].");
    module.def("highest", &highest, py::arg("x"), py::arg("rows"), py::arg("columns"), py::arg("stride"), py::arg("best"),
               py::arg("places"), py::arg("width"), "Find the highest number of each row, and its first place.");
    module.def("attend", &attend, py::arg("queries"), py::arg("query_stride"), py::arg("tokens"), py::arg("heads"), py::arg("keys"), py::arg("values"),
               py::arg("positions"), py::arg("num_rows"), py::arg("first_row"), py::arg("groups"), py::arg("head_dim"),
               py::arg("capacity"), py::arg("window"), py::arg("out"), py::arg("width"), py::arg("threads"),
               "Attend with tokens' queries to the keys and values of a cache up to their positions.");
    py::class_<Decoder>(module, "Decoder", "Layers that take one token of each sequence. Not for several threads at once.")
        .def(py::init<size_t, size_t, size_t, size_t, size_t, size_t, float, int, const std::vector<std::vector<Address>>&>(),
             py::arg("hidden_size"), py::arg("num_heads"), py::arg("num_groups"), py::arg("head_dim"), py::arg("ffn_size"),
             py::arg("window"), py::arg("epsilon"), py::arg("width"), py::arg("layers"))
        .def("run", &Decoder::run, py::arg("x"), py::arg("rows"), py::arg("lengths"), py::arg("keys"), py::arg("values"),
             py::arg("capacity"), py::arg("cos"), py::arg("sin"), py::arg("threads"),
             "Run x [rows, hidden_size] through the layers, in place.");
}
