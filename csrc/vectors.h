// Vectors of LANES floats, in functions with the attribute TARGET that allows those. Included once for each kind of
// processor by processors.h, inside a namespace of its own; hence no include guard.

using Floats [[gnu::vector_size(LANES * 4)]] = float;
using Ints [[gnu::vector_size(LANES * 4)]] = int32_t;
using Shorts [[gnu::vector_size(LANES * 2)]] = int16_t;

TARGET inline Floats load(const float* from) {
    Floats value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

TARGET inline Floats load_part(const float* from, size_t count) {
    Floats value = {};
    std::memcpy(&value, from, count * sizeof(float));
    return value;
}

TARGET inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

TARGET inline void store_part(float* to, Floats value, size_t count) { std::memcpy(to, &value, count * sizeof(float)); }

TARGET inline Ints lanes_from(int32_t first) {
    Ints lane;
    for (int i = 0; i < LANES; ++i) lane[i] = i;
    return lane + first;
}

// Each number in the place of the one `distance` before or after it, a power of 2.
TARGET inline Floats swapped(Floats value, int32_t distance) {
#ifdef __clang__
    Floats other;
    for (int i = 0; i < LANES; ++i) other[i] = value[i ^ distance];
    return other;
#else
    return __builtin_shuffle(value, lanes_from(0) ^ distance);
#endif
}

TARGET inline float sum(Floats value) {
#pragma GCC unroll 4
    for (int distance = LANES / 2; distance > 0; distance /= 2) value += swapped(value, distance);
    return value[0];
}

TARGET inline float maximum(Floats value) {
#pragma GCC unroll 4
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        const Floats other = swapped(value, distance);
        value = value > other ? value : other;
    }
    return value[0];
}

// x, but `bound` where it is below or above; NaN stays NaN. Compilers make two instructions of what is one.
TARGET inline Floats at_least(float bound, Floats x) {
#if LANES == 16
    return (Floats)_mm512_maskz_max_ps(0xffff, _mm512_set1_ps(bound), (__m512)x);
#elif LANES == 8
    return (Floats)_mm256_max_ps(_mm256_set1_ps(bound), (__m256)x);
#else
    return x < bound ? Floats{} + bound : x;
#endif
}

TARGET inline Floats at_most(float bound, Floats x) {
#if LANES == 16
    return (Floats)_mm512_maskz_min_ps(0xffff, _mm512_set1_ps(bound), (__m512)x);
#elif LANES == 8
    return (Floats)_mm256_min_ps(_mm256_set1_ps(bound), (__m256)x);
#else
    return x > bound ? Floats{} + bound : x;
#endif
}

// 2 to the power that the last bits of 1.5 * 2^23 + power are.
TARGET inline Floats two_to_the(Floats shifted) {
    return reinterpret_cast<Floats>((reinterpret_cast<Ints>(shifted) - 0x4b400000 + 127) << 23);
}

// e^x within 2 units in the last place, 0 below -87.7; x, a vector or a lot of them, is brought to [-88, 88].
template <class Value>
TARGET __attribute__((always_inline)) inline Value exponential(Value x) {
    const float shift = 12582912.0f;  // 1.5 * 2^23
    x = at_most(88.0f, at_least(-88.0f, x));
    const Value shifted = x * 1.44269504f + shift;  // its last bits are the power of 2
    const Value power = shifted - shift;
    const Value r = (x - power * 0.693359375f) + power * 2.12194440e-4f;  // ln 2 in two parts
    Value value = r * 1.9875691500e-4f + 1.3981999507e-3f;
    for (const float next : {8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
        value = value * r + next;
    }
    value = value * r * r + r + 1.0f;
    return value * two_to_the(shifted);
}

// x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / (1 + e^(-2u))
TARGET inline Floats gelu(Floats x) {
    const Floats u = x * (x * x * 0.044715f + 1.0f) * 0.7978845608f;
    return x / (exponential(u * -2.0f) + 1.0f);
}

// The bf16 nearest to each number, of two the even one; NaN stays NaN. With HAS_DOT, 0 for numbers below 2^-126.
TARGET inline Shorts to_bf16(Floats value) {
#ifdef HAS_DOT
    return (Shorts)_mm512_cvtneps_pbh((__m512)value);
#else
    const Ints bits = reinterpret_cast<Ints>(value), nearest = bits + 0x7fff + (bits >> 16 & 1);
    return __builtin_convertvector((value != value ? Ints{} + 0x7fc00000 : nearest) >> 16, Shorts);
#endif
}

// Numbers in bf16, by their bits: widened when they are read, and rounded when they are written.
TARGET inline Floats widen(Shorts bits) {
#if LANES == 16
    const Ints wide = (Ints)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)bits);
#elif LANES == 8
    const Ints wide = (Ints)_mm256_cvtepu16_epi32((__m128i)bits);
#else
    const Ints wide = __builtin_convertvector(bits, Ints);
#endif
    return reinterpret_cast<Floats>(wide << 16);
}

TARGET inline Floats load(const uint16_t* from) {
    Shorts bits;
    std::memcpy(&bits, from, sizeof bits);
    return widen(bits);
}

TARGET inline Floats load_part(const uint16_t* from, size_t count) {
    Shorts bits = {};
    std::memcpy(&bits, from, count * sizeof(uint16_t));
    return widen(bits);
}

TARGET inline void store(uint16_t* to, Floats value) {
    const Shorts bits = to_bf16(value);
    std::memcpy(to, &bits, sizeof bits);
}

TARGET inline void store_part(uint16_t* to, Floats value, size_t count) {
    const Shorts bits = to_bf16(value);
    std::memcpy(to, &bits, count * sizeof(uint16_t));
}

// 4 bytes in every lane. By their bits: to add a number to zeros would be an addition, for the sign of zero.
TARGET inline Ints repeat(const float* from) {
    int32_t bits;
    std::memcpy(&bits, from, sizeof bits);
    return Ints{} + bits;
}
