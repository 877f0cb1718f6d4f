// A stage of a model for prediction.cpp, inside its namespace: tokens through the embedding, a run of layers and the LM
// head. Each layer is x + attention(norm(x)), then x + MLP(norm(x)):
//
//     [q, k, v] = W_1 norm(x) + b_1            queries of n heads, keys and values of g, interleaved by head
//     x += W_2 softmax(q K^T / sqrt(d)) V + b_2     K and V: a row's cells of a cache, to which k and v are added
//     x += W_4 gelu(W_3 norm(x) + b_3) + b_4
//
// without a tensor in between. Threads wait for each other after each of these steps. All memory is there before they
// start: what is thrown among them would end the process.

struct Sizes {
    size_t hidden, heads, groups, head_dim, ffn;
    size_t window;  // tokens that one sees, itself included; 0: all
    float epsilon;
};

// Addresses, 0 where there is none.
struct Layer {
    const float *norm_1, *norm_1_bias, *qkv, *qkv_bias, *dense, *dense_bias;
    const float *norm_2, *norm_2_bias, *up, *up_bias, *down, *down_bias;
};

using Embedding = std::tuple<Address, size_t, Address, size_t>;  // words [ids, hidden], ids, positions, their number
using Head = std::tuple<Address, Address, Address, size_t>;      // norm and its bias, weight, outputs
// Keys and values of each layer, rows, and capacity, tokens of each; as `Attention` reads them.
using Cache = std::tuple<std::vector<Address>, std::vector<Address>, size_t, size_t>;
using Rotation = std::pair<Address, Address>;  // cos and sin [tokens, head_dim / 2]

// Tokens that go through a layer together.
struct Batch {
    float* x;  // [tokens, hidden]
    size_t tokens;
    const int64_t *rows, *positions;  // in the cache
    const float *cos, *sin;
};

class Stage {
  public:
    Stage(const Sizes& sizes, bool is_bf16, const std::string& kind, const std::vector<std::vector<Address>>& layers,
          const Embedding& embedding, const Head& head)
        : kernels_(kernels_of(kind)), is_bf16_(is_bf16), s_(sizes), embedding_(embedding), head_(head) {
        if (s_.heads == 0 || s_.groups == 0 || s_.heads % s_.groups) {
            throw std::invalid_argument("prediction: heads are no multiple of groups");
        }
        for (const std::vector<Address>& w : layers) {
            if (w.size() != 12) throw std::invalid_argument("prediction: a layer has 12 weights and biases");
            layers_.push_back({at(w[0]), at(w[1]), at(w[2]), at(w[3]), at(w[4]), at(w[5]), at(w[6]), at(w[7]), at(w[8]),
                               at(w[9]), at(w[10]), at(w[11])});
        }
    }

