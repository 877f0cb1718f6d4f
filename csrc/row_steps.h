// Going through a row of fp32 or bf16 by steps of a vector. Included after vectors.h, once for each kind of processor.
//
// The last step takes what is left of the row. What is added up along a row goes to kSlots sums in turns, so that one addition
// need not wait for another.

constexpr size_t kSlots = 4;

struct Whole {};

struct Rest {
    size_t count;
};

template <class T>
TARGET inline Floats get(const T* from, Whole) {
    return load(from);
}

template <class T>
TARGET inline Floats get(const T* from, Rest rest) {
    return load_part(from, rest.count);
}

template <class T>
TARGET inline void put(T* to, Floats value, Whole) {
    store(to, value);
}

template <class T>
TARGET inline void put(T* to, Floats value, Rest rest) {
    store_part(to, value, rest.count);
}

// What is behind a row's end is another number.
TARGET inline Floats only(Floats value, Whole, float) { return value; }

TARGET inline Floats only(Floats value, Rest rest, float other) {
    Ints lane;
    for (int i = 0; i < LANES; ++i) lane[i] = i;
    return lane < static_cast<int32_t>(rest.count) ? value : Floats{} + other;
}

template <class Step>
TARGET inline void along(size_t columns, Step& step) {
    size_t i = 0;
    for (; i + kSlots * LANES <= columns; i += kSlots * LANES) {
#pragma GCC unroll 4
        for (size_t slot = 0; slot < kSlots; ++slot) step(i + slot * LANES, slot, Whole{});
    }
    for (; i + LANES <= columns; i += LANES) step(i, 0, Whole{});
    if (i < columns) step(i, 0, Rest{columns - i});
}

struct Slots {
    Floats values[kSlots] = {};

    TARGET float total() const { return sum((values[0] + values[1]) + (values[2] + values[3])); }
};

// Add to a sum over rows.
template <class Part>
TARGET inline void add_to(float* sums, Floats value, Part part) {
    put(sums, get(sums, part) + value, part);
}
