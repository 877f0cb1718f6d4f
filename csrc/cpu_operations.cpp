// Python module megatron.kernels._cpu_operations: what a layer and the loss do between their products in training on a CPU.
//
//     gelu                 gelu(x + bias), its tanh form
//     add                  residual + dropout(x + bias), and its norm where one is asked for
//     norm                 layer norm
//     statistics, gradient the local part of the cross entropy, its gradient in place of the logits
//
// and their backward passes. Tensors are in fp32 or bf16, all of a call in one, arithmetic is in fp32, and what is stored is
// rounded once. Threads share out rows. Sums over rows are made by blocks of them, and the blocks added up in order: the
// number of threads changes no bit.
//
// Memory is passed as addresses, 0 for what there is not: megatron/kernels/cpu_operations.py holds the tensors and checks
// them. Rows [r, columns] lie one after another. The loops are in cpu_operations_kernels.h, compiled for AVX-512 with and
// without bf16, for AVX2 and for any processor.

#include <memory>

#include "platform.h"

namespace py = pybind11;

namespace {

constexpr size_t kBlocks = 64;      // of rows, at most, whose sums are kept apart
constexpr size_t kBlockRows = 32;   // at least
constexpr size_t kSmall = 1 << 15;  // numbers for which a second thread is not woken

struct Dropout {
    const int64_t* row_keys;
    int32_t level;  // the number below which a channel's 16 bits drop it
    float scale;
};

struct Gelu {
    Address x, bias, dy, out;  // out: dx where there is dy
    size_t columns;
};

struct Norm {
    Address x, weight, bias, out, statistics;  // of each row mean and 1 / standard deviation
    float epsilon;
    size_t columns;
};

struct Add {
    Address x, bias, residual, out;
    Dropout dropout;
    size_t columns;
    Norm norm;  // of no columns where none is asked for
};

struct AddBackward {
    Address dy, dx;
    Dropout dropout;
    size_t columns;
};

struct NormBackward {
    Address x, statistics, weight, dy, d_total, d_residual, dx;
    Dropout dropout;
    bool has_bias;
    size_t columns;
};

struct Logits {
    Address logits;
    size_t width, stride, num_valid;
    Address columns, log_sum_exp, picked, scale;
};

// Rows [begin, end), with sums over them.
template <class Operation>
using Loop = void (*)(const Operation&, size_t, size_t, float*);
using Reduce = void (*)(const float*, size_t, size_t, size_t, Address);

// Each for fp32 and for bf16.
struct Kernels {
    Loop<Gelu> gelu[2], gelu_backward[2];
    Loop<Add> add[2];
    Loop<AddBackward> add_backward[2];
    Loop<Norm> norm[2];
    Loop<NormBackward> norm_backward[2];
    Loop<Logits> statistics[2], gradient[2];
    Reduce reduce[2];
};

#define KERNELS "cpu_operations_kernels.h"
#include "processors.h"

template <class Operation>
void run(Loop<Operation> loop, const Operation& operation, size_t rows, size_t columns, int threads) {
    py::gil_scoped_release release;
    if (rows * columns < kSmall) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const auto [begin, end] = share(rows);
        loop(operation, begin, end, nullptr);
    }
}

// The same, and sums over all rows to each of `outs`, where there is one.
template <class Operation>
void run_with_sums(Loop<Operation> loop, const Operation& operation, size_t rows, size_t columns,
                   Reduce reduce, const std::vector<Address>& outs, int threads) {
    const size_t block_rows = std::max(kBlockRows, (rows + kBlocks - 1) / kBlocks), count = (rows + block_rows - 1) / block_rows;
    const size_t size = outs.size() * columns;
    const std::unique_ptr<float[]> sums(new float[count * size]);
    py::gil_scoped_release release;
    if (rows * columns < kSmall) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const auto [begin, end] = share(count);
        for (size_t block = begin; block < end; ++block) {
            float* of_block = sums.get() + block * size;
            std::fill(of_block, of_block + size, 0.0f);
            loop(operation, block * block_rows, std::min((block + 1) * block_rows, rows), outs.empty() ? nullptr : of_block);
        }
    }
    for (size_t i = 0; i < outs.size(); ++i) reduce(sums.get() + i * columns, count, size, columns, outs[i]);
}

void gelu(Address x, Address bias, Address out, size_t rows, size_t columns, bool is_bf16, const std::string& kind, int threads) {
    run(kernels_of(kind).gelu[is_bf16], Gelu{x, bias, 0, out, columns}, rows, columns, threads);
}

void gelu_backward(Address dy, Address x, Address bias, Address dx, Address d_bias, size_t rows, size_t columns, bool is_bf16,
                   const std::string& kind, int threads) {
    const Kernels& kernels = kernels_of(kind);
    const std::vector<Address> outs(bias ? 1 : 0, d_bias);
    run_with_sums(kernels.gelu_backward[is_bf16], Gelu{x, bias, dy, dx, columns}, rows, columns, kernels.reduce[is_bf16], outs,
                  threads);
}

