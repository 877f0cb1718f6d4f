// The loops of prediction.cpp for vectors of LANES floats, in functions with the attribute TARGET that allows those.
// Included once for each kind of processor, inside a namespace of its own; hence no include guard.
//
// A weight [out, in] lies in panels of kPanel of its rows, [out / kPanel, in, kPanel], the last filled up with zeros:
// for each input two vectors that lie together, so that a product reads its weight from front to back. One in bf16 has
// two inputs in the place of each one of fp32, [out / kPanel, in / 2, kPanel, 2]. Every sum goes through its summands in one
// order, whatever is computed beside it: a row's result is the same among any others.

using Floats [[gnu::vector_size(LANES * 4)]] = float;
using Ints [[gnu::vector_size(LANES * 4)]] = int32_t;
using Shorts [[gnu::vector_size(LANES * 2)]] = int16_t;

constexpr size_t kPanel = 2 * LANES;
constexpr size_t kBlockRows = LANES == 16 ? 8 : 4;  // of x, whose sums stay in registers: a vector for each of 2
constexpr size_t kChunk = 128;                      // steps along a panel: so much of it stays in the nearest cache
constexpr size_t kTogether = 4;                     // panels, of one row

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

TARGET inline float sum(Floats value) {
    float parts[LANES];
    store(parts, value);
    for (size_t size = LANES / 2; size > 0; size /= 2) {
        for (size_t i = 0; i < size; ++i) parts[i] += parts[i + size];
    }
    return parts[0];
}

// e^x within 2 units in the last place; x is brought to [-87, 88].
TARGET inline Floats exponential(Floats x) {
    const Floats low = Floats{} - 87.0f, high = Floats{} + 88.0f, shift = Floats{} + 12582912.0f;  // 1.5 * 2^23
    x = x < low ? low : x;
    x = x > high ? high : x;
    const Floats shifted = x * 1.44269504f + shift;  // its last bits are the power of 2
    const Floats power = shifted - shift;
    const Floats r = (x - power * 0.693359375f) + power * 2.12194440e-4f;  // ln 2 in two parts
    Floats value = Floats{} + 1.9875691500e-4f;
    for (const float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
        value = value * r + next;
    }
    value = value * r * r + r + 1.0f;
    const Ints exponent = (reinterpret_cast<Ints>(shifted) - 0x4b400000 + 127) << 23;
    return value * reinterpret_cast<Floats>(exponent);
}

// x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / (1 + e^(-2u))
TARGET inline Floats gelu(Floats x) {
    const Floats u = x * (x * x * 0.044715f + 1.0f) * 0.7978845608f;
    return x / (exponential(u * -2.0f) + 1.0f);
}

// What a step along a panel adds to a sum: x, 4 bytes of a row, times w, as many for each of its outputs.
struct Fp32 {
    static constexpr size_t kInputs = 1;
    TARGET static inline void add(Floats& sum, Ints x, Floats w) { sum += reinterpret_cast<Floats>(x) * w; }
};

