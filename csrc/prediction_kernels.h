// The loops of prediction.cpp. Included once for each kind of processor (processors.h); hence no include guard. A weight lies
// in panels (products.h).

#include "products.h"

constexpr size_t kChunk = 128;   // steps along a panel: so much of it stays in the nearest cache
constexpr size_t kTogether = 4;   // panels, of one row

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
        tile<Weight, 1, kTogether, 0>(x + k, 0, 1, w, kPanel, panel_size, count, k == 0, total, 0);
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
                tile_of<Weight, kPanel>(block, from, x_stride, 1, w, kPanel, count, k == 0, to, kPanel, ahead);
            } else if (r <= kBlockRows) {  // the first two blocks fetch a half each
                tile_of<Weight, LANES>(block, from, x_stride, 1, w, kPanel, count, k == 0, to, kPanel, ahead);
                ahead += count * LANES;
            } else {
                tile_of<Weight, 0>(block, from, x_stride, 1, w, kPanel, count, k == 0, to, kPanel);
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
        tile<Fp32, 1, kTogether, 0>(queries, 0, 1, keys + panel * panel_size, kPanel, panel_size, d, true, scores, 0);
    }
    for (; panel < panels; ++panel, scores += kPanel) {
        // meanwhile the values of these tokens come, which are as many numbers
        const float* ahead = a.values + cells * a.capacity * d + panel * panel_size;
        tile_of<Fp32, kPanel>(count, queries, d, 1, keys + panel * panel_size, kPanel, d, true, scores, stride, ahead);
    }
    const size_t seen = end - begin;
    scores = scratch + begin - first;
    float shares[kBlockRows];
    for (size_t h = 0; h < count; ++h) shares[h] = 1.0f / exponentials(scores + h * stride, seen, a.scale);
    float* out = a.out + token * a.out_stride + first_head * d;
    const size_t whole = d / kPanel * kPanel;
    for (size_t i = 0; i < whole; i += kPanel) tile_of<Fp32, 0>(count, scores, stride, 1, values + i, d, seen, true, out + i, d);
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
