// The local part of a cross entropy over a sharded vocabulary. One block a row, each logit read once in either direction.
//
//   cross_entropy_statistics:  lse_r = log sum_{c < n} exp(x_rc),  picked_r = x_{r, column_r} (0 where column_r < 0)
//   cross_entropy_gradient:    x_rc <- (exp(x_rc - lse_r) - [c = column_r]) * scale_r for c < n, 0 for n <= c < width
//
// x [rows, width] with any distance between rows; n = num_valid. The sum is kept relative to the largest logit so far
// (arXiv 1805.02867), by each thread, then joined in a fixed order: two runs give the same bits.
#include "vector.cuh"

#include <climits>

namespace {

using namespace megatron;

constexpr int kThreads = 256;
constexpr int kVectors = 4;  // that a thread has under way at once: what hides the latency of memory

template <typename T>
constexpr int kWidth = 16 / sizeof(T);

// The few special function units are what bounds this after memory: no exact exponential.
__device__ inline float exponential(float x) { return fast_exp2(x * kLog2E); }

// What an exponent is relative to: no number may be subtracted from -inf, the largest of nothing.
__device__ inline float reference(float largest) { return largest == -INFINITY ? 0.f : largest; }

// sum exp(x) of the x seen so far, as total * exp(largest).
struct Sum {
    float largest = -INFINITY;
    float total = 0.f;

    template <typename T, int N>
    __device__ void add(const Vector<T, N> (&parts)[kVectors]) {
        float values[kVectors * N], next = largest;
#pragma unroll
        for (int i = 0; i < kVectors * N; ++i) {
            values[i] = to_float(parts[i / N].values[i % N]);
            next = fmaxf(next, values[i]);
        }
        const float origin = reference(next);
        total *= exponential(largest - origin);
        largest = next;
#pragma unroll
        for (int i = 0; i < kVectors * N; ++i) total += exponential(values[i] - origin);
    }

    template <typename T, int N>
    __device__ void add(const Vector<T, N>& part) {
        float next = largest;
#pragma unroll
        for (int i = 0; i < N; ++i) next = fmaxf(next, to_float(part.values[i]));
        const float origin = reference(next);
        total *= exponential(largest - origin);
        largest = next;
#pragma unroll
        for (int i = 0; i < N; ++i) total += exponential(to_float(part.values[i]) - origin);
    }

    // The sum of all lanes, in all lanes.
    __device__ Sum over_warp() const {
        const float most = warp_max(largest);
        return {most, warp_sum(total * exponential(largest - reference(most)))};
    }
};

// A row as elements before the first 16-byte boundary, vectors, and elements after the last one.
template <typename T>
struct Parts {
    int64_t head, vectors;