    // tokens: int64 ids where there is an embedding, else hidden states [num_tokens, hidden]; of each the row of the cache
    // and its position, up to which the row is filled by now or by this call. wanted: the tokens for which a head gives
    // out [wanted, outputs]; none: all. Without a head out is [num_tokens, hidden].
    void run(Address tokens, size_t num_tokens, Address rows, Address positions, const Cache& cache, const Rotation& rotation,
             const std::optional<std::vector<size_t>>& wanted, Address out, int threads) {
        const bool has_head = std::get<2>(head_) != 0, skips = has_head && wanted;
        Batch all{has_head ? nullptr : at<float>(out), num_tokens, at<const int64_t>(rows), at<const int64_t>(positions),
                  at(rotation.first), at(rotation.second)};
        check(all, at<const int64_t>(tokens), cache, wanted);
        reserve(all, std::max(threads, 1));
        const Batch chosen = skips ? choose(all, *wanted) : all;
        py::gil_scoped_release release;
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            Batch batch = all;
            read(tokens, batch);
            for (size_t i = 0; i < layers_.size(); ++i) {
                wait_for_others();
                const Attention attention = attention_of(cache, i);
                if (skips && i + 1 == layers_.size()) {
                    // of the last layer, tokens after which none is asked for leave only their keys and values
                    project(layers_[i], batch, attention, s_.heads * s_.head_dim / kernels_.panel);
                    gather(all, *wanted, chosen);
                    batch = chosen;
                    wait_for_others();
                }
                project(layers_[i], batch, attention, 0);
                attend(layers_[i], batch, attention, std::max(threads, 1));
                wait_for_others();
                feed_forward(layers_[i], batch);
            }
            wait_for_others();
            if (has_head) predict(batch, at<float>(out));
        }
    }

  private:
    size_t qkv_size() const { return (s_.heads + 2 * s_.groups) * s_.head_dim; }
    size_t context_size() const { return s_.heads * s_.head_dim; }
    float* scratch() { return scratch_.data() + thread_number() * scratch_.size() / num_scratches_; }

    void check(const Batch& b, const int64_t* ids, const Cache& cache, const std::optional<std::vector<size_t>>& wanted) const {
        const auto& [keys, values, num_rows, capacity] = cache;
        const auto& [words, num_ids, places, num_places] = embedding_;
        bool is_right = keys.size() == layers_.size() && values.size() == layers_.size();
        const auto is_below = [](int64_t x, size_t end) { return x >= 0 && static_cast<size_t>(x) < end; };
        for (size_t i = 0; i < b.tokens; ++i) {
            is_right &= is_below(b.rows[i], num_rows) && is_below(b.positions[i], capacity);
            is_right &= !words || is_below(ids[i], num_ids);
            is_right &= !places || is_below(b.positions[i], num_places);
        }
        for (size_t i = 0; wanted && i < wanted->size(); ++i) is_right &= (*wanted)[i] < b.tokens;
        if (!is_right) throw std::out_of_range("prediction: tokens are not within the cache and the embedding");
    }

    void reserve(Batch& all, size_t threads) {
        const auto grow = [](std::vector<float>& buffer, size_t size) {
            if (buffer.size() < size) buffer.resize(size);
        };
        if (!all.x) {
            grow(x_, all.tokens * s_.hidden);
            all.x = x_.data();
        }
        grow(normed_, all.tokens * padded(s_.hidden));
        grow(qkv_, all.tokens * padded(qkv_size()));
        grow(context_, all.tokens * padded(context_size()));
        grow(active_, all.tokens * padded(s_.ffn));
        const size_t inputs = std::max({s_.hidden, context_size(), s_.ffn});
        const int64_t last = all.tokens ? *std::max_element(all.positions, all.positions + all.tokens) : 0;
        num_scratches_ = std::max(num_scratches_, threads);
        grow(scratch_, num_scratches_ * ceil_div(scratch_size(inputs, last + 1), 16) * 16);
    }

    // Where the wanted tokens come together, with all of theirs but their hidden states.
    Batch choose(const Batch& all, const std::vector<size_t>& wanted) {
        const size_t count = wanted.size(), half = all.cos ? s_.head_dim / 2 : 0;
        chosen_x_.resize(std::max(chosen_x_.size(), count * (s_.hidden + 2 * half)));
        chosen_places_.resize(2 * count);
        Batch chosen{chosen_x_.data(), count, chosen_places_.data(), chosen_places_.data() + count, nullptr, nullptr};
        float *cos = chosen.x + count * s_.hidden, *sin = cos + count * half;
        if (half) chosen.cos = cos, chosen.sin = sin;
        for (size_t i = 0; i < count; ++i) {
            chosen_places_[i] = all.rows[wanted[i]];
            chosen_places_[count + i] = all.positions[wanted[i]];
            std::copy_n(all.cos + wanted[i] * half, half, cos + i * half);
            std::copy_n(all.sin + wanted[i] * half, half, sin + i * half);
        }
        return chosen;
    }

    void gather(const Batch& all, const std::vector<size_t>& wanted, const Batch& chosen) const {
        const auto [begin, end] = share(chosen.tokens);
        for (size_t i = begin; i < end; ++i) std::copy_n(all.x + wanted[i] * s_.hidden, s_.hidden, chosen.x + i * s_.hidden);
    }

    Attention attention_of(const Cache& cache, size_t layer) const {
        const auto& [keys, values, num_rows, capacity] = cache;
        return {qkv_.data(), at(keys[layer]), at(values[layer]), nullptr, nullptr, nullptr, padded(qkv_size()),
                padded(context_size()), s_.groups, s_.head_dim, capacity, s_.window == 0 ? SIZE_MAX : s_.window,
                1.0f / std::sqrt(static_cast<float>(s_.head_dim))};
    }

    // Embed ids, or take hidden states.
    void read(Address tokens, const Batch& b) const {
        const auto& [words, num_ids, places, num_places] = embedding_;
        const auto [begin, end] = share(b.tokens);
        for (size_t t = begin; t < end; ++t) {
            float* x = b.x + t * s_.hidden;
            std::copy_n(words ? at(words) + at<const int64_t>(tokens)[t] * s_.hidden : at(tokens) + t * s_.hidden, s_.hidden, x);
            for (size_t i = 0; places && i < s_.hidden; ++i) x[i] += at(places)[b.positions[t] * s_.hidden + i];
        }
    }

    void normalize(const Batch& b, const float* weight, const float* bias) {
        const auto [begin, end] = share(b.tokens);
        for (size_t t = begin; t < end; ++t) {
            kernels_.normalize(b.x + t * s_.hidden, weight, bias, s_.epsilon, s_.hidden, &normed_[t * padded(s_.hidden)]);
        }
    }

    // x [tokens, in_size] of one of the buffers above, times a weight.
    void multiply(const std::vector<float>& x, size_t tokens, size_t in_size, const float* weight, const float* bias, float* out,
                  size_t out_size, size_t out_stride, bool has_gelu, bool adds, size_t first_panel = 0) {
        const Product p{x.data(), weight, bias, out, tokens, in_size, out_size, padded(in_size), out_stride, has_gelu, adds};
        multiply_share(kernels_, p, is_bf16_, scratch(), first_panel);
    }

    void turn(float* head, const float* cos, const float* sin) const {
        const size_t half = s_.head_dim / 2;
        for (size_t i = 0; i < half; ++i) {
            const float first = head[i], second = head[half + i];
            head[i] = first * cos[i] - second * sin[i];
            head[half + i] = second * cos[i] + first * sin[i];
        }
    }

    // Compute queries, keys and values, or those from a panel on, turn queries and keys, and add keys and values to the cache.
    void project(const Layer& layer, const Batch& b, const Attention& a, size_t first_panel) {
        normalize(b, layer.norm_1, layer.norm_1_bias);
        wait_for_others();
        multiply(normed_, b.tokens, s_.hidden, layer.qkv, layer.qkv_bias, qkv_.data(), qkv_size(), padded(qkv_size()), false, false,
                 first_panel);
        wait_for_others();
        const size_t d = s_.head_dim;
        const auto [begin, end] = share(b.tokens);
        for (size_t t = begin; t < end; ++t) {
            float* queries = &qkv_[t * padded(qkv_size())];
            float* pairs = queries + s_.heads * d;  // [groups, (key, value), d]
            if (b.cos) {
                const float *cos = b.cos + t * (d / 2), *sin = b.sin + t * (d / 2);
                for (size_t h = 0; h < s_.heads; ++h) turn(queries + h * d, cos, sin);
                for (size_t g = 0; g < s_.groups; ++g) turn(pairs + 2 * g * d, cos, sin);
            }
            for (size_t g = 0; g < s_.groups; ++g) {
                const float *key = pairs + 2 * g * d, *value = key + d;
                const size_t cells = b.rows[t] * s_.groups + g, panel = kernels_.panel, place = b.positions[t];
                float* keys = const_cast<float*>(a.keys) + (cells * ceil_div(a.capacity, panel) + place / panel) * d * panel;
                for (size_t i = 0; i < d; ++i) keys[i * panel + place % panel] = key[i];
                std::copy_n(value, d, const_cast<float*>(a.values) + (cells * a.capacity + place) * d);
            }
        }
        wait_for_others();
    }

    void attend(const Layer& layer, const Batch& b, Attention a, size_t threads) {
        a.rows = b.rows, a.positions = b.positions, a.out = context_.data();
        attend_share(kernels_, a, b.tokens, s_.heads, threads, scratch());
        wait_for_others();
        multiply(context_, b.tokens, context_size(), layer.dense, layer.dense_bias, b.x, s_.hidden, s_.hidden, false, true);
    }

    void feed_forward(const Layer& layer, const Batch& b) {
        normalize(b, layer.norm_2, layer.norm_2_bias);
        wait_for_others();
        multiply(normed_, b.tokens, s_.hidden, layer.up, layer.up_bias, active_.data(), s_.ffn, padded(s_.ffn), true, false);
        wait_for_others();
        multiply(active_, b.tokens, s_.ffn, layer.down, layer.down_bias, b.x, s_.hidden, s_.hidden, false, true);
    }

    void predict(const Batch& b, float* out) {
        const auto& [norm, norm_bias, weight, out_size] = head_;
        normalize(b, at(norm), at(norm_bias));
        wait_for_others();
        multiply(normed_, b.tokens, s_.hidden, at(weight), nullptr, out, out_size, out_size, false, false);
    }

    const Kernels& kernels_;
    bool is_bf16_;
    Sizes s_;
    std::vector<Layer> layers_;
    Embedding embedding_;
    Head head_;
    std::vector<float> x_, normed_, qkv_, context_, active_, chosen_x_, scratch_;
    std::vector<int64_t> chosen_places_;
    size_t num_scratches_ = 1;
};
