// Layer norm over the last dim, alone and after the sum that closes half of a transformer layer; statistics in fp32.
//
//   total  = residual + dropout(x + bias)          or, alone, x
//   normed = (total - mean) * rstd * weight + norm_bias,   rstd = 1 / sqrt(variance + epsilon)
//
// Rows are contiguous, [rows, columns]. The sum is rounded before it is normalised. Backward, with g = d_normed * weight
// and n = (total - mean) * rstd:
//
//   d_residual = d_total + rstd * (g - mean(g) - n * mean(g * n))
//   dx         = dropout'(d_residual)              before d_residual is rounded
//   d_weight, d_norm_bias, d_bias = sums over rows of d_normed * n, d_normed, dx
//
// in one pass: a block adds up its rows' sums in shared memory.
#include "column_sums.cuh"
#include "dropout.cuh"
#include "row.cuh"

namespace megatron {

template <typename T>
struct NormForward {
    const T *x, *bias, *residual;  // bias: or null; residual: used with kAdds
    Dropout dropout;
    const T *weight, *norm_bias;
    T *total, *normed;
    float *mean, *rstd;  // [rows]
    float epsilon;
    int64_t rows, columns;
};

constexpr int kForwardItems = 4;

template <typename T, int kWidth, int kItems, bool kAdds>
__global__ void __launch_bounds__(kMaxRowThreads) layer_norm_forward(NormForward<T> a) {
    using Item = Vector<T, kWidth>;
    __shared__ float shared[2][kWarp];
    const int64_t n = a.columns / kWidth;
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
    for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < a.rows; row += step) {
        const T* source = (kAdds ? a.total : a.x) + row * a.columns;
        const auto reload = [&](int64_t i) { return load<kWidth>(source, i); };
        Row<Item, kItems> items;
        if constexpr (kAdds) {
            const int64_t key = a.dropout.is_on() ? a.dropout.row_keys[row] : 0;
            items.fill(n, [&](int64_t i) {
                float x[kWidth], other[kWidth];
                const Item residual = load<kWidth>(a.residual + row * a.columns, i);
                unpack(load<kWidth>(a.x + row * a.columns, i), x);
                if (a.bias != nullptr) {
                    unpack(load<kWidth>(a.bias, i), other);
#pragma unroll
                    for (int j = 0; j < kWidth; ++j) x[j] += other[j];
                }
                if (a.dropout.is_on()) a.dropout.apply(x, key, i);
                unpack(residual, other);
                Item total;
#pragma unroll
                for (int j = 0; j < kWidth; ++j) total.values[j] = from_float<T>(x[j] + other[j]);
                reinterpret_cast<Item*>(a.total + row * a.columns)[i] = total;
                return total;
            });
        } else {
            items.fill(n, reload);
        }

        float sum = 0.0f;
        items.each(n, reload, [&](int64_t, const Item& item) {
#pragma unroll
            for (int j = 0; j < kWidth; ++j) sum += to_float(item.values[j]);
        });
        const float mean = row_sum(sum, shared[0]) / a.columns;
        float squares = 0.0f;
        items.each(n, reload, [&](int64_t, const Item& item) {
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
                const float centred = to_float(item.values[j]) - mean;
                squares += centred * centred;
            }
        });
        const float rstd = rsqrtf(row_sum(squares, shared[1]) / a.columns + a.epsilon);
        items.each(n, reload, [&](int64_t i, const Item& item) {
            float y[kWidth], weight[kWidth], bias[kWidth];
            unpack(item, y);
            unpack(load<kWidth>(a.weight, i), weight);
            unpack(load<kWidth>(a.norm_bias, i), bias);
#pragma unroll
            for (int j = 0; j < kWidth; ++j) y[j] = (y[j] - mean) * rstd * weight[j] + bias[j];
            store(a.normed + row * a.columns, i, y);
        });
        if (threadIdx.x == 0) {
            a.mean[row] = mean;
            a.rstd[row] = rstd;
        }
    }
}

