// What a C++ extension with loops for several kinds of processors (processors.h) is compiled with. Outside of any namespace.

#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_X86
#include <immintrin.h>
#if defined(__clang__) || __GNUC__ >= 11  // an older one may not know the name of it
#define HAS_X86_BF16
#endif
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between functions of one width only
#endif

using Address = uintptr_t;

template <class T = const float>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// All threads of a parallel region come here before one goes on.
inline void wait_for_others() {
#pragma omp barrier
}
