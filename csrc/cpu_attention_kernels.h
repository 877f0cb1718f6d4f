// The loops of cpu_attention.cpp. Included once for each kind of processor (processors.h); hence no include guard.
//
// A step is 4 bytes: one number of fp32, or two of bf16 that lie together. Which of them, and how they are multiplied, is
// the template's `Weight` (products.h).

#include "products.h"

static_assert(kColumns % kPanel == 0 && kRows % kBlockRows == 0);

constexpr uint64_t kGamma = 0x9e3779b97f4a7c15u;
using Words [[gnu::vector_size(LANES * 4)]] = uint64_t;
using Halves [[gnu::vector_size(LANES * 4)]] = int16_t;  // as many as a panel has rows

// The steps of a row in bf16 that hold these numbers.
TARGET inline void store_bf16(float* to, Floats value) {
#ifdef HAS_DOT
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh((__m512)value));
#else
    const Shorts rounded = to_bf16(value);
    std::memcpy(to, &rounded, sizeof rounded);
#endif
}

// Steps that hold a number of each of two rows in bf16.
TARGET inline void store_pairs(float* to, Floats first, Floats second) {
#ifdef HAS_DOT
    alignas(64) static constexpr int16_t kPlaces[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_load_si512(kPlaces), both));
#else
    const Ints low = __builtin_convertvector(to_bf16(first), Ints) & 0xffff;
    const Ints steps = low | __builtin_convertvector(to_bf16(second), Ints) << 16;
    std::memcpy(to, &steps, sizeof steps);
#endif
}