template <typename T>
struct NormBackward {
    const T *d_total, *d_normed, *total;  // d_total: or null
    const float *mean, *rstd;
    const T* weight;
    Dropout dropout;
    T *d_residual, *dx;  // dx: with dropout
    float* partials;     // [gridDim.x, kinds, columns]
    int kinds;           // d_weight, d_norm_bias and, of 3, d_bias
    int64_t rows, columns;
};

// Sums over rows of the columns of one thread. In shared memory vectors are cut in pieces of 16 bytes and first pieces
// stand before second ones: a warp meets every bank once.
template <int kWidth>
class ThreadSums {
  public:
    static constexpr int kPiece = kWidth < 4 ? kWidth : 4;

    __device__ ThreadSums(float* base, int64_t columns, bool is_shared)
        : base_(base),
          columns_(columns),
          vector_stride_(is_shared ? kPiece : kWidth),
          piece_stride_(is_shared ? columns / kWidth * kPiece : kPiece) {}

    __device__ Vector<float, kPiece>& piece(int kind, int64_t i, int number) const {
        float* here = base_ + kind * columns_ + i * vector_stride_ + number * piece_stride_;
        return *reinterpret_cast<Vector<float, kPiece>*>(here);
    }

    __device__ void add(int kind, int64_t i, const float (&values)[kWidth]) const {
#pragma unroll
        for (int number = 0; number < kWidth / kPiece; ++number) {
            Vector<float, kPiece> sums = piece(kind, i, number);
#pragma unroll
            for (int j = 0; j < kPiece; ++j) sums.values[j] += values[number * kPiece + j];
            piece(kind, i, number) = sums;
        }
    }

  private:
    float* base_;
    int64_t columns_, vector_stride_, piece_stride_;
};

constexpr int kBackwardItems = 2;

template <typename T, int kWidth>
struct BackwardItem {
    Vector<T, kWidth> total, d_normed, d_total;
};

// With kItems 0 the sums are added up where they belong in the end, for rows that shared memory does not hold.
template <typename T, int kWidth, int kItems>
__global__ void __launch_bounds__(kMaxRowThreads) layer_norm_backward(NormBackward<T> a) {
    using Item = BackwardItem<T, kWidth>;
    using Sums = ThreadSums<kWidth>;
    extern __shared__ float4 dynamic[];
    __shared__ float2 shared[2][kWarp];  // of even and odd rows, so that one barrier a row is enough
    const int64_t n = a.columns / kWidth;
    float* partials = a.partials + static_cast<int64_t>(blockIdx.x) * a.kinds * a.columns;
    const Sums sums(kItems > 0 ? reinterpret_cast<float*>(dynamic) : partials, a.columns, kItems > 0);
    for (int kind = 0; kind < a.kinds; ++kind) {
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
            for (int number = 0; number < kWidth / Sums::kPiece; ++number) sums.piece(kind, i, number) = {};
        }
    }

    int parity = 0;
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, parity ^= 1) {
        const int64_t start = row * a.columns;
        const float mean = a.mean[row], rstd = a.rstd[row];
        const int64_t key = a.dropout.is_on() ? a.dropout.row_keys[row] : 0;
        const auto load_item = [&](int64_t i) {
            Item item;
            item.total = load<kWidth>(a.total + start, i);
            item.d_normed = load<kWidth>(a.d_normed + start, i);
            if (a.d_total != nullptr) item.d_total = load<kWidth>(a.d_total + start, i);
            return item;
        };
        Row<Item, kItems> items;
        items.fill(n, load_item);

        float2 means = {0.0f, 0.0f};  // of g, and of g * n
        items.each(n, load_item, [&](int64_t i, const Item& item) {
            float normal[kWidth], dy[kWidth], weight[kWidth];
            unpack(item.total, normal);
            unpack(item.d_normed, dy);
            unpack(load<kWidth>(a.weight, i), weight);
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
                normal[j] = (normal[j] - mean) * rstd;
                const float g = dy[j] * weight[j];
                means.x += g;
                means.y += g * normal[j];
                normal[j] *= dy[j];
            }
            sums.add(0, i, normal);
            sums.add(1, i, dy);
        });
        means = row_sums(means, shared[parity]);
        means = make_float2(means.x / a.columns, means.y / a.columns);

        items.each(n, load_item, [&](int64_t i, const Item& item) {
            float normal[kWidth], d[kWidth], other[kWidth];
            unpack(item.total, normal);
            unpack(item.d_normed, d);
            unpack(load<kWidth>(a.weight, i), other);
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
                normal[j] = (normal[j] - mean) * rstd;
                d[j] = rstd * (d[j] * other[j] - means.x - normal[j] * means.y);
            }
            if (a.d_total != nullptr) {
                unpack(item.d_total, other);
#pragma unroll
                for (int j = 0; j < kWidth; ++j) d[j] += other[j];
            }
            store(a.d_residual + start, i, d);
            if (a.dropout.is_on()) {
                a.dropout.apply(d, key, i);
                store(a.dx + start, i, d);
            }
            if (a.kinds == 3) sums.add(2, i, d);
        });
    }

    if constexpr (kItems > 0) {
        for (int kind = 0; kind < a.kinds; ++kind) {
            for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
                for (int number = 0; number < kWidth / Sums::kPiece; ++number) {
                    float* there = partials + kind * a.columns + i * kWidth + number * Sums::kPiece;
                    *reinterpret_cast<Vector<float, Sums::kPiece>*>(there) = sums.piece(kind, i, number);
                }
            }
        }
    }
}

