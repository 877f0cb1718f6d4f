// Products of rows with panels, summed in registers. Included after vectors.h, once for each kind of processor.
//
// A matrix [out, in] lies in panels of kPanel of its rows, [out / kPanel, in, kPanel], the last filled up with zeros:
// for each input two vectors that lie together, so that a product reads it from front to back. One in bf16 has two inputs
// in the place of each one of fp32, [out / kPanel, in / 2, kPanel, 2]. Every sum goes through its summands in one order,
// whatever is computed beside it: a row's result is the same among any others.

constexpr size_t kPanel = 2 * LANES;
constexpr size_t kBlockRows = LANES == 16 ? 8 : 4;  // of x, whose sums stay in registers: a vector for each of 2

// What a step along a panel adds to a sum: x, 4 bytes of a row, times w, as many for each of its outputs.
struct Fp32 {
    using Number = float;
    static constexpr size_t kInputs = 1;
    TARGET static inline void add(Floats& sum, Ints x, Floats w) { sum += reinterpret_cast<Floats>(x) * w; }
};

struct Bf16 {
    using Number = uint16_t;
    static constexpr size_t kInputs = 2;
    TARGET static inline void add(Floats& sum, Ints x, Floats w) {
#ifdef HAS_DOT
        sum = (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
        const Ints pairs = reinterpret_cast<Ints>(w), second = Ints{} - 0x10000;  // the half that holds it
        sum += reinterpret_cast<Floats>(x << 16) * reinterpret_cast<Floats>(pairs << 16);
        sum += reinterpret_cast<Floats>(x & second) * reinterpret_cast<Floats>(pairs & second);
#endif
    }
};

// Rows [rows, size], x_stride apart, in bf16, `stride` pairs apart, with zeros up to a whole vector.
TARGET inline void to_pairs(const float* x, size_t x_stride, size_t rows, size_t size, float* pairs, size_t stride) {
    for (size_t r = 0; r < rows; ++r, x += x_stride) {
        float* to = pairs + r * stride;
        for (size_t k = 0; k < size; k += LANES, to += LANES / 2) {
            const Shorts rounded = to_bf16(k + LANES <= size ? load(x + k) : load_part(x + k, size - k));
            std::memcpy(to, &rounded, sizeof rounded);
        }
    }
}

// Add to totals, rows of kPanels panels, total_stride apart, the products of rows of x, x_stride apart, its steps x_step
// apart, and of `steps` pairs of vectors of each panel of w, w_stride apart; a sum starts there, or totals hold some.
// Meanwhile kFetched numbers for each of these pairs come into a cache, from `ahead` on.
template <class Weight, size_t kRows, size_t kPanels, size_t kFetched>
TARGET inline void tile(const float* x, size_t x_stride, size_t x_step, const float* w, size_t w_stride, size_t panel_size, size_t steps,
                        bool starts, float* totals, size_t total_stride, const float* ahead = nullptr) {
    Floats sums[kPanels][kRows][2] = {};
    for (size_t k = 0; k < steps; ++k, x += x_step, w += w_stride, ahead += kFetched) {
        for (size_t i = 0; i < kFetched; i += 16) __builtin_prefetch(ahead + i);
#pragma GCC unroll 4
        for (size_t p = 0; p < kPanels; ++p) {
            const Floats first = load(w + p * panel_size), second = load(w + p * panel_size + LANES);
#pragma GCC unroll 8
            for (size_t r = 0; r < kRows; ++r) {
                const Ints factor = repeat(x + r * x_stride);
                Weight::add(sums[p][r][0], factor, first);
                Weight::add(sums[p][r][1], factor, second);
            }
        }
    }
#pragma GCC unroll 4
    for (size_t p = 0; p < kPanels; ++p) {
#pragma GCC unroll 8
        for (size_t r = 0; r < kRows; ++r) {
            // chunks are added up by themselves first, which rounds less than one long sum
            float* total = totals + r * total_stride + p * kPanel;
            store(total, starts ? sums[p][r][0] : load(total) + sums[p][r][0]);
            store(total + LANES, starts ? sums[p][r][1] : load(total + LANES) + sums[p][r][1]);
        }
    }
}

// The same for one panel and any number of rows up to kRows.
template <class Weight, size_t kFetched, size_t kRows = kBlockRows>
TARGET inline void tile_of(size_t rows, const float* x, size_t x_stride, size_t x_step, const float* w, size_t w_stride, size_t steps,
                           bool starts, float* totals, size_t total_stride, const float* ahead = nullptr) {
    if constexpr (kRows > 1) {
        if (rows < kRows) {
            return tile_of<Weight, kFetched, kRows - 1>(rows, x, x_stride, x_step, w, w_stride, steps, starts, totals, total_stride, ahead);
        }
    }
    tile<Weight, kRows, 1, kFetched>(x, x_stride, x_step, w, w_stride, 0, steps, starts, totals, total_stride, ahead);
}
