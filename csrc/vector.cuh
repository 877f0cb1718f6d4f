// What the kernels share: dtypes by number, 16-byte loads and stores, reductions over warps and blocks.
//
// Numbers of dtypes are those of megatron/kernels/cuda_library.py. Arithmetic is in fp32 everywhere.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace megatron {

enum Dtype : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

template <typename T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) { return x; }
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ inline __half from_float<__half>(float x) { return __float2half_rn(x); }

// N elements that are loaded and stored as one; 16 bytes where N * sizeof(T) is.
template <typename T, int N>
struct alignas(N * sizeof(T)) Vector {
    T values[N];
};

// Vector i of what starts at p.
template <int N, typename T>
__device__ inline Vector<T, N> load(const T* p, int64_t i) {
    return reinterpret_cast<const Vector<T, N>*>(p)[i];
}

template <typename T, int N>
__device__ inline void unpack(const Vector<T, N>& vector, float (&values)[N]) {
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] = to_float(vector.values[j]);
}

// Round N numbers and store them as vector i of what starts at p.
template <typename T, int N>
__device__ inline void store(T* p, int64_t i, const float (&values)[N]) {
    Vector<T, N> vector;
#pragma unroll
    for (int j = 0; j < N; ++j) vector.values[j] = from_float<T>(values[j]);
    reinterpret_cast<Vector<T, N>*>(p)[i] = vector;
}

// Store N floats at p, which is aligned to 16 bytes where N is 4 or more.
template <int N>
__device__ inline void store_floats(float* p, const float (&values)[N]) {
    constexpr int kPiece = N < 4 ? N : 4;
#pragma unroll
    for (int j = 0; j < N; j += kPiece) {
        Vector<float, kPiece> piece;
#pragma unroll
        for (int k = 0; k < kPiece; ++k) piece.values[k] = values[j + k];
        *reinterpret_cast<Vector<float, kPiece>*>(p + j) = piece;
    }
}

// 2^x and 1/x to about 2^-22, in one instruction each; results below 2^-126 become 0.
__device__ inline float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ inline float fast_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
constexpr float kLog2E = 1.44269504088896341f;

constexpr int kWarp = 32;

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

constexpr int64_t divide_up(int64_t x, int64_t y) { return (x + y - 1) / y; }

// Whether rows of this many elements, which start at these addresses one after another, can be read 16 bytes at a time.
template <typename T, typename... Pointers>
inline bool is_vectorizable(int64_t columns, Pointers... pointers) {
    const uintptr_t addresses = (reinterpret_cast<uintptr_t>(pointers) | ...);  // of null: 0
    return addresses % 16 == 0 && columns * sizeof(T) % 16 == 0;
}

// Call f(std::integral_constant<int, N>) with the elements that a thread loads as one: 16 bytes of T, or one element.
template <typename T, typename F>
inline void dispatch_width(bool is_vectorizable, F&& f) {
    if (is_vectorizable) {
        f(std::integral_constant<int, 16 / sizeof(T)>{});
    } else {
        f(std::integral_constant<int, 1>{});
    }
}

inline int device_attribute(cudaDeviceAttr attribute) {
    int device = 0, value = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&value, attribute, device);
    return value;
}

// How many blocks of a kernel the device runs at once.
template <typename Kernel>
inline int64_t resident_blocks(Kernel kernel, int64_t threads, size_t shared_size) {
    int per_processor = 0;
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, static_cast<int>(threads), shared_size);
    return static_cast<int64_t>(std::max(1, per_processor)) * device_attribute(cudaDevAttrMultiProcessorCount);
}

}  // namespace megatron

// Call f(T{}) with the type that a number stands for.
template <typename F>
inline cudaError_t megatron_dispatch(int64_t dtype, F&& f) {
    switch (dtype) {
        case megatron::kFloat32: f(float{}); break;
        case megatron::kBFloat16: f(__nv_bfloat16{}); break;
        case megatron::kFloat16: f(__half{}); break;
        default: return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
}