template <typename T>
void launch_forward(const NormForward<T>& a, cudaStream_t stream) {
    const bool is_vectorizable = megatron::is_vectorizable<T>(a.columns, a.x, a.bias, a.residual, a.weight, a.norm_bias,
                                                              a.total, a.normed);
    dispatch_width<T>(is_vectorizable, [&](auto width) {
        constexpr int kWidth = decltype(width)::value;
        const int64_t n = a.columns / kWidth;
        dispatch_items<kForwardItems>(n, [&](auto items) {
            constexpr int kItems = decltype(items)::value;
            if (a.residual == nullptr) {
                launch_rows<kItems>(layer_norm_forward<T, kWidth, kItems, false>, a.rows, n, a, stream);
            } else {
                launch_rows<kItems>(layer_norm_forward<T, kWidth, kItems, true>, a.rows, n, a, stream);
            }
        });
    });
}

// Blocks of a processor beyond which partial sums cost more than they hide.
constexpr int kThreadsPerProcessor = 1024;

template <int kItems, typename Kernel, typename T>
void launch_backward_kernel(Kernel kernel, NormBackward<T> a, int64_t n, int64_t scratch_size,
                            ColumnOutputs<T> outputs, cudaStream_t stream) {
    const int64_t sums = a.kinds * a.columns;
    const size_t shared_size = kItems > 0 ? sums * sizeof(float) : 0;
    const int64_t threads = row_threads<kItems>(n);
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_size));
    const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount);
    int64_t blocks = std::min(resident_blocks(kernel, threads, shared_size),
                              processors * divide_up(kThreadsPerProcessor, threads));
    // whole rounds over the processors, if the scratch holds one
    const int64_t most = scratch_size / sums;
    blocks = std::min(blocks, most < processors ? most : most / processors * processors);
    blocks = std::max<int64_t>(1, std::min(blocks, a.rows));
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared_size, stream>>>(a);
    launch_finish(a.partials, blocks, a.columns, a.kinds, outputs, stream);
}

