// Dropout as a function of coordinates, bit for bit that of megatron/kernels/dropout.py.
//
// Word w of a row is splitmix64's finaliser of key + (w + 1) * gamma; its 16-bit quarters, as signed numbers, decide
// channels 4 w to 4 w + 3: dropped where below `level`, else multiplied with `scale`.
#pragma once

#include "vector.cuh"

namespace megatron {

__device__ inline uint64_t splitmix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

struct Dropout {
    const int64_t* row_keys;  // [rows]; null where nothing is dropped
    int level;
    float scale;

    __device__ bool is_on() const { return row_keys != nullptr; }

    // Drop from the channels of vector i of a row, or scale them.
    template <int kWidth>
    __device__ void apply(float (&values)[kWidth], int64_t key, int64_t i) const {
        constexpr int kChannels = kWidth < 4 ? kWidth : 4;  // that one word decides
        static_assert(kWidth == 1 || kWidth % 4 == 0, "vectors begin where words do");
#pragma unroll
        for (int first = 0; first < kWidth; first += kChannels) {
            const uint64_t channel = static_cast<uint64_t>(i) * kWidth + first;
            const uint64_t counter = (channel / 4 + 1) * 0x9E3779B97F4A7C15u;
            uint64_t word = splitmix(static_cast<uint64_t>(key) + counter);
            if (kWidth == 1) word >>= 16 * (channel % 4);
#pragma unroll
            for (int c = 0; c < kChannels; ++c) {
                const bool is_dropped = static_cast<int16_t>(word >> (16 * c)) < level;
                values[first + c] = is_dropped ? 0.0f : values[first + c] * scale;
            }
        }
    }
};

}  // namespace megatron
