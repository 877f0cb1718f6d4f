// sum_t weight_t sum_i x_ti^2 over many tensors, in fp64 but for the squares of one vector, in fp32.
//
// A block takes chunks number b, b + kBlocks, …, a second kernel adds what the blocks found: the order is fixed, so two
// runs give the same bits on any GPU.
#include "multi_tensor.cuh"

namespace {

using namespace megatron;

constexpr int kThreads = 256;
constexpr int kBlocks = 1024;  // that many partial sums; fills any GPU so far
constexpr int kVectors = 4;    // that a thread has under way at once

template <typename T>
constexpr int kWidth = 16 / sizeof(T);

__device__ inline double block_sum(double x) {
    __shared__ double sums[kThreads / kWarp];
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = x;
    __syncthreads();
    double total = 0.0;
    for (int i = 0; i < kThreads / kWarp; ++i) total += sums[i];
    return total;
}

template <typename T>
__device__ inline double vector_squares(const Vector<T, kWidth<T>>& part) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kWidth<T>; ++i) sum = fmaf(to_float(part.values[i]), to_float(part.values[i]), sum);
    return sum;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) block_sums(Table table, int64_t num_chunks, double* sums) {
    double total = 0.0;
    for (int64_t number = blockIdx.x; number < num_chunks; number += kBlocks) {
        const Chunk chunk = table.find(number);
        const T* x = chunk.address<const T>(0);
        const int64_t num_vectors = is_aligned<T, kWidth<T>>(x) ? chunk.size / kWidth<T> : 0;
        const auto* xs = reinterpret_cast<const Vector<T, kWidth<T>>*>(x);
        double sum = 0.0;
        int64_t i = threadIdx.x;
        for (; i + (kVectors - 1) * kThreads < num_vectors; i += kVectors * kThreads) {
            Vector<T, kWidth<T>> loaded[kVectors];
#pragma unroll
            for (int j = 0; j < kVectors; ++j) loaded[j] = xs[i + j * kThreads];
#pragma unroll
            for (int j = 0; j < kVectors; ++j) sum += vector_squares(loaded[j]);
        }
        for (; i < num_vectors; i += kThreads) {
            const Vector<T, kWidth<T>> part = xs[i];
            sum += vector_squares(part);
        }
        for (i = num_vectors * kWidth<T> + threadIdx.x; i < chunk.size; i += kThreads) {
            const float value = to_float(x[i]);
            sum += value * value;
        }
        total += chunk.number() * sum;
    }
    total = block_sum(total);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kThreads) whole_sum(const double* sums, double* total) {
    double mine = 0.0;
    for (int i = threadIdx.x; i < kBlocks; i += kThreads) mine += sums[i];
    mine = block_sum(mine);
    if (threadIdx.x == 0) *total += mine;
}

}  // namespace

// table: one list; its own number of a tensor is its weight. sums: kBlocks (1024) of scratch. Adds to total.
extern "C" cudaError_t square_sum(const int64_t* rows, int64_t num_tensors, int64_t chunk_size, int64_t num_chunks,
                                  int64_t dtype, double* sums, double* total, cudaStream_t stream) {
    if (num_chunks == 0) return cudaSuccess;
    const Table table{rows, num_tensors, chunk_size};
    return megatron_dispatch(dtype, [&](auto zero) {
        block_sums<decltype(zero)><<<kBlocks, kThreads, 0, stream>>>(table, num_chunks, sums);
        whole_sum<<<1, kThreads, 0, stream>>>(sums, total);
    });
}
