// What the kernels share: dtypes by number, 16-byte loads and stores, reductions over warps and blocks.
//
// Numbers of dtypes are those of megatron/kernels/cuda_library.py. Arithmetic is in fp32 everywhere.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

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