using Drop = std::tuple<Address, int32_t, float>;

Dropout dropout_of(const Drop& drop) { return {at<const int64_t>(std::get<0>(drop)), std::get<1>(drop), std::get<2>(drop)}; }

void add(Address x, Address bias, Address residual, const Drop& drop, Address out, size_t rows, size_t columns, bool is_bf16,
         const std::string& kind, int threads) {
    run(kernels_of(kind).add[is_bf16], Add{x, bias, residual, out, dropout_of(drop), columns, {}}, rows, columns, threads);
}

void add_norm(Address x, Address bias, Address residual, const Drop& drop, Address out, Address weight, Address norm_bias,
              float epsilon, Address normed, Address statistics, size_t rows, size_t columns, bool is_bf16,
              const std::string& kind, int threads) {
    const Norm norm{out, weight, norm_bias, normed, statistics, epsilon, columns};
    run(kernels_of(kind).add[is_bf16], Add{x, bias, residual, out, dropout_of(drop), columns, norm}, rows, columns, threads);
}

void add_backward(Address dy, const Drop& drop, Address dx, Address d_bias, size_t rows, size_t columns, bool is_bf16,
                  const std::string& kind, int threads) {
    const Kernels& kernels = kernels_of(kind);
    const std::vector<Address> outs(d_bias ? 1 : 0, d_bias);
    run_with_sums(kernels.add_backward[is_bf16], AddBackward{dy, dx, dropout_of(drop), columns}, rows, columns,
                  kernels.reduce[is_bf16], outs, threads);
}

void norm(Address x, Address weight, Address bias, float epsilon, Address out, Address statistics, size_t rows,
          size_t columns, bool is_bf16, const std::string& kind, int threads) {
    run(kernels_of(kind).norm[is_bf16], Norm{x, weight, bias, out, statistics, epsilon, columns}, rows, columns, threads);
}

void norm_backward(Address dy, Address d_total, Address x, Address statistics, Address weight, const Drop& drop,
                   Address d_residual, Address dx, Address d_weight, Address d_norm_bias, Address d_bias, size_t rows,
                   size_t columns, bool is_bf16, const std::string& kind, int threads) {
    const Kernels& kernels = kernels_of(kind);
    std::vector<Address> outs{d_weight, d_norm_bias};
    if (d_bias) outs.push_back(d_bias);
    const NormBackward operation{x, statistics, weight, dy, d_total, d_residual, dx, dropout_of(drop), d_bias != 0, columns};
    run_with_sums(kernels.norm_backward[is_bf16], operation, rows, columns, kernels.reduce[is_bf16], outs, threads);
}

void check_columns(Address columns, size_t rows, size_t width, size_t num_valid) {
    const int64_t* first = at<const int64_t>(columns);
    const auto is_outside = [=](int64_t column) { return column >= static_cast<int64_t>(width); };
    if (num_valid > width || std::any_of(first, first + rows, is_outside)) {
        throw std::out_of_range("cross entropy: a column is not one of the logits'");
    }
}

void statistics(Address logits, size_t rows, size_t width, size_t stride, Address columns, size_t num_valid, Address log_sum_exp,
                Address picked, bool is_bf16, const std::string& kind, int threads) {
    check_columns(columns, rows, width, num_valid);
    const Logits operation{logits, width, stride, num_valid, columns, log_sum_exp, picked, 0};
    run(kernels_of(kind).statistics[is_bf16], operation, rows, num_valid, threads);
}

void gradient(Address logits, size_t rows, size_t width, size_t stride, Address columns, size_t num_valid, Address log_sum_exp,
              Address scale, bool is_bf16, const std::string& kind, int threads) {
    check_columns(columns, rows, width, num_valid);
    const Logits operation{logits, width, stride, num_valid, columns, log_sum_exp, 0, scale};
    run(kernels_of(kind).gradient[is_bf16], operation, rows, width, threads);
}

}  // namespace

PYBIND11_MODULE(_cpu_operations, module) {
    module.doc() = "Operations of training on a CPU for megatron.kernels.cpu_operations.";
    module.attr("VERSION") = 1;  // of how cpu_operations.py calls it: to be counted up with cpu_library.py's
    module.def("kinds", &kinds, "Name the kinds of kernels that the processor runs, the fastest first.");
    module.def("gelu", &gelu);
    module.def("gelu_backward", &gelu_backward);
    module.def("add", &add);
    module.def("add_norm", &add_norm);
    module.def("add_backward", &add_backward);
    module.def("norm", &norm);
    module.def("norm_backward", &norm_backward);
    module.def("statistics", &statistics);
    module.def("gradient", &gradient);
}
