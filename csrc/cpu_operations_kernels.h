// The loops of cpu_operations.cpp. Included once for each kind of processor (processors.h); hence no include guard.

#include "row_steps.h"

using Words [[gnu::vector_size(LANES * 2)]] = uint64_t;  // each has the bits of 4 channels

// Dropout along a row, by the bits of megatron/kernels/dropout.py.
template <bool kDrops>
struct Dropped {
    static constexpr uint64_t kGamma = 0x9e3779b97f4a7c15;  // 2^64 / golden ratio
    Words counter = {};
    Ints level = {};
    float scale = 1.0f;

    TARGET Dropped(const Dropout& dropout, size_t row) {
        if (!kDrops) return;
        uint64_t first[LANES / 4];
        for (size_t i = 0; i < LANES / 4; ++i) first[i] = dropout.row_keys[row] + kGamma * (i + 1);
        std::memcpy(&counter, first, sizeof first);
        level += dropout.level;
        scale = dropout.scale;
    }

    INLINE Lot operator()(Lot value) {
        EACH value.v[i] = (*this)(value.v[i]);
        return value;
    }

    // The next vector of the row.
    INLINE Floats operator()(Floats value) {
        if (!kDrops) return value;
        Words z = counter;  // through the finaliser of splitmix64
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        z = z ^ (z >> 31);
        counter += kGamma * (LANES / 4);
        const Ints bits = __builtin_convertvector(reinterpret_cast<Shorts>(z), Ints);
        return bits < level ? Floats{} : value * scale;
    }
};

// 1 / (1 + e^(-2u)) of x as `gelu` has it, and the part that is left to 1.
template <class Value>
INLINE std::pair<Value, Value> gelu_factor(Value x) {
    const Value z = x * (x * x * 0.044715f + 1.0f) * (-2.0f * 0.7978845608f);
    const Value e = exponential(z), s = reciprocal(e + 1.0f);
    return {zero_above(80.0f, z, s), e * s};
}

template <class T>
struct GeluStep {
    const T *x, *bias;
    T* out;

    template <class Part>
    INLINE void operator()(size_t i, Part part) {
        auto value = get(x + i, part);
        if (bias) value = value + get(bias + i, part);
        put(out + i, value * gelu_factor(value).first, part);
    }
};

template <class T>
TARGET void gelu_rows(const Gelu& g, size_t begin, size_t end, float*) {
    for (size_t r = begin * g.columns; r < end * g.columns; r += g.columns) {
        GeluStep<T> step{at<const T>(g.x) + r, at<const T>(g.bias), at<T>(g.out) + r};
        along(g.columns, step);
    }
}

// With y = x + bias and s its factor: dy (s + y s (1 - s) 2 sqrt(2 / pi) (1 + 3 * 0.044715 y^2))
template <class T>
struct GeluBackwardStep {
    const T *x, *bias, *dy;
    T* dx;
    float* sums;

    template <class Part>
    INLINE void operator()(size_t i, Part part) {
        auto y = get(x + i, part);
        if (bias) y = y + get(bias + i, part);
        const auto [s, left] = gelu_factor(y);
        const auto inner = (y * y * (3.0f * 0.044715f) + 1.0f) * (2.0f * 0.7978845608f);
        const auto value = get(dy + i, part) * (s + y * s * left * inner);
        put(dx + i, value, part);
        if (bias) add_to(sums + i, value, part);
    }
};

template <class T>
TARGET void gelu_backward_rows(const Gelu& g, size_t begin, size_t end, float* sums) {
    for (size_t r = begin * g.columns; r < end * g.columns; r += g.columns) {
        GeluBackwardStep<T> step{at<const T>(g.x) + r, at<const T>(g.bias), at<const T>(g.dy) + r, at<T>(g.out) + r, sums};
        along(g.columns, step);
    }
}

template <class T, bool kDrops>
struct AddStep {
    const T *x, *bias, *residual;
    T* out;
    Dropped<kDrops> dropped;

    template <class Part>
    INLINE void operator()(size_t i, Part part) {
        auto value = get(x + i, part);
        if (bias) value = value + get(bias + i, part);
        put(out + i, dropped(value) + get(residual + i, part), part);
    }
};

template <class T>
struct SumStep {
    const T* x;
    Sum sum;

    template <class Part>
    INLINE void operator()(size_t i, Part part) {
        sum.add(get(x + i, part));
    }
};

template <class T>
struct SquareStep {
    const T* x;
    float mean;
    Sum sum;

    template <class Part>
    INLINE void operator()(size_t i, Part part) {
        const auto centred = only(get(x + i, part) - mean, part, 0.0f);
        sum.add(centred * centred);
    }
};

template <class T>
struct NormStep {
    const T *x, *weight, *bias;
    T* out;
    float mean, rstd;

    template <class Part>
    INLINE void operator()(size_t i, Part part) {
        const auto normal = (get(x + i, part) - mean) * rstd;
        put(out + i, normal * get(weight + i, part) + get(bias + i, part), part);
    }
};

