// Bias + GELU in its tanh form over [rows, columns]. With y = x + bias, s = sigmoid(2 u) and u = k (y + c y^3):
//
//   gelu(y)  = y (1 + tanh(u)) / 2 = y s
//   gelu'(y) = s + y s (1 - s) 2 k (1 + 3 c y^2)
//
// Backward computes y again from x; the gradient of the bias is the sum of dx over rows, in the same pass.
#include "column_sums.cuh"

namespace megatron {

constexpr float kGelu = 0.7978845608028654f;  // k = sqrt(2 / pi)
constexpr float kCubic = 0.044715f;           // c

__device__ inline float gelu_sigmoid(float y) {
    const float exponent = y * (-2.0f * kGelu * kLog2E - 2.0f * kGelu * kCubic * kLog2E * y * y);
    return fast_reciprocal(1.0f + fast_exp2(exponent));
}

template <typename T, int kWidth>
struct GeluForward {
    const T *x, *bias;
    T* y;
    int64_t columns;

    using Loaded = Vector<T, kWidth>;
    __device__ Loaded load(int64_t row, int64_t i) const { return megatron::load<kWidth>(x + row * columns, i); }
    __device__ void apply(const Loaded& loaded, const float (&biases)[kWidth], int64_t row, int64_t i,
                          float (&)[kWidth]) const {
        float values[kWidth];
        unpack(loaded, values);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
            values[j] += biases[j];
            values[j] *= gelu_sigmoid(values[j]);
        }
        store(y + row * columns, i, values);
    }
};

template <typename T, int kWidth>
struct GeluBackward {
    const T *dy, *x, *bias;
    T* dx;
    int64_t columns;

    struct Loaded {
        Vector<T, kWidth> dy, x;
    };
    __device__ Loaded load(int64_t row, int64_t i) const {
        return {megatron::load<kWidth>(dy + row * columns, i), megatron::load<kWidth>(x + row * columns, i)};
    }
    __device__ void apply(const Loaded& loaded, const float (&biases)[kWidth], int64_t row, int64_t i,
                          float (&sums)[kWidth]) const {
        float d[kWidth], values[kWidth];
        unpack(loaded.dy, d);
        unpack(loaded.x, values);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
            const float y = values[j] + biases[j];
            const float s = gelu_sigmoid(y);
            // s (1 - s) first: it is 0 where y^3 would overflow
            d[j] *= s + s * (1.0f - s) * y * (2.0f * kGelu + 6.0f * kGelu * kCubic * y * y);
            sums[j] += d[j];
        }
        store(dx + row * columns, i, d);
    }
};

}  // namespace megatron

// bias may be null.
extern "C" cudaError_t bias_gelu(
    const void* x, const void* bias, void* y, int64_t rows, int64_t columns, int64_t dtype, cudaStream_t stream) {
    return megatron_dispatch(dtype, [&](auto zero) {
        using T = decltype(zero);
        megatron::dispatch_width<T>(megatron::is_vectorizable<T>(columns, x, bias, y), [&](auto width) {
            constexpr int kWidth = decltype(width)::value;
            const megatron::GeluForward<T, kWidth> function{static_cast<const T*>(x), static_cast<const T*>(bias),
                                                            static_cast<T*>(y), columns};
            megatron::launch_map<T, kWidth, false>(function, rows, columns / kWidth, nullptr, 0, nullptr, stream);
        });
    });
}

// bias, and d_bias with it, may be null. scratch: floats, at least one for each column of d_bias.
extern "C" cudaError_t bias_gelu_backward(
    const void* dy, const void* x, const void* bias, void* dx, void* d_bias, float* scratch, int64_t scratch_size,
    int64_t rows, int64_t columns, int64_t dtype, cudaStream_t stream) {
    return megatron_dispatch(dtype, [&](auto zero) {
        using T = decltype(zero);
        megatron::dispatch_width<T>(megatron::is_vectorizable<T>(columns, dy, x, bias, dx), [&](auto width) {
            constexpr int kWidth = decltype(width)::value;
            const megatron::GeluBackward<T, kWidth> function{static_cast<const T*>(dy), static_cast<const T*>(x),
                                                             static_cast<const T*>(bias), static_cast<T*>(dx),
                                                             columns};
            megatron::launch_map_or_sum<T, kWidth>(function, rows, columns / kWidth, scratch, scratch_size,
                                                   static_cast<T*>(d_bias), stream);
        });
    });
}
