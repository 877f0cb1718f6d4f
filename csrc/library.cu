// What the library says of itself.
#include <cuda_runtime.h>

extern "C" const char* megatron_error_string(int code) {
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}

// The sources alone, which Python compares with those that lie beside it: a call is only as right as both agree.
extern "C" const char* megatron_sources() { return MEGATRON_SOURCES; }

// Whether there is code for the current device: an error of CUDA if not.
__global__ void megatron_probe_kernel() {}
extern "C" int megatron_probe() {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, megatron_probe_kernel);
}

// What it was made from; tools/build_kernels.py looks for it in the file, to see whether it is up to date.
extern "C" const char* megatron_build() { return MEGATRON_BUILD; }
