// The loops of a file for each kind of processor, and the choice among them when it runs. To be included once, inside an
// unnamed namespace, where KERNELS names that file and a struct Kernels is declared, whose members are the functions that
// the file's kKernels gives; each inclusion sees vectors of another width (vectors.h).

#ifdef HAS_X86_BF16
namespace avx512_bf16 {
#define LANES 16
#define HAS_DOT
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")))
#include "vectors.h"
#include KERNELS
#undef LANES
#undef HAS_DOT
#undef TARGET
}  // namespace avx512_bf16
#endif
#ifdef HAS_X86
namespace avx512 {
#define LANES 16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#include "vectors.h"
#include KERNELS
#undef LANES
#undef TARGET
}  // namespace avx512
namespace avx2 {
#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#include "vectors.h"
#include KERNELS
#undef LANES
#undef TARGET
}  // namespace avx2
#endif
namespace any {
#define LANES 4
#define TARGET
#include "vectors.h"
#include KERNELS
#undef LANES
#undef TARGET
}  // namespace any

// What this processor can run, by name, the fastest first.
std::vector<std::pair<std::string, const Kernels*>> supported() {
    std::vector<std::pair<std::string, const Kernels*>> found;
#ifdef HAS_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
#ifdef HAS_X86_BF16
        if (__builtin_cpu_supports("avx512bf16")) found.emplace_back("avx512_bf16", &avx512_bf16::kKernels);
#endif
        found.emplace_back("avx512", &avx512::kKernels);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.emplace_back("avx2", &avx2::kKernels);
#endif
    found.emplace_back("any", &any::kKernels);
    return found;
}

const Kernels& kernels_of(const std::string& kind) {
    static const auto found = supported();
    if (kind.empty()) return *found.front().second;
    for (const auto& [name, kernels] : found) {
        if (name == kind) return *kernels;
    }
    throw std::invalid_argument("the processor does not run " + kind);
}

std::vector<std::string> kinds() {
    std::vector<std::string> names;
    for (const auto& [name, kernels] : supported()) names.push_back(name);
    return names;
}

size_t thread_number() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// This thread's part of a loop.
std::pair<size_t, size_t> share(size_t count) {
#ifdef _OPENMP
    const size_t threads = omp_get_num_threads();
#else
    const size_t threads = 1;
#endif
    return {count * thread_number() / threads, count * (thread_number() + 1) / threads};
}