// splitmix64's finaliser, of a number or a vector of them.
template <class Word>
TARGET inline Word mixed(Word z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// What dropout leaves of a panel's columns, from `channel` on, a multiple of 4: all bits where it leaves them. As
// megatron/kernels/dropout.py draws it: 16 bits for each of 4 channels, of a row's key and a counter.
struct Kept {
    Ints of[2];  // each of the panel's vectors
    TARGET Floats operator()(Floats value, size_t vector) const {
        return reinterpret_cast<Floats>(reinterpret_cast<Ints>(value) & of[vector]);
    }
};

TARGET inline Kept draw(uint64_t row_key, size_t channel, int16_t level) {
    Words counter;
    for (size_t i = 0; i < LANES / 2; ++i) counter[i] = channel / 4 + 1 + i;
    const Halves kept = reinterpret_cast<Halves>(mixed(counter * kGamma + row_key)) >= level;
    Shorts parts[2];
    std::memcpy(parts, &kept, sizeof kept);
    return {{__builtin_convertvector(parts[0], Ints), __builtin_convertvector(parts[1], Ints)}};
}

// Numbers of one row, as steps with zeros behind them.
template <class Weight>
TARGET inline void copy_steps(const typename Weight::Number* from, size_t size, float* to, size_t steps) {
    std::memset(static_cast<void*>(to + size / Weight::kInputs), 0, (steps - size / Weight::kInputs) * sizeof(float));
    std::memcpy(static_cast<void*>(to), from, size * sizeof *from);
}

// Rows of `steps` steps, as panels whose outputs are these rows; count: a multiple of kPanel.
TARGET inline void panels_of_rows(const float* rows, size_t count, size_t steps, float* to) {
    for (size_t first = 0; first < count; first += kPanel, rows += kPanel * steps, to += kPanel * steps) {
        for (size_t i = 0; i < kPanel; ++i) {
            for (size_t k = 0; k < steps; ++k) to[k * kPanel + i] = rows[i * steps + k];
        }
    }
}

// The same rows, kInputs at a time, as the inputs of panels whose outputs are their numbers; the panels are panel_size apart.
template <class Weight>
TARGET inline void panels_of_columns(const float* rows, size_t count, size_t steps, float* to, size_t panel_size) {
    constexpr size_t kTaken = kPanel / Weight::kInputs;  // steps of a row that a panel takes
    for (size_t r = 0; r < count; r += Weight::kInputs, rows += Weight::kInputs * steps, to += kPanel) {
        float* panel = to;
        for (size_t k = 0; k < steps; k += kTaken, panel += panel_size) {
            if constexpr (Weight::kInputs == 1) {
                std::memcpy(panel, rows + k, kPanel * sizeof(float));
            } else {
                for (size_t half = 0; half < 2; ++half) {
                    Shorts first, second;
                    std::memcpy(&first, rows + k + half * LANES / 2, sizeof first);
                    std::memcpy(&second, rows + steps + k + half * LANES / 2, sizeof second);
                    const Ints mixed = (__builtin_convertvector(first, Ints) & 0xffff) | __builtin_convertvector(second, Ints) << 16;
                    std::memcpy(panel + half * LANES, &mixed, sizeof mixed);
                }
            }
        }
    }
}

// totals [rows, panels * kPanel] += x w, of rows of x and panels of w; `starts`: they hold nothing yet.
template <class Weight>
TARGET inline void multiply(size_t rows, const float* x, size_t x_stride, size_t x_step, const float* w, size_t panel_size,
                            size_t panels, size_t steps, bool starts, float* totals, size_t total_stride) {
    for (size_t p = 0; p < panels; ++p) {
        for (size_t r = 0; r < rows; r += kBlockRows) {
            const size_t count = std::min(kBlockRows, rows - r);
            tile_of<Weight, 0>(count, x + r * x_stride, x_stride, x_step, w + p * panel_size, kPanel, steps, starts,
                               totals + r * total_stride + p * kPanel, total_stride);
        }
    }
}

// Numbers of a row of fp32, multiplied by a factor, as T.
template <class Weight>
TARGET inline void put(const float* from, size_t size, float factor, typename Weight::Number* to) {
    for (size_t i = 0; i < size; i += LANES) {
        const size_t count = std::min<size_t>(LANES, size - i);
        const Floats value = load(from + i) * factor;  // a row is as long as whole panels
        if constexpr (Weight::kInputs == 1) {
            std::memcpy(to + i, &value, count * sizeof(float));
        } else {
            const Shorts rounded = to_bf16(value);
            std::memcpy(to + i, &rounded, count * sizeof(uint16_t));
        }
    }
}

// A query of one head.
struct Row {
    size_t begin, end;  // of the keys that it sees; none: it stands for no query
    uint64_t key;       // of dropout
    size_t head, position;
};

// The rows from first_row on of a group's queries, and their number, a multiple of kInputs: rows behind the last see nothing.
template <class Weight>
TARGET inline size_t rows_of(const Attention& a, size_t sample, size_t group, size_t first_row, Row* rows) {
    const size_t heads = a.heads / a.groups, count = std::min(kRows, a.num_queries * heads - first_row);
    const size_t padded_count = ceil_div(count, Weight::kInputs) * Weight::kInputs;
    for (size_t r = 0; r < padded_count; ++r) {
        if (r >= count) {
            rows[r] = {0, 0, 0, 0, 0};
            continue;
        }
        const size_t position = (first_row + r) / heads, head = group * heads + (first_row + r) % heads;
        rows[r] = {a.first_keys ? static_cast<size_t>(a.first_keys[sample * a.first_keys_stride + position]) : 0,
                   a.num_keys - a.num_queries + position + 1,
                   a.row_keys ? mixed(a.row_keys[position * a.samples + sample] + (a.first_head + head + 1) * kGamma) : 0, head, position};
    }
    return padded_count;
}

template <class Weight>
TARGET inline typename Weight::Number* numbers_at(const Heads& heads, size_t sample, size_t head, size_t position) {
    return static_cast<typename Weight::Number*>(heads.data) + position * heads.position_stride +
           sample * heads.sample_stride + head * heads.head_stride;
}

// The rows' numbers, of queries or of gradients of outputs, as steps.
template <class Weight>
TARGET inline void gather(const Heads& heads, size_t sample, const Row* rows, size_t count, size_t size, size_t steps, float* to) {
    for (size_t r = 0; r < count; ++r, to += steps) {
        if (rows[r].end == 0) {
            std::fill(to, to + steps, 0.0f);
        } else {
            copy_steps<Weight>(numbers_at<Weight>(heads, sample, rows[r].head, rows[r].position), size, to, steps);
        }
    }
}

// Lay out keys or values of kPanel positions of a sample and group: as panels whose outputs are positions, or inputs are.
template <class Weight>
TARGET void lay_out(const Attention& a, const Heads& heads, size_t sample, size_t group, size_t panel, float* by_rows,
                    float* by_columns, float* scratch) {
    const Sizes s = a.sizes;
    const size_t first = panel * kPanel, count = std::min(kPanel, a.num_keys - first);
    for (size_t i = 0; i < kPanel; ++i) {
        float* row = scratch + i * s.steps;
        if (i < count) {
            copy_steps<Weight>(numbers_at<Weight>(heads, sample, group, first + i), a.head_dim, row, s.steps);
        } else {
            std::fill(row, row + s.steps, 0.0f);
        }
    }
    if (by_rows) panels_of_rows(scratch, kPanel, s.steps, by_rows + panel * kPanel * s.steps);
    if (by_columns) {
        panels_of_columns<Weight>(scratch, kPanel, s.steps, by_columns + first / Weight::kInputs * kPanel,
                                  s.num_keys / Weight::kInputs * kPanel);
    }
}

// The part of a tile's columns, from key `first` on, that a row sees; all of them in most tiles.
struct Seen {
    size_t begin, end;
    TARGET Seen(const Row& row, size_t first, size_t columns)
        : begin(std::clamp(row.begin, first, first + columns) - first), end(std::clamp(row.end, first, first + columns) - first) {}
    TARGET bool is_part_of(size_t columns) const { return begin > 0 || end < columns; }
    TARGET Floats of(Floats value, size_t column, float otherwise) const {
        const Ints lane = lanes_from(static_cast<int32_t>(column));
        const Ints is_seen = (lane >= static_cast<int32_t>(begin)) & (lane < static_cast<int32_t>(end));
        return is_seen ? value : Floats{} + otherwise;
    }
};

// A row's highest score, and the sums of e^(scale (score - highest)) by lanes, of the tiles so far.
struct Softmax {
    float highest = std::numeric_limits<float>::lowest();
    Floats totals = {};
};

// Turn a row's scores of a tile into their shares so far, as steps at `to`, and give the factor of all shares before them.
template <class Weight>
TARGET inline float soften(const Attention& a, const Row& row, size_t first, size_t columns, float* scores, float* to, Softmax& so_far) {
    const Seen seen(row, first, columns);
    const float hidden = -std::numeric_limits<float>::infinity();
    Floats most = Floats{} + so_far.highest;
    const bool is_part = seen.is_part_of(columns);
    for (size_t j = 0; j < columns; j += LANES) {
        Floats value = load(scores + j);
        if (is_part) {
            value = seen.of(value, j, hidden);
            store(scores + j, value);
        }
        most = value > most ? value : most;
    }
    const float highest = maximum(most);
    const float factor = highest == so_far.highest ? 1.0f : std::exp((so_far.highest - highest) * a.scale);
    const Floats shift = Floats{} + highest * a.scale;
    so_far.highest = highest;
    if (factor != 1.0f) so_far.totals *= factor;
    for (size_t j = 0; j < columns; j += kPanel) {
        Floats values[2];
        const Kept kept = a.row_keys ? draw(row.key, first + j, a.drop_level) : Kept{};
#pragma GCC unroll 2
        for (size_t i = 0; i < 2; ++i) {
            values[i] = exponential(load(scores + j + i * LANES) * a.scale - shift);
            so_far.totals += values[i];
            if (a.row_keys) values[i] = kept(values[i], i);
            if constexpr (Weight::kInputs == 1) {
                store(to + j + i * LANES, values[i]);
            } else {
                store_bf16(to + (j + i * LANES) / 2, values[i]);
            }
        }
    }
    return factor;
}

// Outputs of the rows of a group from first_row on, and the logarithms of their sums, that backward takes.
template <class Weight>
TARGET void attend(const Attention& a, size_t sample, size_t group, size_t first_row, float* scratch) {
    const Sizes s = a.sizes;
    Row rows[kRows];
    const size_t count = rows_of<Weight>(a, sample, group, first_row, rows);
    const Packed keys = a.packed(sample, group);
    float *queries = scratch, *scores = queries + kRows * s.steps, *shares = scores + kRows * kColumns, *out = shares + kRows * kColumns;
    gather<Weight>(a.query, sample, rows, count, a.head_dim, s.steps, queries);
    Softmax softmax[kRows];
    size_t begin = rows[0].begin, end = 0;
    for (size_t r = 0; r < count; ++r) end = std::max(end, rows[r].end);
    begin = begin / kPanel * kPanel;
    for (size_t first = begin; first < end; first += kColumns) {
        const size_t columns = std::min(kColumns, ceil_div(end - first, kPanel) * kPanel);
        multiply<Weight>(count, queries, s.steps, 1, keys.key_rows + first * s.steps, kPanel * s.steps, columns / kPanel, s.steps, true,
                         scores, kColumns);
        for (size_t r = 0; r < count; ++r) {
            const float factor = soften<Weight>(a, rows[r], first, columns, scores + r * kColumns,
                                                shares + r * kColumns / Weight::kInputs, softmax[r]);
            float* row = out + r * s.dim;
            for (size_t i = 0; i < s.dim && first > begin && factor != 1.0f; i += LANES) store(row + i, load(row + i) * factor);
        }
        multiply<Weight>(count, shares, kColumns / Weight::kInputs, 1, keys.value_columns + first / Weight::kInputs * kPanel,
                         s.num_keys / Weight::kInputs * kPanel, s.dim / kPanel, columns / Weight::kInputs, first == begin, out, s.dim);
    }
    for (size_t r = 0; r < count && rows[r].end > 0; ++r) {
        const float total = sum(softmax[r].totals), share = (a.row_keys ? a.keep_scale : 1.0f) / total;
        put<Weight>(out + r * s.dim, a.head_dim, share, numbers_at<Weight>(a.out, sample, rows[r].head, rows[r].position));
        a.log_sums[a.log_sum_at(sample, rows[r].head, rows[r].position)] = softmax[r].highest * a.scale + std::log(total);
    }
}

// A tile's scores of kInputs rows and the gradients of their shares, each [rows, kColumns], become shares and gradients of
// scores: as steps of a row at `row_grads`, and as steps that hold a number of each row at `shares` and `grads`.
template <class Weight>
TARGET inline void differentiate(const Attention& a, const Row* rows, size_t first, size_t columns, const float* log_sums,
                                 const float* products, float* scores, float* share_grads, float* shares, float* grads, float* row_grads) {
    constexpr size_t kTogether = Weight::kInputs;
    for (size_t j = 0; j < columns; j += kPanel) {
        Floats kept_shares[2][kTogether], score_grads[2][kTogether];
        for (size_t r = 0; r < kTogether; ++r) {
            const Seen seen(rows[r], first, columns);
            const Kept kept = a.row_keys ? draw(rows[r].key, first + j, a.drop_level) : Kept{};
            for (size_t i = 0; i < 2; ++i) {
                const size_t at = r * kColumns + j + i * LANES;
                Floats share = exponential(load(scores + at) * a.scale - log_sums[r]), grad = load(share_grads + at);
                Floats kept_share = share;
                if (a.row_keys) {
                    kept_share = kept(share * a.keep_scale, i);
                    grad = kept(grad * a.keep_scale, i);
                }
                grad = share * (grad - products[r]);
                if (seen.is_part_of(columns)) {
                    kept_share = seen.of(kept_share, j + i * LANES, 0.0f);
                    grad = seen.of(grad, j + i * LANES, 0.0f);
                }
                kept_shares[i][r] = kept_share;
                score_grads[i][r] = grad;
            }
        }
        for (size_t i = 0; i < 2; ++i) {
            const size_t at = j + i * LANES;
            if constexpr (Weight::kInputs == 1) {
                store(shares + at, kept_shares[i][0]);
                store(grads + at, score_grads[i][0]);
            } else {
                store_pairs(shares + at, kept_shares[i][0], kept_shares[i][1]);
                store_pairs(grads + at, score_grads[i][0], score_grads[i][1]);
                for (size_t r = 0; r < 2; ++r) store_bf16(row_grads + (r * kColumns + at) / 2, score_grads[i][r]);
            }
        }
    }
}

// Gradients of the queries of the rows from first_row on, and what these rows add to those of keys and values.
template <class Weight>
TARGET void attend_backward(const Attention& a, size_t sample, size_t group, size_t first_row, float* key_grads, float* value_grads,
                            float* scratch) {
    constexpr size_t kInputs = Weight::kInputs;
    const Sizes s = a.sizes;
    Row rows[kRows];
    const size_t count = rows_of<Weight>(a, sample, group, first_row, rows);
    const Packed packed = a.packed(sample, group);
    // of queries, of gradients of outputs: as rows, and as panels whose inputs are these rows
    float *queries = scratch, *outputs = queries + kRows * s.steps, *query_panels = outputs + kRows * s.steps;
    float *output_panels = query_panels + kRows * s.steps, *scores = output_panels + kRows * s.steps;
    float *share_grads = scores + kRows * kColumns, *shares = share_grads + kRows * kColumns;
    float *grads = shares + kRows * kColumns, *row_grads = grads + kRows * kColumns, *query_grads = row_grads + kRows * kColumns;
    float log_sums[kRows] = {}, products[kRows] = {};
    gather<Weight>(a.out, sample, rows, count, a.head_dim, s.steps, queries);  // for the moment
    gather<Weight>(a.out_grad, sample, rows, count, a.head_dim, s.steps, outputs);
    for (size_t r = 0; r < count && rows[r].end > 0; ++r) {
        Floats product = {};
        for (size_t k = r * s.steps; k < (r + 1) * s.steps; k += LANES) {
            Weight::add(product, reinterpret_cast<Ints>(load(queries + k)), load(outputs + k));
        }
        products[r] = sum(product);
        log_sums[r] = a.log_sums[a.log_sum_at(sample, rows[r].head, rows[r].position)];
    }
    gather<Weight>(a.query, sample, rows, count, a.head_dim, s.steps, queries);
    const size_t panel_size = kRows / kInputs * kPanel;
    panels_of_columns<Weight>(queries, count, s.steps, query_panels, panel_size);
    panels_of_columns<Weight>(outputs, count, s.steps, output_panels, panel_size);
    size_t begin = rows[0].begin, end = 0;
    for (size_t r = 0; r < count; ++r) end = std::max(end, rows[r].end);
    begin = begin / kPanel * kPanel;
    for (size_t first = begin; first < end; first += kColumns) {
        const size_t columns = std::min(kColumns, ceil_div(end - first, kPanel) * kPanel);
        multiply<Weight>(count, queries, s.steps, 1, packed.key_rows + first * s.steps, kPanel * s.steps, columns / kPanel, s.steps,
                         true, scores, kColumns);
        multiply<Weight>(count, outputs, s.steps, 1, packed.value_rows + first * s.steps, kPanel * s.steps, columns / kPanel, s.steps,
                         true, share_grads, kColumns);
        for (size_t r = 0; r < count; r += kInputs) {
            const size_t at = r * kColumns, both = at / kInputs;
            differentiate<Weight>(a, rows + r, first, columns, log_sums + r, products + r, scores + at, share_grads + at, shares + both,
                                  grads + both, row_grads + both);
        }
        const size_t steps = count / kInputs;
        multiply<Weight>(columns, shares, 1, kColumns, output_panels, panel_size, s.dim / kPanel, steps, false,
                         value_grads + first * s.dim, s.dim);
        multiply<Weight>(columns, grads, 1, kColumns, query_panels, panel_size, s.dim / kPanel, steps, false, key_grads + first * s.dim,
                         s.dim);
        multiply<Weight>(count, kInputs == 1 ? grads : row_grads, kColumns / kInputs, 1,
                         packed.key_columns + first / kInputs * kPanel, s.num_keys / kInputs * kPanel, s.dim / kPanel,
                         columns / kInputs, first == begin, query_grads, s.dim);
    }
    for (size_t r = 0; r < count && rows[r].end > 0; ++r) {
        put<Weight>(query_grads + r * s.dim, a.head_dim, a.scale, numbers_at<Weight>(a.query_grad, sample, rows[r].head, rows[r].position));
    }
}

// The gradient of a key or value of a group at a position: the sum of `parts`, `apart` floats from each other, times factor.
template <class Weight>
TARGET void finish(const Attention& a, const Heads& to, size_t sample, size_t group, size_t position, float* totals, size_t parts,
                   size_t apart, float factor) {
    const Sizes s = a.sizes;
    float* total = totals + position * s.dim;
    for (size_t p = 1; p < parts; ++p) {
        for (size_t i = 0; i < s.dim; i += LANES) store(total + i, load(total + i) + load(total + p * apart + i));
    }
    put<Weight>(total, a.head_dim, factor, numbers_at<Weight>(to, sample, group, position));
}

template <class Weight>
constexpr Loops loops_of() {
    return {Weight::kInputs, &lay_out<Weight>, &attend<Weight>, &attend_backward<Weight>, &finish<Weight>};
}

const Kernels kKernels = {kPanel, loops_of<Fp32>(), loops_of<Bf16>()};
