// Softmax over the keys that a query sees, of scores [samples, heads, queries, keys]; in fp32, rounded at the end.
//
// Query q sees keys first_keys[sample, q] <= k <= keys - queries + q: those of its document, as far as its window goes,
// up to itself. With s scaled and p = softmax(s) there, 0 elsewhere:
//
//   d_scores = scale * p * (d_p - sum(p * d_p))
//
// Hidden keys are not read, forward or backward. A row stays in registers: those of one warp, or of a block, or of none
// where it is longer than 32 Ki elements of 16 bits.
#include "row.cuh"

namespace megatron {

// The keys first <= k < end that a row sees; 0, 0 where it sees none.
struct Visible {
    int64_t first, end;

    __device__ bool has(int64_t key) const { return key >= first && key < end; }

    // Whether any element of vector i is visible.
    template <int kWidth>
    __device__ bool has_some(int64_t i) const { return (i + 1) * kWidth > first && i * kWidth < end; }
};

template <typename T>
struct Softmax {
    const T *scores, *d_probabilities;  // d_probabilities: backward only
    const T* probabilities;             // backward only
    T* result;                          // probabilities, or d_scores
    const int64_t* first_keys;          // [num_first_keys, queries]; or null, all from key 0 on
    int64_t num_first_keys;             // 1, shared by all samples, or one row for each
    float scale;                        // above 0
    int64_t heads, queries, keys, rows;

    __device__ Visible visible(int64_t row) const {
        const int64_t head = divide(row, queries);
        const int64_t query = row - head * queries;
        const int64_t end = keys - queries + query + 1;
        if (first_keys == nullptr) return {0, end};
        const int64_t sample = num_first_keys > 1 ? divide(head, heads) : 0;
        const int64_t first = first_keys[sample * queries + query];
        return first < end ? Visible{first, end} : Visible{0, 0};
    }

    // x / y, of which 32 bits are nearly always enough and several times faster.
    __device__ static int64_t divide(int64_t x, int64_t y) {
        if (((x | y) >> 32) == 0) return static_cast<uint32_t>(x) / static_cast<uint32_t>(y);
        return x / y;
    }
};

// Vectors of each tensor that a thread keeps.
constexpr int kForwardItems = 4, kBackwardItems = 2;

// Load vector i of a row, hidden elements as `hidden`; nothing is read where all of it is.
template <typename T, int kWidth>
__device__ Vector<T, kWidth> load_visible(const T* row, int64_t i, Visible visible, float hidden) {
    Vector<T, kWidth> item;
    const bool has_some = visible.has_some<kWidth>(i);
    if (has_some) item = load<kWidth>(row, i);
    if (!has_some || !visible.has(i * kWidth) || !visible.has((i + 1) * kWidth - 1)) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
            if (!visible.has(i * kWidth + j)) item.values[j] = from_float<T>(hidden);
        }
    }
    return item;
}

template <typename T, int kWidth, int kItems>
__global__ void __launch_bounds__(kMaxRowThreads) masked_softmax(Softmax<T> a) {
    using Item = Vector<T, kWidth>;
    __shared__ float shared[2][kWarp];
    const int64_t n = a.keys / kWidth;
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
    for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < a.rows; row += step) {
        const Visible visible = a.visible(row);
        const T* scores = a.scores + row * a.keys;
        const auto load_item = [&](int64_t i) { return load_visible<T, kWidth>(scores, i, visible, -INFINITY); };
        Row<Item, kItems> items;
        items.fill(n, load_item);

        float largest = -INFINITY;
        items.each(n, load_item, [&](int64_t, const Item& item) {
#pragma unroll
            for (int j = 0; j < kWidth; ++j) largest = fmaxf(largest, to_float(item.values[j]));
        });
        largest = row_max(largest, shared[0]);

        const float scale = a.scale * kLog2E;
        float sum = 0.0f;
        items.each(n, load_item, [&](int64_t i, const Item& item) {
            if (!visible.has_some<kWidth>(i)) return;
#pragma unroll
            for (int j = 0; j < kWidth; ++j) sum += fast_exp2((to_float(item.values[j]) - largest) * scale);
        });
        const float factor = 1.0f / row_sum(sum, shared[1]);
        items.each(n, load_item, [&](int64_t i, const Item& item) {
            float p[kWidth] = {};
            if (visible.has_some<kWidth>(i)) {
#pragma unroll
                for (int j = 0; j < kWidth; ++j) {
                    p[j] = fast_exp2((to_float(item.values[j]) - largest) * scale) * factor;
                }
            }
            store(a.result + row * a.keys, i, p);
        });
    }
}

