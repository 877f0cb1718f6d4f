// residual + dropout(x + bias) over [rows, columns], and its gradient:
//
//   dx     = dropout'(dy)
//   d_bias = sum of dx over rows, in the same pass
//
// The gradient of the residual is dy itself, and so is dx where nothing is dropped.
#include "column_sums.cuh"
#include "dropout.cuh"

namespace megatron {

template <typename T, int kWidth>
struct SumForward {
    const T *x, *bias, *residual;
    Dropout dropout;
    T* total;
    int64_t columns;

    struct Loaded {
        Vector<T, kWidth> x, residual;
        int64_t key;
    };
    __device__ Loaded load(int64_t row, int64_t i) const {
        return {megatron::load<kWidth>(x + row * columns, i), megatron::load<kWidth>(residual + row * columns, i),
                dropout.is_on() ? dropout.row_keys[row] : 0};
    }
    __device__ void apply(const Loaded& loaded, const float (&biases)[kWidth], int64_t row, int64_t i,
                          float (&)[kWidth]) const {
        float values[kWidth], other[kWidth];
        unpack(loaded.x, values);
        unpack(loaded.residual, other);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) values[j] += biases[j];
        if (dropout.is_on()) dropout.apply(values, loaded.key, i);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) values[j] += other[j];
        store(total + row * columns, i, values);
    }
};

template <typename T, int kWidth>
struct SumBackward {
    const T *dy, *bias;  // bias: not used, null
    Dropout dropout;
    T* dx;  // null where nothing is dropped
    int64_t columns;

    struct Loaded {
        Vector<T, kWidth> dy;
        int64_t key;
    };
    __device__ Loaded load(int64_t row, int64_t i) const {
        return {megatron::load<kWidth>(dy + row * columns, i), dropout.is_on() ? dropout.row_keys[row] : 0};
    }
    __device__ void apply(const Loaded& loaded, const float (&)[kWidth], int64_t row, int64_t i,
                          float (&sums)[kWidth]) const {
        float d[kWidth];
        unpack(loaded.dy, d);
        if (dropout.is_on()) {
            dropout.apply(d, loaded.key, i);
            store(dx + row * columns, i, d);
        }
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sums[j] += d[j];
    }
};

}  // namespace megatron

// bias or row_keys may be null: nothing added, nothing dropped.
extern "C" cudaError_t bias_dropout_residual(
    const void* x, const void* bias, const void* residual, const int64_t* row_keys, int64_t level, float scale,
    void* total, int64_t rows, int64_t columns, int64_t dtype, cudaStream_t stream) {
    return megatron_dispatch(dtype, [&](auto zero) {
        using T = decltype(zero);
        megatron::dispatch_width<T>(megatron::is_vectorizable<T>(columns, x, bias, residual, total), [&](auto width) {
            constexpr int kWidth = decltype(width)::value;
            const megatron::SumForward<T, kWidth> function{static_cast<const T*>(x), static_cast<const T*>(bias),
                                                           static_cast<const T*>(residual),
                                                           {row_keys, static_cast<int>(level), scale},
                                                           static_cast<T*>(total), columns};
            megatron::launch_map<T, kWidth, false>(function, rows, columns / kWidth, nullptr, 0, nullptr, stream);
        });
    });
}

// row_keys and dx are null together; d_bias may be null. scratch: floats, at least one for each column of d_bias.
extern "C" cudaError_t bias_dropout_residual_backward(
    const void* dy, const int64_t* row_keys, int64_t level, float scale, void* dx, void* d_bias, float* scratch,
    int64_t scratch_size, int64_t rows, int64_t columns, int64_t dtype, cudaStream_t stream) {
    return megatron_dispatch(dtype, [&](auto zero) {
        using T = decltype(zero);
        megatron::dispatch_width<T>(megatron::is_vectorizable<T>(columns, dy, dx), [&](auto width) {
            constexpr int kWidth = decltype(width)::value;
            const megatron::SumBackward<T, kWidth> function{static_cast<const T*>(dy), nullptr,
                                                            {row_keys, static_cast<int>(level), scale},
                                                            static_cast<T*>(dx), columns};
            megatron::launch_map_or_sum<T, kWidth>(function, rows, columns / kWidth, scratch, scratch_size,
                                                   static_cast<T*>(d_bias), stream);
        });
    });
}
