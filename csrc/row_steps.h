// Going through a row of fp32 or bf16 by steps. Included after vectors.h, once for each kind of processor.
//
// A step takes a lot of vectors, then one at a time, at last what is left of the row: `Part` says which. The vectors of a lot
// are computed side by side, instruction by instruction, since each alone would wait for its own results; and what is added
// up along a row goes to a sum for each of them.

#define INLINE TARGET __attribute__((always_inline)) inline

constexpr size_t kLot = LANES == 16 ? 4 : 2;  // as many as the registers hold, with what is computed of them

struct Lot {
    Floats v[kLot];
};

#define EACH _Pragma("GCC unroll 4") for (size_t i = 0; i < kLot; ++i)
#define OPERATOR(op)                                 \
    INLINE Lot operator op(Lot a, Lot b) {    \
        EACH a.v[i] = a.v[i] op b.v[i];              \
        return a;                                    \
    }                                                \
    INLINE Lot operator op(Lot a, float b) {  \
        EACH a.v[i] = a.v[i] op b;                   \
        return a;                                    \
    }
OPERATOR(+)
OPERATOR(-)
OPERATOR(*)
#undef OPERATOR

INLINE Lot at_least(float bound, Lot x) {
    EACH x.v[i] = at_least(bound, x.v[i]);
    return x;
}

INLINE Lot at_most(float bound, Lot x) {
    EACH x.v[i] = at_most(bound, x.v[i]);
    return x;
}

INLINE Lot two_to_the(Lot shifted) {
    EACH shifted.v[i] = two_to_the(shifted.v[i]);
    return shifted;
}

// value, but 0 where x is above a bound.
INLINE Floats zero_above(float bound, Floats x, Floats value) { return x > bound ? Floats{} : value; }

INLINE Lot zero_above(float bound, Lot x, Lot value) {
    EACH value.v[i] = zero_above(bound, x.v[i], value.v[i]);
    return value;
}

// 1 / x within 2 units in the last place, for x from 1 on; 0 if that is below fp32's normal numbers.
INLINE Floats reciprocal(Floats x) {
#if LANES == 16
    const Floats guess = (Floats)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
    return guess * (2.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

INLINE Lot reciprocal(Lot x) {
    EACH x.v[i] = reciprocal(x.v[i]);
    return x;
}

struct Several {};

struct One {};

struct Rest {
    size_t count;
};

template <class T>
INLINE Lot get(const T* from, Several) {
    Lot lot;
    EACH lot.v[i] = load(from + i * LANES);
    return lot;
}

template <class T>
INLINE Floats get(const T* from, One) {
    return load(from);
}

template <class T>
INLINE Floats get(const T* from, Rest rest) {
    return load_part(from, rest.count);
}

template <class T>
INLINE void put(T* to, Lot lot, Several) {
    EACH store(to + i * LANES, lot.v[i]);
}

template <class T>
INLINE void put(T* to, Floats value, One) {
    store(to, value);
}

template <class T>
INLINE void put(T* to, Floats value, Rest rest) {
    store_part(to, value, rest.count);
}

// What is behind a row's end is another number.
INLINE Lot only(Lot lot, Several, float) { return lot; }

INLINE Floats only(Floats value, One, float) { return value; }

INLINE Floats only(Floats value, Rest rest, float other) {
    Ints lane;
    for (int i = 0; i < LANES; ++i) lane[i] = i;
    return lane < static_cast<int32_t>(rest.count) ? value : Floats{} + other;
}

template <class Step>
INLINE void along(size_t columns, Step& step) {
    size_t i = 0;
    for (; i + kLot * LANES <= columns; i += kLot * LANES) step(i, Several{});
    for (; i + LANES <= columns; i += LANES) step(i, One{});
    if (i < columns) step(i, Rest{columns - i});
}

// A sum along a row.
struct Sum {
    Lot sums = {};

    INLINE void add(Lot lot) { sums = sums + lot; }
    INLINE void add(Floats value) { sums.v[0] += value; }
    INLINE float total() const {
        Floats all = sums.v[0];
        for (size_t i = 1; i < kLot; ++i) all += sums.v[i];
        return sum(all);
    }
};

// Add to sums over rows.
template <class Value, class Part>
INLINE void add_to(float* sums, Value value, Part part) {
    put(sums, get(sums, part) + value, part);
}
