// Python module megatron.kernels._cpu_attention: causal attention on a CPU and its gradients, in fp32 or bf16.
//
// In tiles of kRows queries and some keys, whose scores stay in the nearest caches, with the softmax of the tiles so far, as
// FlashAttention does it (arXiv 2205.14135, 2307.08691). The query heads that share a key head are rows beside each other, so
// that multi-query attention has as large products as any. A row sees the keys from its document's or window's first to its
// own; tiles that none of their rows sees are left out. Sums are in fp32; shares and gradients of scores are rounded to
// bf16 for the products that follow, where the inputs are.
//
// Backward computes the scores again. What its rows add to the gradients of keys and values is summed in kParts parts, and
// these in their order: the number of threads changes no bit.
//
// Memory is passed as addresses: megatron/kernels/tiled_attention.py holds the tensors and checks them.

#include <memory>
#include <tuple>

#include "platform.h"

namespace py = pybind11;

namespace {

constexpr size_t kRows = 64;      // of a tile
constexpr size_t kParts = 8;      // of a sample's and group's rows in backward, if there is but one of these
constexpr size_t kColumns = 128;  // keys of a tile at most: whole panels

size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

// Numbers [positions, samples, heads, head_dim], apart by strides in numbers; those of a head lie together.
struct Heads {
    void* data;
    size_t position_stride, sample_stride, head_stride;
};

struct Sizes {
    size_t dim;       // of a head, and
    size_t num_keys;  // each filled up to whole panels
    size_t steps;     // of 4 bytes in dim numbers
};

// Keys and values of a sample and group in panels, whose outputs are positions, or are the numbers of a head.
struct Packed {
    float *key_rows, *key_columns, *value_rows, *value_columns;
};

struct Attention {
    Heads query, key, value, out;
    Heads out_grad, query_grad, key_grad, value_grad;  // in backward
    float* log_sums;                                   // [samples, heads, num_queries]
    size_t samples, heads, groups, head_dim, num_queries, num_keys;
    float scale;
    const int64_t* first_keys;  // that each query sees, [samples, num_queries], or none
    size_t first_keys_stride;
    const uint64_t* row_keys;  // of dropout, [num_queries, samples], or none
    uint64_t first_head;       // of the keys' heads
    int16_t drop_level;
    float keep_scale;
    Sizes sizes;
    Packed panels;  // of all samples and groups, one after another

    Packed packed(size_t sample, size_t group) const {
        const size_t skipped = (sample * groups + group) * sizes.num_keys * sizes.steps;
        const auto at_cell = [skipped](float* all) { return all ? all + skipped : nullptr; };
        return {at_cell(panels.key_rows), at_cell(panels.key_columns), at_cell(panels.value_rows), at_cell(panels.value_columns)};
    }
    size_t log_sum_at(size_t sample, size_t head, size_t position) const { return (sample * heads + head) * num_queries + position; }
};

struct Loops {
    size_t inputs;  // of a step
    void (*lay_out)(const Attention&, const Heads&, size_t, size_t, size_t, float*, float*, float*);
    void (*attend)(const Attention&, size_t, size_t, size_t, float*);
    void (*attend_backward)(const Attention&, size_t, size_t, size_t, float*, float*, float*);
    void (*finish)(const Attention&, const Heads&, size_t, size_t, size_t, float*, size_t, size_t, float);
};

struct Kernels {
    size_t panel;
    Loops fp32, bf16;
};

#define KERNELS "cpu_attention_kernels.h"
#include "processors.h"

using HeadsArgument = std::tuple<Address, size_t, size_t, size_t>;

Heads heads_of(const HeadsArgument& argument) {
    const auto& [address, position_stride, sample_stride, head_stride] = argument;
    return {at<void>(address), position_stride, sample_stride, head_stride};
}

// One call's sizes and kernels, by which its memory is laid out.
class Call {
  public:
    Call(bool is_bf16, const std::string& kind, size_t samples, size_t heads, size_t groups, size_t head_dim, size_t num_queries,
         size_t num_keys, Address log_sums)
        : kernels_(kernels_of(kind)), loops_(is_bf16 ? kernels_.bf16 : kernels_.fp32) {
        if (groups == 0 || heads % groups) throw std::invalid_argument("attention: heads are no multiple of groups");
        if (num_queries > num_keys) throw std::invalid_argument("attention: more queries than keys");
        const size_t panel = kernels_.panel, dim = ceil_div(head_dim, panel) * panel;
        a_.samples = samples, a_.heads = heads, a_.groups = groups, a_.head_dim = head_dim;
        a_.num_queries = num_queries, a_.num_keys = num_keys, a_.log_sums = at<float>(log_sums);
        a_.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
        a_.sizes = {dim, ceil_div(num_keys, panel) * panel, dim / loops_.inputs};
    }

    void see_from(Address first_keys, size_t stride) { a_.first_keys = at<const int64_t>(first_keys), a_.first_keys_stride = stride; }

    void drop(Address row_keys, uint64_t first_head, int16_t level, float keep_scale) {
        a_.row_keys = at<const uint64_t>(row_keys), a_.first_head = first_head, a_.drop_level = level, a_.keep_scale = keep_scale;
    }

    void forward(const HeadsArgument& query, const HeadsArgument& key, const HeadsArgument& value, const HeadsArgument& out, int threads) {
        a_.query = heads_of(query), a_.key = heads_of(key), a_.value = heads_of(value), a_.out = heads_of(out);
        py::gil_scoped_release release;
        const size_t size = panels_size(), cells = a_.samples * a_.groups, blocks = num_blocks();
        const Floats panels(new float[2 * size]);
        a_.panels = {panels.get(), nullptr, nullptr, panels.get() + size};
        const Floats scratch(new float[scratch_size() * threads]);
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            float* own = scratch.get() + scratch_size() * thread_number();
            lay_out_share(own);
            wait_for_others();
            // those that see most keys first
#pragma omp for schedule(dynamic)
            for (size_t i = 0; i < cells * blocks; ++i) {
                const size_t cell = i % cells, block = blocks - 1 - i / cells;
                loops_.attend(a_, cell / a_.groups, cell % a_.groups, block * kRows, own);
            }
        }
    }

