// Sums of the columns of a matrix in two stages, the same bits at every run: no atomics.
//
// First, threads that stay in their columns add up the rows that they meet and leave partial sums in fp32,
// [num_partials, kinds, columns]; then finish_column_sums adds those. `map_columns` is the first stage, or a map without
// sums, for what needs no more of a row than the element itself.
#pragma once

#include <algorithm>

#include "vector.cuh"

namespace megatron {

constexpr int kMaxKinds = 3;

template <typename T>
struct ColumnOutputs {
    T* of[kMaxKinds];
};

constexpr int kFinishRows = 16;

// Block (32 columns, kFinishRows), grid (columns / 32, kinds).
template <typename T>
__global__ void __launch_bounds__(kWarp * kFinishRows)
    finish_column_sums(const float* partials, int64_t num_partials, int64_t columns,
                       const __grid_constant__ ColumnOutputs<T> outputs) {
    __shared__ float shared[kFinishRows][kWarp];
    const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
    float sum = 0.0f;
    if (column < columns) {
        const float* here = partials + blockIdx.y * columns + column;
#pragma unroll 4
        for (int64_t row = threadIdx.y; row < num_partials; row += kFinishRows) {
            sum += here[row * gridDim.y * columns];
        }
    }
    shared[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= columns) return;
#pragma unroll
    for (int row = 1; row < kFinishRows; ++row) sum += shared[row][threadIdx.x];
    outputs.of[blockIdx.y][column] = from_float<T>(sum);
}

template <typename T>
void launch_finish(const float* partials, int64_t num_partials, int64_t columns, int kinds, ColumnOutputs<T> outputs,
                   cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(divide_up(columns, kWarp)), kinds), block(kWarp, kFinishRows);
    finish_column_sums<<<grid, block, 0, stream>>>(partials, num_partials, columns, outputs);
}

// Threads of a block of map_columns: blockDim.x in the columns, blockDim.y rows at once.
constexpr int kMapThreads = 256;
constexpr int kMapRows = 2;  // that a thread loads before it computes

// Function<T, kWidth> has the pointer `bias` [columns] or null, and
//   Loaded load(row, i)                        of vector i of a row
//   void apply(loaded, bias, row, i, sums)     store, and add to sums what is to be summed
template <typename T, int kWidth, bool kSums, typename Function>
__global__ void __launch_bounds__(kMapThreads)
    map_columns(Function function, int64_t rows, int64_t num_vectors, float* partials) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= num_vectors) return;
    const int64_t first = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y;
    const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.y;
    float bias[kWidth] = {}, sums[kWidth] = {};
    if (function.bias != nullptr) unpack(load<kWidth>(function.bias, i), bias);

    for (int64_t row = first; row < rows; row += kMapRows * step) {
        typename Function::Loaded loaded[kMapRows];
#pragma unroll
        for (int r = 0; r < kMapRows; ++r) {
            if (row + r * step < rows) loaded[r] = function.load(row + r * step, i);
        }
#pragma unroll
        for (int r = 0; r < kMapRows; ++r) {
            if (row + r * step < rows) function.apply(loaded[r], bias, row + r * step, i, sums);
        }
    }
    if constexpr (kSums) {
        store_floats(partials + first * num_vectors * kWidth + i * kWidth, sums);
    }
}

// Run Function over [rows, num_vectors * kWidth]. With kSums, scratch has room for scratch_size floats, at least one a
// column, and `sums` [columns] gets what it summed.
template <typename T, int kWidth, bool kSums, typename Function>
void launch_map(const Function& function, int64_t rows, int64_t num_vectors, float* scratch, int64_t scratch_size,
                T* sums, cudaStream_t stream) {
    if (num_vectors == 0 || (rows == 0 && !kSums)) return;
    const int64_t columns = num_vectors * kWidth;
    const int64_t width = std::min<int64_t>(kMapThreads, divide_up(num_vectors, kWarp) * kWarp);
    int64_t height = kMapThreads / width;
    if (kSums) height = std::max<int64_t>(1, std::min(height, scratch_size / columns));
    const dim3 block(static_cast<unsigned>(width), static_cast<unsigned>(height));

    const auto kernel = map_columns<T, kWidth, kSums, Function>;
    const int64_t tiles = divide_up(num_vectors, width);
    int64_t stripes = resident_blocks(kernel, width * height, 0) / tiles;  // one wave, or tiles alone are enough
    stripes = std::min({stripes, divide_up(rows, height), int64_t{65535}});
    if (kSums) stripes = std::min(stripes, scratch_size / (columns * height));
    stripes = std::max<int64_t>(1, stripes);
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(stripes));
    kernel<<<grid, block, 0, stream>>>(function, rows, num_vectors, scratch);
    if constexpr (kSums) launch_finish<T>(scratch, stripes * height, columns, 1, {{sums}}, stream);
}

// The same, with sums where they are wanted: not null.
template <typename T, int kWidth, typename Function>
void launch_map_or_sum(const Function& function, int64_t rows, int64_t num_vectors, float* scratch,
                       int64_t scratch_size, T* sums, cudaStream_t stream) {
    if (sums == nullptr) {
        launch_map<T, kWidth, false, Function>(function, rows, num_vectors, nullptr, 0, sums, stream);
    } else {
        launch_map<T, kWidth, true, Function>(function, rows, num_vectors, scratch, scratch_size, sums, stream);
    }
}

}  // namespace megatron