    __device__ Parts(const T* row, int64_t size) {
        const auto past = reinterpret_cast<uintptr_t>(row) % 16;
        const int64_t before = past ? (16 - past) / sizeof(T) : 0;
        head = before < size ? before : size;
        vectors = (size - head) / kWidth<T>;
    }
    __device__ int64_t tail() const { return head + vectors * kWidth<T>; }
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    statistics(const T* logits, int64_t stride, const int64_t* columns, int64_t num_valid, float* log_sum_exp,
               float* picked) {
    const T* row = logits + blockIdx.x * stride;
    const Parts<T> parts(row, num_valid);
    const T* body = row + parts.head;
    float target = 0.f;
    if (threadIdx.x == 0 && columns[blockIdx.x] >= 0) target = to_float(row[columns[blockIdx.x]]);
    Sum sum;
    int64_t i = threadIdx.x;
    for (; i + (kVectors - 1) * kThreads < parts.vectors; i += kVectors * kThreads) {
        Vector<T, kWidth<T>> loaded[kVectors];
#pragma unroll
        for (int j = 0; j < kVectors; ++j) loaded[j] = load<kWidth<T>>(body, i + j * kThreads);
        sum.add(loaded);
    }
    for (; i < parts.vectors; i += kThreads) sum.add(load<kWidth<T>>(body, i));
    if (threadIdx.x < parts.head) sum.add(Vector<T, 1>{row[threadIdx.x]});
    const int64_t last = parts.tail() + threadIdx.x;
    if (last < num_valid) sum.add(Vector<T, 1>{row[last]});

    __shared__ float largest[kThreads / kWarp], totals[kThreads / kWarp];
    sum = sum.over_warp();
    if (threadIdx.x % kWarp == 0) {
        largest[threadIdx.x / kWarp] = sum.largest;
        totals[threadIdx.x / kWarp] = sum.total;
    }
    __syncthreads();
    if (threadIdx.x >= kWarp) return;
    sum = Sum{};
    if (threadIdx.x < kThreads / kWarp) sum = Sum{largest[threadIdx.x], totals[threadIdx.x]};
    sum = sum.over_warp();
    if (threadIdx.x > 0) return;
    log_sum_exp[blockIdx.x] = sum.largest + logf(sum.total);
    picked[blockIdx.x] = target;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    gradient(T* logits, int64_t stride, int64_t width, const int64_t* columns, int64_t num_valid,
             const float* log_sum_exp, const float* scales) {
    T* row = logits + blockIdx.x * stride;
    const Parts<T> parts(row, num_valid);
    T* body = row + parts.head;
    const float origin = log_sum_exp[blockIdx.x], scale = scales[blockIdx.x];
    const int64_t column = columns[blockIdx.x];
    const bool is_in_body = column >= parts.head && column < parts.tail();
    const int64_t target = is_in_body ? (column - parts.head) / kWidth<T> : -1;  // the vector of column
    const int place = is_in_body ? (column - parts.head) % kWidth<T> : 0;

    const auto softmax = [&](T x) { return exponential(to_float(x) - origin); };
    const auto write = [&](int64_t at, const Vector<T, kWidth<T>>& part) {
        Vector<T, kWidth<T>> out;
#pragma unroll
        for (int i = 0; i < kWidth<T>; ++i) out.values[i] = from_float<T>(softmax(part.values[i]) * scale);
        if (at == target) {
#pragma unroll
            for (int i = 0; i < kWidth<T>; ++i) {
                if (i == place) out.values[i] = from_float<T>((softmax(part.values[i]) - 1.f) * scale);
            }
        }
        reinterpret_cast<Vector<T, kWidth<T>>*>(body)[at] = out;
    };
    const auto write_one = [&](int64_t c) {
        row[c] = from_float<T>((softmax(row[c]) - (c == column ? 1.f : 0.f)) * scale);
    };
    int64_t i = threadIdx.x;
    for (; i + (kVectors - 1) * kThreads < parts.vectors; i += kVectors * kThreads) {
        Vector<T, kWidth<T>> loaded[kVectors];
#pragma unroll
        for (int j = 0; j < kVectors; ++j) loaded[j] = load<kWidth<T>>(body, i + j * kThreads);
#pragma unroll
        for (int j = 0; j < kVectors; ++j) write(i + j * kThreads, loaded[j]);
    }
    for (; i < parts.vectors; i += kThreads) write(i, load<kWidth<T>>(body, i));
    if (threadIdx.x < parts.head) write_one(threadIdx.x);
    const int64_t last = parts.tail() + threadIdx.x;
    if (last < num_valid) write_one(last);
    for (int64_t c = num_valid + threadIdx.x; c < width; c += kThreads) row[c] = from_float<T>(0.f);
}

}  // namespace

extern "C" cudaError_t cross_entropy_statistics(const void* logits, int64_t dtype, int64_t rows, int64_t stride,
                                                const int64_t* columns, int64_t num_valid, float* log_sum_exp,
                                                float* picked, cudaStream_t stream) {
    if (rows == 0) return cudaSuccess;
    if (rows > INT_MAX) return cudaErrorInvalidValue;
    return megatron_dispatch(dtype, [&](auto zero) {
        using T = decltype(zero);
        statistics<T><<<rows, kThreads, 0, stream>>>(static_cast<const T*>(logits), stride, columns, num_valid,
                                                     log_sum_exp, picked);
    });
}

extern "C" cudaError_t cross_entropy_gradient(void* logits, int64_t dtype, int64_t rows, int64_t stride, int64_t width,
                                              const int64_t* columns, int64_t num_valid, const float* log_sum_exp,
                                              const float* scale, cudaStream_t stream) {
    if (rows == 0) return cudaSuccess;
    if (rows > INT_MAX) return cudaErrorInvalidValue;
    return megatron_dispatch(dtype, [&](auto zero) {
        using T = decltype(zero);
        gradient<T><<<rows, kThreads, 0, stream>>>(static_cast<T*>(logits), stride, width, columns, num_valid,
                                                   log_sum_exp, scale);
    });
}