template <class T>
TARGET inline void norm_row(const Norm& n, size_t row) {
    const T* x = at<const T>(n.x) + row * n.columns;
    const float size = static_cast<float>(n.columns);
    SumStep<T> sum{x, {}};
    along(n.columns, sum);
    const float mean = sum.sum.total() / size;
    SquareStep<T> squares{x, mean, {}};
    along(n.columns, squares);
    const float rstd = 1.0f / std::sqrt(squares.sum.total() / size + n.epsilon);
    NormStep<T> norm{x, at<const T>(n.weight), at<const T>(n.bias), at<T>(n.out) + row * n.columns, mean, rstd};
    along(n.columns, norm);
    at<float>(n.statistics)[2 * row] = mean;
    at<float>(n.statistics)[2 * row + 1] = rstd;
}

template <class T>
TARGET void norm_rows(const Norm& n, size_t begin, size_t end, float*) {
    for (size_t r = begin; r < end; ++r) norm_row<T>(n, r);
}

template <class T, bool kDrops>
TARGET inline void add_row(const Add& a, size_t row) {
    const size_t r = row * a.columns;
    AddStep<T, kDrops> step{at<const T>(a.x) + r, at<const T>(a.bias), at<const T>(a.residual) + r, at<T>(a.out) + r,
                            Dropped<kDrops>(a.dropout, row)};
    along(a.columns, step);
}

template <class T>
TARGET void add_rows(const Add& a, size_t begin, size_t end, float*) {
    for (size_t r = begin; r < end; ++r) {
        a.dropout.row_keys ? add_row<T, true>(a, r) : add_row<T, false>(a, r);
        if (a.norm.columns) norm_row<T>(a.norm, r);
    }
}

template <class T, bool kDrops>
struct AddBackwardStep {
    const T* dy;
    T* dx;
    float* sums;
    Dropped<kDrops> dropped;

    template <class Part>
    INLINE void operator()(size_t i, Part part) {
        const auto value = dropped(get(dy + i, part));
        if (kDrops) put(dx + i, value, part);
        if (sums) add_to(sums + i, value, part);
    }
};

template <class T, bool kDrops>
TARGET inline void add_backward_of(const AddBackward& a, size_t begin, size_t end, float* sums) {
    for (size_t r = begin; r < end; ++r) {
        AddBackwardStep<T, kDrops> step{at<const T>(a.dy) + r * a.columns, at<T>(a.dx) + r * a.columns, sums,
                                        Dropped<kDrops>(a.dropout, r)};
        along(a.columns, step);
    }
}

template <class T>
TARGET void add_backward_rows(const AddBackward& a, size_t begin, size_t end, float* sums) {
    (a.dropout.row_keys ? add_backward_of<T, true> : add_backward_of<T, false>)(a, begin, end, sums);
}

// Of a row, with g = dy weight and n the normal: the sums of g and g n, and what this row adds to those of dy and dy n.
template <class T>
struct NormSumsStep {
    const T *x, *weight, *dy;
    float mean, rstd;
    float *d_weight, *d_bias;
    Sum g_sum, gn_sum;

    template <class Part>
    INLINE void operator()(size_t i, Part part) {
        const auto d = get(dy + i, part), normal = (get(x + i, part) - mean) * rstd;
        const auto g = d * get(weight + i, part);
        g_sum.add(g);
        gn_sum.add(only(g * normal, part, 0.0f));
        add_to(d_weight + i, d * normal, part);
        add_to(d_bias + i, d, part);
    }
};

// rstd (g - mean g - n mean (g n)), and what reaches the sum otherwise.
template <class T, bool kDrops>
struct NormBackwardStep {
    const T *x, *weight, *dy, *d_total;
    T *d_residual, *dx;
    float mean, rstd, g_mean, gn_mean;
    float* sums;
    Dropped<kDrops> dropped;

    template <class Part>
    INLINE void operator()(size_t i, Part part) {
        const auto normal = (get(x + i, part) - mean) * rstd;
        auto d = (get(dy + i, part) * get(weight + i, part) - g_mean - normal * gn_mean) * rstd;
        if (d_total) d = d + get(d_total + i, part);
        put(d_residual + i, d, part);
        d = dropped(d);
        if (kDrops) put(dx + i, d, part);
        if (sums) add_to(sums + i, d, part);
    }
};

template <class T, bool kDrops>
TARGET inline void norm_backward_of(const NormBackward& n, size_t begin, size_t end, float* sums) {
    const T* weight = at<const T>(n.weight);
    const float size = static_cast<float>(n.columns);
    for (size_t row = begin; row < end; ++row) {
        const size_t r = row * n.columns;
        const T *x = at<const T>(n.x) + r, *dy = at<const T>(n.dy) + r;
        const float mean = at(n.statistics)[2 * row], rstd = at(n.statistics)[2 * row + 1];
        NormSumsStep<T> first{x, weight, dy, mean, rstd, sums, sums + n.columns, {}, {}};
        along(n.columns, first);
        NormBackwardStep<T, kDrops> second{x,
                                           weight,
                                           dy,
                                           n.d_total ? at<const T>(n.d_total) + r : nullptr,
                                           at<T>(n.d_residual) + r,
                                           at<T>(n.dx) + r,
                                           mean,
                                           rstd,
                                           first.g_sum.total() / size,
                                           first.gn_sum.total() / size,
                                           n.has_bias ? sums + 2 * n.columns : nullptr,
                                           Dropped<kDrops>(n.dropout, row)};
        along(n.columns, second);
    }
}