    void backward(const HeadsArgument& query, const HeadsArgument& key, const HeadsArgument& value, const HeadsArgument& out,
                  const HeadsArgument& out_grad, const HeadsArgument& query_grad, const HeadsArgument& key_grad,
                  const HeadsArgument& value_grad, int threads) {
        a_.query = heads_of(query), a_.key = heads_of(key), a_.value = heads_of(value), a_.out = heads_of(out);
        a_.out_grad = heads_of(out_grad), a_.query_grad = heads_of(query_grad);
        a_.key_grad = heads_of(key_grad), a_.value_grad = heads_of(value_grad);
        py::gil_scoped_release release;
        const size_t size = panels_size(), cells = a_.samples * a_.groups, blocks = num_blocks();
        const size_t parts = std::max(size_t{1}, std::min(kParts / std::max(cells, size_t{1}), blocks));
        const Floats panels(new float[3 * size]);
        a_.panels = {panels.get(), panels.get() + size, panels.get() + 2 * size, nullptr};
        const size_t part = a_.sizes.num_keys * a_.sizes.dim;  // floats of a part's sums
        const Floats totals(new float[2 * cells * parts * part]), scratch(new float[scratch_size() * threads]);
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            float* own = scratch.get() + scratch_size() * thread_number();
            lay_out_share(own);
            wait_for_others();
#pragma omp for schedule(dynamic)
            for (size_t i = 0; i < cells * parts; ++i) {
                const size_t cell = i / parts;
                float *key_grads = totals.get() + i * part, *value_grads = key_grads + cells * parts * part;
                std::fill(key_grads, key_grads + part, 0.0f);
                std::fill(value_grads, value_grads + part, 0.0f);
                for (size_t block = i % parts; block < blocks; block += parts) {
                    loops_.attend_backward(a_, cell / a_.groups, cell % a_.groups, block * kRows, key_grads, value_grads, own);
                }
            }
#pragma omp for
            for (size_t i = 0; i < cells * a_.num_keys; ++i) {
                const size_t cell = i / a_.num_keys, position = i % a_.num_keys, sample = cell / a_.groups, group = cell % a_.groups;
                float *key_grads = totals.get() + cell * parts * part, *value_grads = key_grads + cells * parts * part;
                loops_.finish(a_, a_.key_grad, sample, group, position, key_grads, parts, part, a_.scale);
                loops_.finish(a_, a_.value_grad, sample, group, position, value_grads, parts, part, 1.0f);
            }
        }
    }

  private:
    using Floats = std::unique_ptr<float[]>;

    size_t num_blocks() const { return ceil_div(a_.num_queries * (a_.heads / a_.groups), kRows); }
    size_t panels_size() const { return a_.samples * a_.groups * a_.sizes.num_keys * a_.sizes.steps; }
    size_t scratch_size() const { return kRows * (4 * a_.sizes.steps + 6 * kColumns + a_.sizes.dim) + 16; }

    // This thread's part of the panels.
    void lay_out_share(float* scratch) const {
        const size_t panels = a_.sizes.num_keys / kernels_.panel;
        const auto [begin, end] = share(a_.samples * a_.groups * panels);
        for (size_t i = begin; i < end; ++i) {
            const size_t sample = i / panels / a_.groups, group = i / panels % a_.groups;
            const Packed packed = a_.packed(sample, group);
            loops_.lay_out(a_, a_.key, sample, group, i % panels, packed.key_rows, packed.key_columns, scratch);
            loops_.lay_out(a_, a_.value, sample, group, i % panels, packed.value_rows, packed.value_columns, scratch);
        }
    }

    const Kernels& kernels_;
    const Loops& loops_;
    Attention a_{};
};

}  // namespace

PYBIND11_MODULE(_cpu_attention, module) {
    module.doc() = "Causal attention on a CPU for megatron.kernels.tiled_attention.";
    module.attr("VERSION") = 1;  // of these calls: to be counted up with megatron/kernels/cpu_library.py's
    module.def("kinds", &kinds, "Name the kinds of kernels that the processor runs, the fastest first.");
    py::class_<Call>(module, "Call", "Attention of one shape.")
        .def(py::init<bool, const std::string&, size_t, size_t, size_t, size_t, size_t, size_t, Address>(), py::arg("is_bf16"),
             py::arg("kind"), py::arg("samples"), py::arg("heads"), py::arg("groups"), py::arg("head_dim"), py::arg("num_queries"),
             py::arg("num_keys"), py::arg("log_sums"))
        .def("see_from", &Call::see_from, py::arg("first_keys"), py::arg("stride"), "Hide what is before each query's first key.")
        .def("drop", &Call::drop, py::arg("row_keys"), py::arg("first_head"), py::arg("level"), py::arg("keep_scale"),
             "Drop shares of keys.")
        .def("forward", &Call::forward, py::arg("query"), py::arg("key"), py::arg("value"), py::arg("out"), py::arg("threads"),
             "Compute out and log_sums.")
        .def("backward", &Call::backward, py::arg("query"), py::arg("key"), py::arg("value"), py::arg("out"), py::arg("out_grad"),
             py::arg("query_grad"), py::arg("key_grad"), py::arg("value_grad"), py::arg("threads"), "Compute the gradients.");
}
