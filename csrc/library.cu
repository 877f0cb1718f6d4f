// What the library says of itself.
#include <cuda_runtime.h>

extern "C" const char* megatron_error_string(int code) {
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}

// What it was made from; tools/build_kernels.py looks for it in the file, to see whether it is up to date.
extern "C" const char* megatron_build() { return MEGATRON_BUILD; }
