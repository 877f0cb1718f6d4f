// AdamW (arXiv 1711.05101) of all shards in one pass over weights, gradients and moments; arithmetic in fp32.
//
//   g <- factor g                       p <- p - lr decay p
//   m <- b1 m + (1 - b1) g              v <- b2 v + (1 - b2) g^2
//   p <- p - lr / (1 - b1^t)  m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//
// p, g fp32; m, v fp32 or bf16, rounded to nearest when stored; g is not written. The factor and the number of steps t
// lie on the device. Where the factor is not finite nothing is written and t stays.
#include "multi_tensor.cuh"

#include <climits>

namespace {

using namespace megatron;

constexpr int kThreads = 256;
constexpr int kWidth = 4;    // elements that a thread takes as one: 16 bytes of fp32
constexpr int kVectors = 2;  // that it has under way at once

// What depends on the step and the factor; one thread works it out, in fp64, for all.
struct Step {
    float is_skipped, factor, step_size, root;  // root: sqrt(1 - b2^t)
};

struct Rates {
    float beta1, rest1, beta2, rest2, epsilon;  // rest: 1 - beta, rounded once
};

__global__ void begin(Step* step, float* num_steps, const float* factor, double learning_rate, double beta1,
                      double beta2) {
    const bool is_finite = isfinite(*factor);
    const float count = is_finite ? *num_steps + 1.f : *num_steps;
    *num_steps = count;
    *step = {is_finite ? 0.f : 1.f, *factor, static_cast<float>(learning_rate / (1.0 - pow(beta1, double(count)))),
             static_cast<float>(sqrt(1.0 - pow(beta2, double(count))))};
}

// One element: p, m and v in place.
__device__ inline void update(float& p, float g, float& m, float& v, float decay, const Step& step, const Rates& r) {
    g *= step.factor;
    p = fmaf(-decay, p, p);
    m = fmaf(r.beta1, m, r.rest1 * g);
    v = fmaf(r.beta2, v, r.rest2 * g * g);
    p -= step.step_size * m / (sqrtf(v) / step.root + r.epsilon);
}

template <typename M, typename V>
__global__ void __launch_bounds__(kThreads)
    update_chunk(Table table, const Step* step_address, Rates rates) {
    const Step step = *step_address;
    if (step.is_skipped != 0.f) return;
    const Chunk chunk = table.find(blockIdx.x);
    const float decay = static_cast<float>(chunk.number());
    auto* p = chunk.address<float>(0);
    const auto* g = chunk.address<const float>(1);
    auto* m = chunk.address<M>(2);
    auto* v = chunk.address<V>(3);
    const bool fits = is_aligned<float, kWidth>(p) && is_aligned<float, kWidth>(g) && is_aligned<M, kWidth>(m) &&
                      is_aligned<V, kWidth>(v);
    const int64_t num_vectors = fits ? chunk.size / kWidth : 0;
    auto* ps = reinterpret_cast<Vector<float, kWidth>*>(p);
    const auto* gs = reinterpret_cast<const Vector<float, kWidth>*>(g);
    auto* ms = reinterpret_cast<Vector<M, kWidth>*>(m);
    auto* vs = reinterpret_cast<Vector<V, kWidth>*>(v);
    for (int64_t first = threadIdx.x; first < num_vectors; first += kVectors * kThreads) {
        Vector<float, kWidth> weights[kVectors], gradients[kVectors];
        Vector<M, kWidth> means[kVectors];
        Vector<V, kWidth> squares[kVectors];
#pragma unroll
        for (int j = 0; j < kVectors; ++j) {
            const int64_t i = first + j * kThreads;
            if (i >= num_vectors) break;
            weights[j] = ps[i];
            gradients[j] = gs[i];
            means[j] = ms[i];
            squares[j] = vs[i];
        }
#pragma unroll
        for (int j = 0; j < kVectors; ++j) {
            const int64_t i = first + j * kThreads;
            if (i >= num_vectors) break;
#pragma unroll
            for (int k = 0; k < kWidth; ++k) {
                float mean = to_float(means[j].values[k]), square = to_float(squares[j].values[k]);
                update(weights[j].values[k], gradients[j].values[k], mean, square, decay, step, rates);
                means[j].values[k] = from_float<M>(mean);
                squares[j].values[k] = from_float<V>(square);
            }
            ps[i] = weights[j];
            ms[i] = means[j];
            vs[i] = squares[j];
        }
    }
    // What no vector holds: the end of a tensor, or all of one that starts between 16-byte boundaries.
    for (int64_t i = num_vectors * kWidth + threadIdx.x; i < chunk.size; i += kThreads) {
        float weight = p[i], mean = to_float(m[i]), square = to_float(v[i]);
        update(weight, g[i], mean, square, decay, step, rates);
        p[i] = weight;
        m[i] = from_float<M>(mean);
        v[i] = from_float<V>(square);
    }
}

}  // namespace

// table: lists of p, g, m, v; its own number of a tensor is lr * decay. step: 4 floats of scratch.
extern "C" cudaError_t adamw(const int64_t* rows, int64_t num_tensors, int64_t chunk_size, int64_t num_chunks,
                             float* step, float* num_steps, const float* factor, double learning_rate, double beta1,
                             double beta2, double epsilon, int64_t mean_dtype, int64_t square_dtype,
                             cudaStream_t stream) {
    if (num_chunks > INT_MAX) return cudaErrorInvalidValue;
    begin<<<1, 1, 0, stream>>>(reinterpret_cast<Step*>(step), num_steps, factor, learning_rate, beta1, beta2);
    if (num_chunks == 0) return cudaGetLastError();
    const Table table{rows, num_tensors, chunk_size};
    const Rates rates{static_cast<float>(beta1), static_cast<float>(1.0 - beta1), static_cast<float>(beta2),
                      static_cast<float>(1.0 - beta2), static_cast<float>(epsilon)};
    const auto launch = [&](auto kernel) {
        kernel<<<num_chunks, kThreads, 0, stream>>>(table, reinterpret_cast<const Step*>(step), rates);
        return cudaGetLastError();
    };
    using BF16 = __nv_bfloat16;
    if (mean_dtype == kFloat32 && square_dtype == kFloat32) return launch(update_chunk<float, float>);
    if (mean_dtype == kFloat32 && square_dtype == kBFloat16) return launch(update_chunk<float, BF16>);
    if (mean_dtype == kBFloat16 && square_dtype == kFloat32) return launch(update_chunk<BF16, float>);
    if (mean_dtype == kBFloat16 && square_dtype == kBFloat16) return launch(update_chunk<BF16, BF16>);
    return cudaErrorInvalidValue;
}