template <class T>
TARGET void norm_backward_rows(const NormBackward& n, size_t begin, size_t end, float* sums) {
    (n.dropout.row_keys ? norm_backward_of<T, true> : norm_backward_of<T, false>)(n, begin, end, sums);
}

template <class T>
struct HighestStep {
    const T* x;
    Lot most;

    INLINE void operator()(size_t i, Several part) {
        const Lot lot = get(x + i, part);
        for (size_t j = 0; j < kLot; ++j) most.v[j] = lot.v[j] > most.v[j] ? lot.v[j] : most.v[j];
    }

    template <class Part>
    INLINE void operator()(size_t i, Part part) {
        const Floats value = only(get(x + i, part), part, -std::numeric_limits<float>::infinity());
        most.v[0] = value > most.v[0] ? value : most.v[0];
    }
};

template <class T>
struct ExponentialStep {
    const T* x;
    float highest;
    Sum sum;

    template <class Part>
    INLINE void operator()(size_t i, Part part) {
        sum.add(only(exponential(get(x + i, part) - highest), part, 0.0f));
    }
};

template <class T>
TARGET float log_sum_exp_of(const T* x, size_t columns) {
    if (columns == 0) return -std::numeric_limits<float>::infinity();
    HighestStep<T> step{x, {}};
    for (Floats& value : step.most.v) value -= std::numeric_limits<float>::infinity();
    along(columns, step);
    float highest = step.most.v[0][0];
    for (const Floats& value : step.most.v) {
        for (int i = 0; i < LANES; ++i) highest = std::max(highest, value[i]);
    }
    ExponentialStep<T> exponentials{x, highest, {}};
    along(columns, exponentials);
    return std::log(exponentials.sum.total()) + highest;
}

template <class T>
TARGET void statistics_rows(const Logits& l, size_t begin, size_t end, float*) {
    for (size_t r = begin; r < end; ++r) {
        const T* x = at<const T>(l.logits) + r * l.stride;
        const int64_t column = at<const int64_t>(l.columns)[r];
        at<float>(l.log_sum_exp)[r] = log_sum_exp_of(x, l.num_valid);
        at<float>(l.picked)[r] = column < 0 ? 0.0f : load_part(x + column, 1)[0];
    }
}

// Softmax times scale.
template <class Value>
INLINE Value probability(Value x, float log_sum_exp, float scale) {
    return exponential(x - log_sum_exp) * scale;
}

template <class T>
struct GradientStep {
    T* x;
    float log_sum_exp, scale;

    template <class Part>
    INLINE void operator()(size_t i, Part part) {
        put(x + i, probability(get<T>(x + i, part), log_sum_exp, scale), part);
    }
};

template <class T>
TARGET void gradient_rows(const Logits& l, size_t begin, size_t end, float*) {
    for (size_t r = begin; r < end; ++r) {
        T* x = at<T>(l.logits) + r * l.stride;
        const int64_t column = at<const int64_t>(l.columns)[r];
        const float log_sum_exp = at(l.log_sum_exp)[r], scale = at(l.scale)[r];
        const Floats label = column < 0 ? Floats{} : load_part(x + column, 1);
        GradientStep<T> step{x, log_sum_exp, scale};
        along(l.num_valid, step);
        if (column >= 0) store_part(x + column, probability(label, log_sum_exp, scale) - scale, 1);
        std::memset(x + l.num_valid, 0, (l.width - l.num_valid) * sizeof(T));
    }
}

// Of `count` rows of sums, `columns` apart, the sum in their order.
template <class T>
TARGET void reduce(const float* sums, size_t count, size_t columns, size_t size, Address out) {
    for (size_t i = 0; i < size; i += LANES) {
        const Rest rest{std::min<size_t>(LANES, size - i)};
        Floats total = {};
        for (size_t row = 0; row < count; ++row) total += get(sums + row * columns + i, rest);
        put(at<T>(out) + i, total, rest);
    }
}

#define BOTH(function) {&function<float>, &function<uint16_t>}
const Kernels kKernels = {BOTH(gelu_rows),     BOTH(gelu_backward_rows), BOTH(add_rows),      BOTH(add_backward_rows), BOTH(norm_rows),
                          BOTH(norm_backward_rows), BOTH(statistics_rows),    BOTH(gradient_rows), BOTH(reduce)};
#undef BOTH
#undef EACH
#undef INLINE