struct Bf16 {
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

// The bf16 nearest to each number, of two the even one; NaN stays NaN.
TARGET inline Shorts to_bf16(Floats value) {
    const Ints bits = reinterpret_cast<Ints>(value), nearest = bits + 0x7fff + (bits >> 16 & 1);
    return __builtin_convertvector((value != value ? Ints{} + 0x7fc00000 : nearest) >> 16, Shorts);
}

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

// 4 bytes in every lane. By their bits: to add a number to zeros would be an addition, for the sign of zero.
TARGET inline Ints repeat(const float* from) {
    int32_t bits;
    std::memcpy(&bits, from, sizeof bits);
    return Ints{} + bits;
}

// Add to totals, rows of kPanels panels, total_stride apart, the products of rows of x, x_stride apart, and of `steps` pairs
// of vectors of each panel of w, w_stride apart; a sum starts there, or totals hold some. Meanwhile kFetched numbers for each
// of these pairs come into a cache, from `ahead` on.
template <class Weight, size_t kRows, size_t kPanels, size_t kFetched>
TARGET inline void tile(const float* x, size_t x_stride, const float* w, size_t w_stride, size_t panel_size, size_t steps,
                        bool starts, float* totals, size_t total_stride, const float* ahead = nullptr) {
    Floats sums[kPanels][kRows][2] = {};
    for (size_t k = 0; k < steps; ++k, w += w_stride, ahead += kFetched) {
        for (size_t i = 0; i < kFetched; i += 16) __builtin_prefetch(ahead + i);
#pragma GCC unroll 4
        for (size_t p = 0; p < kPanels; ++p) {
            const Floats first = load(w + p * panel_size), second = load(w + p * panel_size + LANES);
#pragma GCC unroll 8
            for (size_t r = 0; r < kRows; ++r) {
                const Ints factor = repeat(x + r * x_stride + k);
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
TARGET inline void tile_of(size_t rows, const float* x, size_t x_stride, const float* w, size_t w_stride, size_t steps,
                           bool starts, float* totals, size_t total_stride, const float* ahead = nullptr) {
    if constexpr (kRows > 1) {
        if (rows < kRows) {
            return tile_of<Weight, kFetched, kRows - 1>(rows, x, x_stride, w, w_stride, steps, starts, totals, total_stride, ahead);
        }
    }
    tile<Weight, kRows, 1, kFetched>(x, x_stride, w, w_stride, 0, steps, starts, totals, total_stride, ahead);
}

// Bias, activation and addition, and the way of a panel's sums [rows, kPanel] to the rows of out.
TARGET inline void finish(const Product& p, size_t first_row, size_t rows, size_t panel, const float* total) {
    const size_t first = panel * kPanel, end = std::min(first + kPanel, p.out_size);
    for (size_t column = first; column < end; column += LANES, total += LANES) {
        const size_t count = std::min<size_t>(LANES, end - column);
        Floats bias = {};
        if (p.bias) bias = count == LANES ? load(p.bias + column) : load_part(p.bias + column, count);
        float* out = p.out + first_row * p.out_stride + column;
        for (size_t r = 0; r < rows; ++r, out += p.out_stride) {
            Floats value = load(total + r * kPanel) + bias;
            if (p.has_gelu) value = gelu(value);
            if (count == LANES) {
                store(out, p.adds ? load(out) + value : value);
            } else {
                if (p.adds) value += load_part(out, count);
                std::memcpy(out, &value, count * sizeof(float));
            }
        }
    }
}

// One row's outputs of kTogether panels: read side by side, they come sooner than one after another.
template <class Weight>
TARGET inline void multiply_row(const Product& p, const float* x, size_t steps, size_t row, size_t panel, float* total) {
    const size_t panel_size = kPanel * steps;
    const float* w = p.weight + panel * panel_size;
    for (size_t k = 0; k < steps; k += kChunk, w += kChunk * kPanel) {
        const size_t count = std::min(kChunk, steps - k);
        tile<Weight, 1, kTogether, 0>(x + k, 0, w, kPanel, panel_size, count, k == 0, total, 0);
    }
    for (size_t i = 0; i < kTogether; ++i) finish(p, row, 1, panel + i, total + i * kPanel);
}

// The outputs of a panel for up to kGroupRows rows.
template <class Weight>
TARGET inline void multiply_rows(const Product& p, const float* x, size_t x_stride, size_t steps, size_t first_row,
                                 size_t rows, size_t panel, float* total) {
    const float* w = p.weight + panel * kPanel * steps;
    for (size_t k = 0; k < steps; k += kChunk, w += kChunk * kPanel) {
        const size_t count = std::min(kChunk, steps - k);
        const float* ahead = w + count * kPanel;  // the next chunk, of this panel or another
        for (size_t r = 0; r < rows; r += kBlockRows) {
            const size_t block = std::min(kBlockRows, rows - r);
            const float* from = x + r * x_stride + k;
            float* to = total + r * kPanel;
            if (rows <= kBlockRows) {
                tile_of<Weight, kPanel>(block, from, x_stride, w, kPanel, count, k == 0, to, kPanel, ahead);
            } else if (r <= kBlockRows) {  // the first two blocks fetch a half each
                tile_of<Weight, LANES>(block, from, x_stride, w, kPanel, count, k == 0, to, kPanel, ahead);
                ahead += count * LANES;
            } else {
                tile_of<Weight, 0>(block, from, x_stride, w, kPanel, count, k == 0, to, kPanel);
            }
        }
    }
    finish(p, first_row, rows, panel, total);
}

// The outputs of panels [begin, end), by groups of rows that stay in a cache. scratch: see scratch_size.
template <class Weight>
TARGET void multiply(const Product& p, size_t begin, size_t end, float* scratch) {
    const size_t steps = ceil_div(p.in_size, Weight::kInputs);
    float *total = scratch, *pairs = scratch + kGroupRows * kPanel;
    for (size_t first = 0; first < p.rows; first += kGroupRows) {
        const size_t rows = std::min(kGroupRows, p.rows - first);
        const float* x = p.x + first * p.x_stride;
        size_t stride = p.x_stride, panel = begin;
        if (Weight::kInputs == 2) {
            stride = padded(steps);
            to_pairs(x, p.x_stride, rows, p.in_size, pairs, stride);
            x = pairs;
        }
        for (; rows == 1 && panel + kTogether <= end; panel += kTogether) {
            multiply_row<Weight>(p, x, steps, first, panel, total);
        }
        for (; panel < end; ++panel) multiply_rows<Weight>(p, x, stride, steps, first, rows, panel, total);
    }
}

// LayerNorm of a row.
TARGET void normalize(const float* x, const float* weight, const float* bias, float epsilon, size_t size, float* out) {
    const size_t whole = size / LANES * LANES, rest = size - whole;
    Floats total = load_part(x + whole, rest);
    for (size_t i = 0; i < whole; i += LANES) total += load(x + i);
    const float mean = sum(total) / static_cast<float>(size);
    float squares = 0.0f;
    for (size_t i = whole; i < size; ++i) squares += (x[i] - mean) * (x[i] - mean);
    Floats wide = {};
    for (size_t i = 0; i < whole; i += LANES) wide += (load(x + i) - mean) * (load(x + i) - mean);
    const float scale = 1.0f / std::sqrt((sum(wide) + squares) / static_cast<float>(size) + epsilon);
    for (size_t i = 0; i < whole; i += LANES) {
        store(out + i, (load(x + i) - mean) * scale * load(weight + i) + load(bias + i));
    }
    for (size_t i = whole; i < size; ++i) out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

// Put e^(scale (s - max s)) in the place of each of `size` numbers, and give their sum. Writes up to a vector behind them.
TARGET inline float exponentials(float* s, size_t size, float scale) {
    const float least = std::numeric_limits<float>::lowest();
    const size_t whole = (size - 1) / LANES * LANES;  // but for a last vector, of one number or more
    Ints lane;
    for (int i = 0; i < LANES; ++i) lane[i] = i;
    const Ints is_behind = lane >= static_cast<int32_t>(size - whole);
    Floats most = is_behind ? Floats{} + least : load(s + whole);
    for (size_t i = 0; i < whole; i += LANES) {
        const Floats value = load(s + i);
        most = value > most ? value : most;
    }
    float lanes[LANES];
    store(lanes, most);
    const float highest = *std::max_element(lanes, lanes + LANES);
    const Floats last = exponential((load(s + whole) - highest) * scale);
    Floats total = is_behind ? Floats{} : last;
    store(s + whole, total);
    for (size_t i = 0; i < whole; i += LANES) {
        const Floats value = exponential((load(s + i) - highest) * scale);
        store(s + i, value);
        total += value;
    }
    return sum(total);
}

// Up to kBlockRows query heads of a token and group, from first_head on. scratch: see scratch_size.
TARGET void attend(const Attention& a, size_t token, size_t group, size_t first_head, size_t count, float* scratch) {
    const size_t d = a.head_dim, end = a.positions[token] + 1, begin = end > a.window ? end - a.window : 0;
    const size_t cells = a.rows[token] * a.num_groups + group, panel_size = d * kPanel, panels = ceil_div(end, kPanel);
    const float *keys = a.keys + cells * ceil_div(a.capacity, kPanel) * panel_size, *values = a.values + (cells * a.capacity + begin) * d;
    const float* queries = a.queries + token * a.query_stride + first_head * d;
    size_t panel = begin / kPanel;
    const size_t first = panel * kPanel, stride = panels * kPanel - first + LANES;
    float* scores = scratch;
    for (; count == 1 && panel + kTogether <= panels; panel += kTogether, scores += kTogether * kPanel) {
        tile<Fp32, 1, kTogether, 0>(queries, 0, keys + panel * panel_size, kPanel, panel_size, d, true, scores, 0);
    }
    for (; panel < panels; ++panel, scores += kPanel) {
        // meanwhile the values of these tokens come, which are as many numbers
        const float* ahead = a.values + cells * a.capacity * d + panel * panel_size;
        tile_of<Fp32, kPanel>(count, queries, d, keys + panel * panel_size, kPanel, d, true, scores, stride, ahead);
    }
    const size_t seen = end - begin;
    scores = scratch + begin - first;
    float shares[kBlockRows];
    for (size_t h = 0; h < count; ++h) shares[h] = 1.0f / exponentials(scores + h * stride, seen, a.scale);
    float* out = a.out + token * a.out_stride + first_head * d;
    const size_t whole = d / kPanel * kPanel;
    for (size_t i = 0; i < whole; i += kPanel) tile_of<Fp32, 0>(count, scores, stride, values + i, d, seen, true, out + i, d);
    for (size_t h = 0; h < count; ++h, out += d) {
        std::fill(out + whole, out + d, 0.0f);
        for (size_t j = 0; j < seen && whole < d; ++j) {
            for (size_t i = whole; i < d; ++i) out[i] += scores[h * stride + j] * values[j * d + i];
        }
        for (size_t i = 0; i < d; ++i) out[i] *= shares[h];
    }
}

// The highest of `size` numbers and its first place; NaN if there is one.
TARGET std::pair<float, int64_t> highest(const float* x, size_t size) {
    const float least = -std::numeric_limits<float>::infinity();
    Floats best = Floats{} + least;
    Ints place = {}, here = {}, is_nan = {};
    for (int i = 0; i < LANES; ++i) here[i] = i;
    const size_t whole = size / LANES * LANES;
    for (size_t i = 0; i < whole; i += LANES) {
        const Floats value = load(x + i);
        const Ints better = value > best;
        best = better ? value : best;
        place = better ? here : place;
        is_nan |= value != value;
        here += LANES;
    }
    std::pair<float, int64_t> found{least, 0};
    const auto take = [&found](float value, int64_t at) {
        if (value > found.first || (value == found.first && at < found.second) || value != value) found = {value, at};
    };
    for (int i = 0; i < LANES && whole > 0; ++i) take(is_nan[i] ? std::nanf("") : best[i], place[i]);
    for (size_t i = whole; i < size; ++i) take(x[i], i);
    return found;
}

const Kernels kKernels = {kPanel, kBlockRows, &multiply<Fp32>, &multiply<Bf16>, &normalize, &attend, &highest};