template <typename T, int kWidth>
struct SoftmaxItem {
    Vector<T, kWidth> p, d_p;
};

template <typename T, int kWidth, int kItems>
__global__ void __launch_bounds__(kMaxRowThreads) masked_softmax_backward(Softmax<T> a) {
    using Item = SoftmaxItem<T, kWidth>;
    __shared__ float shared[2][kWarp];  // of even and odd rows, so that one barrier a row is enough
    const int64_t n = a.keys / kWidth;
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
    int parity = 0;
    for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < a.rows; row += step) {
        const Visible visible = a.visible(row);
        const int64_t start = row * a.keys;
        const auto load_item = [&](int64_t i) {
            return Item{load_visible<T, kWidth>(a.probabilities + start, i, visible, 0.0f),
                        load_visible<T, kWidth>(a.d_probabilities + start, i, visible, 0.0f)};
        };
        Row<Item, kItems> items;
        items.fill(n, load_item);
        float sum = 0.0f;
        items.each(n, load_item, [&](int64_t, const Item& item) {
#pragma unroll
            for (int j = 0; j < kWidth; ++j) sum += to_float(item.p.values[j]) * to_float(item.d_p.values[j]);
        });
        sum = row_sum(sum, shared[parity]);
        parity ^= 1;
        items.each(n, load_item, [&](int64_t i, const Item& item) {
            float d[kWidth];
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
                d[j] = a.scale * to_float(item.p.values[j]) * (to_float(item.d_p.values[j]) - sum);
            }
            store(a.result + start, i, d);
        });
    }
}

}  // namespace megatron

// first_keys may be null.
extern "C" cudaError_t scaled_masked_softmax(
    const void* scores, float scale, const int64_t* first_keys, int64_t num_first_keys, void* probabilities,
    int64_t samples, int64_t heads, int64_t queries, int64_t keys, int64_t dtype, cudaStream_t stream) {
    return megatron_dispatch(dtype, [&](auto zero) {
        using T = decltype(zero);
        const megatron::Softmax<T> a{static_cast<const T*>(scores), nullptr, nullptr, static_cast<T*>(probabilities),
                                     first_keys, num_first_keys, scale, heads, queries, keys,
                                     samples * heads * queries};
        megatron::dispatch_width<T>(megatron::is_vectorizable<T>(keys, scores, probabilities), [&](auto width) {
            constexpr int kWidth = decltype(width)::value;
            megatron::dispatch_items<megatron::kForwardItems>(keys / kWidth, [&](auto items) {
                constexpr int kItems = decltype(items)::value;
                megatron::launch_rows<kItems>(megatron::masked_softmax<T, kWidth, kItems>, a.rows, keys / kWidth, a,
                                              stream);
            });
        });
    });
}

extern "C" cudaError_t scaled_masked_softmax_backward(
    const void* d_probabilities, const void* probabilities, float scale, const int64_t* first_keys,
    int64_t num_first_keys, void* d_scores, int64_t samples, int64_t heads, int64_t queries, int64_t keys,
    int64_t dtype, cudaStream_t stream) {
    return megatron_dispatch(dtype, [&](auto zero) {
        using T = decltype(zero);
        const megatron::Softmax<T> a{nullptr, static_cast<const T*>(d_probabilities),
                                     static_cast<const T*>(probabilities), static_cast<T*>(d_scores), first_keys,
                                     num_first_keys, scale, heads, queries, keys, samples * heads * queries};
        const bool is_vectorizable = megatron::is_vectorizable<T>(keys, d_probabilities, probabilities, d_scores);
        megatron::dispatch_width<T>(is_vectorizable, [&](auto width) {
            constexpr int kWidth = decltype(width)::value;
            megatron::dispatch_items<megatron::kBackwardItems>(keys / kWidth, [&](auto items) {
                constexpr int kItems = decltype(items)::value;
                megatron::launch_rows<kItems>(megatron::masked_softmax_backward<T, kWidth, kItems>, a.rows,
                                              keys / kWidth, a, stream);
            });
        });
    });
}