template <typename T>
void launch_backward(const NormBackward<T>& a, int64_t scratch_size, ColumnOutputs<T> outputs, cudaStream_t stream) {
    const bool is_vectorizable = megatron::is_vectorizable<T>(a.columns, a.d_total, a.d_normed, a.total, a.weight,
                                                              a.d_residual, a.dx);
    const int64_t shared_limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - 1024;
    const bool is_held = a.kinds * a.columns * static_cast<int64_t>(sizeof(float)) <= shared_limit;
    dispatch_width<T>(is_vectorizable, [&](auto width) {
        constexpr int kWidth = decltype(width)::value;
        const int64_t n = a.columns / kWidth;
        if (is_held && n <= kBackwardItems * kMaxRowThreads) {
            const auto kernel = layer_norm_backward<T, kWidth, kBackwardItems>;
            launch_backward_kernel<kBackwardItems>(kernel, a, n, scratch_size, outputs, stream);
        } else {
            launch_backward_kernel<0>(layer_norm_backward<T, kWidth, 0>, a, n, scratch_size, outputs, stream);
        }
    });
}

}  // namespace megatron

extern "C" cudaError_t layer_norm(
    const void* x, const void* weight, const void* bias, void* normed, float* mean, float* rstd, float epsilon,
    int64_t rows, int64_t columns, int64_t dtype, cudaStream_t stream) {
    return megatron_dispatch(dtype, [&](auto zero) {
        using T = decltype(zero);
        megatron::launch_forward(
            megatron::NormForward<T>{static_cast<const T*>(x), nullptr, nullptr, {}, static_cast<const T*>(weight),
                                     static_cast<const T*>(bias), nullptr, static_cast<T*>(normed), mean, rstd,
                                     epsilon, rows, columns},
            stream);
    });
}

// bias or row_keys may be null: nothing added, nothing dropped.
extern "C" cudaError_t bias_dropout_residual_layer_norm(
    const void* x, const void* bias, const void* residual, const int64_t* row_keys, int64_t level, float scale,
    const void* weight, const void* norm_bias, void* total, void* normed, float* mean, float* rstd, float epsilon,
    int64_t rows, int64_t columns, int64_t dtype, cudaStream_t stream) {
    return megatron_dispatch(dtype, [&](auto zero) {
        using T = decltype(zero);
        megatron::launch_forward(
            megatron::NormForward<T>{static_cast<const T*>(x), static_cast<const T*>(bias),
                                     static_cast<const T*>(residual), {row_keys, static_cast<int>(level), scale},
                                     static_cast<const T*>(weight), static_cast<const T*>(norm_bias),
                                     static_cast<T*>(total), static_cast<T*>(normed), mean, rstd, epsilon, rows,
                                     columns},
            stream);
    });
}

// The gradient of both. d_total, row_keys (and then dx) and d_bias may be null. scratch: floats, at least one for each
// column of each sum.
extern "C" cudaError_t layer_norm_backward(
    const void* d_total, const void* d_normed, const void* total, const float* mean, const float* rstd,
    const void* weight, const int64_t* row_keys, int64_t level, float scale, void* d_residual, void* dx,
    void* d_weight, void* d_norm_bias, void* d_bias, float* scratch, int64_t scratch_size, int64_t rows,
    int64_t columns, int64_t dtype, cudaStream_t stream) {
    if (columns == 0) return cudaSuccess;
    return megatron_dispatch(dtype, [&](auto zero) {
        using T = decltype(zero);
        const megatron::NormBackward<T> a{static_cast<const T*>(d_total), static_cast<const T*>(d_normed),
                                          static_cast<const T*>(total), mean, rstd, static_cast<const T*>(weight),
                                          {row_keys, static_cast<int>(level), scale}, static_cast<T*>(d_residual),
                                          static_cast<T*>(dx), scratch, d_bias == nullptr ? 2 : 3, rows, columns};
        const megatron::ColumnOutputs<T> outputs{
            {static_cast<T*>(d_weight), static_cast<T*>(d_norm_bias), static_cast<T*>(d_bias)}};
        megatron::launch_backward(a, scratch_size, outputs, stream);
    });
}
