// sum_i <- sum_i + x_i, sum fp32, x of any dtype: the sum of gradients over micro-batches, without a copy of x in fp32.
#include "vector.cuh"

namespace {

using namespace megatron;

constexpr int kThreads = 256;
constexpr int kBlocks = 2048;  // enough for any GPU so far; each takes several parts of a large tensor
constexpr int kWidth = 4;      // 16 bytes of the sum

template <typename T>
__global__ void __launch_bounds__(kThreads) add(float* sum, const T* x, int64_t size) {
    const int64_t thread = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
    const int64_t num_threads = static_cast<int64_t>(gridDim.x) * kThreads;
    const bool fits = reinterpret_cast<uintptr_t>(sum) % sizeof(Vector<float, kWidth>) == 0 &&
                      reinterpret_cast<uintptr_t>(x) % sizeof(Vector<T, kWidth>) == 0;
    const int64_t num_vectors = fits ? size / kWidth : 0;
    auto* sums = reinterpret_cast<Vector<float, kWidth>*>(sum);
    const auto* xs = reinterpret_cast<const Vector<T, kWidth>*>(x);
#pragma unroll 4
    for (int64_t i = thread; i < num_vectors; i += num_threads) {
        Vector<float, kWidth> total = sums[i];
        const Vector<T, kWidth> part = xs[i];
#pragma unroll
        for (int k = 0; k < kWidth; ++k) total.values[k] += to_float(part.values[k]);
        sums[i] = total;
    }
    for (int64_t i = num_vectors * kWidth + thread; i < size; i += num_threads) sum[i] += to_float(x[i]);
}

}  // namespace

extern "C" cudaError_t accumulate(float* sum, const void* x, int64_t dtype, int64_t size, cudaStream_t stream) {
    if (size == 0) return cudaSuccess;
    const int64_t needed = (size + kWidth * kThreads - 1) / (kWidth * kThreads);
    const int64_t blocks = needed < kBlocks ? needed : kBlocks;
    return megatron_dispatch(dtype, [&](auto zero) {
        using T = decltype(zero);
        add<T><<<blocks, kThreads, 0, stream>>>(sum, static_cast<const T*>(x), size);
    });
}
