// What csrc/*.cu needs of CUDA, on a CPU: every kernel runs thread by thread, where there is no GPU.
//
// The threads of a block are fibers. One runs until it has to wait for others, at a barrier or a shuffle, then the next does;
// blocks run one after another. What a GPU would not bear ends the process with its reason: a warp or a block of which a
// thread is missing where all meet, more threads or shared memory than there are. 2^x and 1/x are exact here.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __grid_constant__
#define __shared__ static  // of the one block that runs
#define __launch_bounds__(threads)
#define __builtin_assume(condition)
#define __syncthreads() cpu::wait(cpu::State::kAtBarrier)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double __longlong_as_double(long long bits) {
    double x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
using std::isfinite;

struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, sizeof y);
    return y;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    if (x != x) return {0x7fff};
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
struct __half {
    _Float16 value;
};
inline float __half2float(__half x) { return static_cast<float>(x.value); }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cpu {

enum class State { kReady, kAtShuffle, kAtBarrier, kDone };

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 15);
    dim3 thread;
    size_t number;
    State state;
    double given;  // to a shuffle
};

inline std::vector<std::unique_ptr<Fiber>> fibers;
inline Fiber* running;
inline ucontext_t scheduler;
inline std::function<void()> kernel;
inline std::vector<float4> dynamic;
inline size_t dynamic_limit = 48 << 10;  // bytes, without asking for more

[[noreturn]] inline void stop(const char* why) {
    std::fprintf(stderr, "CUDA on a CPU: %s\n", why);
    std::abort();
}

inline void wait(State state) {
    Fiber* self = running;
    self->state = state;
    swapcontext(&self->context, &scheduler);
}

inline void run_fiber() {
    kernel();
    running->state = State::kDone;
}

inline void go_on(Fiber& fiber) {
    running = &fiber;
    threadIdx = fiber.thread;
    swapcontext(&scheduler, &fiber.context);
}

inline size_t number_in(State state, size_t first, size_t end) {
    return std::count_if(fibers.begin() + first, fibers.begin() + end, [=](auto& fiber) { return fiber->state == state; });
}

inline void run_block(size_t threads) {
    for (size_t i = 0; i < threads; ++i) {
        Fiber& fiber = *fibers[i];
        fiber.thread = dim3(i % blockDim.x, i / blockDim.x), fiber.number = i, fiber.state = State::kReady;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data(), fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, run_fiber, 0);
    }
    const auto release = [](size_t first, size_t end) {
        for (size_t i = first; i < end; ++i) fibers[i]->state = State::kReady;
    };
    while (number_in(State::kDone, 0, threads) < threads) {
        bool has_run = false;
        for (size_t i = 0; i < threads; ++i) {
            if (fibers[i]->state != State::kReady) continue;
            go_on(*fibers[i]);
            has_run = true;
        }
        for (size_t first = 0; first + 32 <= threads; first += 32) {
            if (number_in(State::kAtShuffle, first, first + 32) == 32) release(first, first + 32);
        }
        if (has_run) continue;
        if (number_in(State::kAtBarrier, 0, threads) < threads) stop("threads wait for others that never come");
        release(0, threads);
    }
}

// Instead of kernel<<<grid, block, shared_size, stream>>>(…); `call` is what it calls.
inline void launch(dim3 grid, dim3 block, size_t shared_size, std::function<void()> call) {
    const size_t threads = block.x * block.y * block.z;
    if (threads == 0 || threads > 1024 || block.z > 1) stop("a block of too few or too many threads");
    if (grid.x == 0 || grid.y == 0 || grid.y > 65535 || grid.z > 1) stop("a grid of too few or too many blocks");
    if (shared_size > dynamic_limit) stop("more shared memory than was asked for");
    while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
    kernel = std::move(call), blockDim = block, gridDim = grid;
    for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
            blockIdx = dim3(x, y);
            dynamic.assign(shared_size / sizeof(float4) + 1, {NAN, NAN, NAN, NAN});
            run_block(threads);
        }
    }
}

}  // namespace cpu

template <class T>
T __shfl_xor_sync(unsigned, T value, int offset) {
    cpu::Fiber* self = cpu::running;
    self->given = value;
    cpu::wait(cpu::State::kAtShuffle);  // for all to give
    const double other = cpu::fibers[self->number ^ offset]->given;
    cpu::wait(cpu::State::kAtShuffle);  // for all to take
    return static_cast<T>(other);
}

using cudaError_t = int;
using cudaStream_t = void*;
enum { cudaSuccess, cudaErrorInvalidValue };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
constexpr int kMaxShared = 227 << 10;  // a Hopper's

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrMultiProcessorCount ? 3 : kMaxShared;
    return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int threads, size_t) {
    *blocks = 2048 / threads;
    return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int size) {
    if (size > kMaxShared) cpu::stop("more shared memory than there is");
    cpu::dynamic_limit = size;
    return cudaSuccess;
}
