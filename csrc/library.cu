// What the library says of itself.
#include <cuda_runtime.h>

extern "C" const char* megatron_error_string(int code) {
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}
