// Work on rows: the threads of a block with one threadIdx.y share a row, each every blockDim.x-th vector of it.
//
// A group of one warp meets by shuffles alone, so that a block may hold several; a larger group is the whole block.
#pragma once

#include "vector.cuh"

namespace megatron {

constexpr int kMaxRowThreads = 1024;
constexpr int kRowsOfWarps = 4;  // rows of a block where a warp suffices for one

// Reduce over the threads of a row, each of which gets the result. `shared` may be used again after another barrier.
template <typename X, typename WarpReduce>
__device__ inline X row_reduce(X x, X (&shared)[kWarp], X neutral, WarpReduce reduce) {
    x = reduce(x);
    if (blockDim.x == kWarp) return x;
    if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = x;
    __syncthreads();
    return reduce(threadIdx.x % kWarp < blockDim.x / kWarp ? shared[threadIdx.x % kWarp] : neutral);
}

__device__ inline float row_sum(float x, float (&shared)[kWarp]) {
    return row_reduce(x, shared, 0.0f, [](float y) { return warp_sum(y); });
}

__device__ inline float row_max(float x, float (&shared)[kWarp]) {
    return row_reduce(x, shared, -INFINITY, [](float y) { return warp_max(y); });
}

// Two sums behind one barrier.
__device__ inline float2 row_sums(float2 x, float2 (&shared)[kWarp]) {
    const auto reduce = [](float2 y) { return make_float2(warp_sum(y.x), warp_sum(y.y)); };
    return row_reduce(x, shared, make_float2(0.0f, 0.0f), reduce);
}

// What a thread has of a row: kItems items in registers, or with kItems 0 as many as there are, read again each time.
template <typename Item, int kItems>
class Row {
  public:
    // Take load(i) for all i of this thread. It may store what a later `each` reads.
    template <typename Load>
    __device__ void fill(int64_t num_items, Load load) {
        if constexpr (kItems > 0) {
#pragma unroll
            for (int k = 0; k < kItems; ++k) {
                const int i = threadIdx.x + k * blockDim.x;
                if (i < num_items) kept_[k] = load(i);
            }
        } else {
            for (int64_t i = threadIdx.x; i < num_items; i += blockDim.x) load(i);
        }
    }

    // Call f(i, item) for all i of this thread; load gives what was not kept.
    template <typename Load, typename F>
    __device__ void each(int64_t num_items, Load load, F f) {
        if constexpr (kItems > 0) {
#pragma unroll
            for (int k = 0; k < kItems; ++k) {
                const int i = threadIdx.x + k * blockDim.x;
                if (i < num_items) f(i, kept_[k]);
            }
        } else {
            for (int64_t i = threadIdx.x; i < num_items; i += blockDim.x) f(i, load(i));
        }
    }

  private:
    Item kept_[kItems > 0 ? kItems : 1];
};

// Threads for a row of num_items of which each keeps up to kItems.
template <int kItems>
inline int64_t row_threads(int64_t num_items) {
    if (kItems == 0) return kMaxRowThreads;
    return std::max<int64_t>(1, divide_up(divide_up(num_items, kItems), kWarp)) * kWarp;
}

// Call f(std::integral_constant<int, N>) with kItems where rows fit the registers of a block, else with 0.
template <int kItems, typename F>
inline void dispatch_items(int64_t num_items, F&& f) {
    if (num_items <= kItems * kMaxRowThreads) {
        f(std::integral_constant<int, kItems>{});
    } else {
        f(std::integral_constant<int, 0>{});
    }
}

// Launch kernel(arguments), which works on row blockIdx.x * blockDim.y + threadIdx.y and on every later one that is a
// whole number of grids away.
template <int kItems, typename Kernel, typename Arguments>
inline void launch_rows(Kernel kernel, int64_t rows, int64_t num_items, const Arguments& arguments,
                        cudaStream_t stream) {
    const int64_t threads = row_threads<kItems>(num_items);
    const int64_t height = threads == kWarp ? kRowsOfWarps : 1;
    const int64_t blocks = std::min<int64_t>(divide_up(rows, height), 0x7fffffff);
    if (blocks == 0) return;
    const dim3 block(static_cast<unsigned>(threads), static_cast<unsigned>(height));
    kernel<<<static_cast<unsigned>(blocks), block, 0, stream>>>(arguments);
}

}  // namespace megatron
