// Python module megatron.data._helpers: the inner loops of megatron/data that Python is too slow for.
//
// blend_block: which source gives which sample, for one block of a blend of D sources.
//
// Source d has the whole-number weight b_d, and Q is their sum. Wanted is an order in which, after any number t of
// samples, source d has given floor(b_d t / Q) or ceil(b_d t / Q) of them: less than one away from its share, for
// ever. That is a schedule of unit jobs on one machine (Baruah et al., "Proportionate progress", 1996): job k of
// source d may run in the slots
//
//     release = floor(k Q / b_d)   to   deadline = ceil((k + 1) Q / b_d) - 1,
//
// and taking the released job of earliest deadline meets all of them. That rule knows slot t only after all before
// it; to start at any block, counts_at gives the counts at a block's start in closed form, so chosen that a schedule
// leads up to them and one leads on from them. With f_d the fractional part of b_d t / Q, the m = sum of f_d sources
// to be rounded up must satisfy
//
//     by deadline of the open job: every prefix of the sources holds at least floor(sum of its f) of the m  (leads on)
//     by release of the open job:  the same                                                             (leads up)
//
// (Hall's condition for the slots after t, and before t.) A choice for both exists, for f itself is a fractional one
// and two chains of prefixes give a totally unimodular system. Those that satisfy the first are the bases of a
// matroid, and its basis of least rank by the second order is least in every place, so it satisfies the second, too.
// Both ends of a block may be chosen apart if every source has a deadline in it: a block is at least Q / b_d long.
//
// All numbers are exact: Q and t are below 2^62, products are 128 bits wide.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>
#include <queue>
#include <stdexcept>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace {

using Wide = unsigned __int128;
constexpr uint64_t kLimit = uint64_t{1} << 62;

struct Blend {
    std::vector<uint64_t> weights;
    uint64_t sum = 0;

    uint64_t release(size_t d, uint64_t k) const {
        return static_cast<uint64_t>(Wide(k) * sum / weights[d]);
    }
    uint64_t deadline(size_t d, uint64_t k) const {
        return static_cast<uint64_t>((Wide(k + 1) * sum + weights[d] - 1) / weights[d]) - 1;
    }
};

// For each candidate: the number of the first of the m places it may take, when sources are ordered by key.
std::vector<uint64_t> first_places(const std::vector<uint64_t>& key,
                                   const std::vector<uint64_t>& fractions, uint64_t sum) {
    std::vector<size_t> order(key.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return key[a] < key[b]; });
    std::vector<uint64_t> places(key.size());
    Wide before = 0;
    for (size_t i : order) {
        places[i] = static_cast<uint64_t>(before / sum);
        before += fractions[i];
    }
    return places;
}

// How many of the first t samples each source gives.
std::vector<uint64_t> counts_at(const Blend& blend, uint64_t t) {
    std::vector<uint64_t> counts(blend.weights.size());
    std::vector<size_t> candidates;
    std::vector<uint64_t> fractions, deadlines, releases;
    Wide total = 0;
    for (size_t d = 0; d < counts.size(); ++d) {
        const Wide share = Wide(blend.weights[d]) * t;
        counts[d] = static_cast<uint64_t>(share / blend.sum);
        const uint64_t fraction = static_cast<uint64_t>(share % blend.sum);
        if (fraction == 0) continue;
        candidates.push_back(d);
        fractions.push_back(fraction);
        deadlines.push_back(blend.deadline(d, counts[d]));
        releases.push_back(blend.release(d, counts[d]));
        total += fraction;
    }
    const auto leads_on = first_places(deadlines, fractions, blend.sum);
    const auto leads_up = first_places(releases, fractions, blend.sum);
    const uint64_t num_up = static_cast<uint64_t>(total / blend.sum);
    std::vector<bool> is_up(candidates.size(), false);
    for (uint64_t place = 0; place < num_up; ++place) {
        size_t best = candidates.size();
        for (size_t i = 0; i < candidates.size(); ++i) {
            if (is_up[i] || leads_on[i] > place) continue;
            if (best == candidates.size() || leads_up[i] < leads_up[best]) best = i;
        }
        if (best == candidates.size()) throw std::logic_error("blend: no source to round up");
        is_up[best] = true;
        ++counts[candidates[best]];
    }
    return counts;
}

// The schedule of `size` slots from slot `start` on: the released job of earliest deadline, of equal ones the first
// source's. Each source has one open job, which waits for its release in one heap and for its turn in another.
void fill_block(const Blend& blend, uint64_t start, uint64_t size, uint16_t* sources,
                int64_t* indices) {
    using Job = std::pair<uint64_t, size_t>;  // slot, source
    using Heap = std::priority_queue<Job, std::vector<Job>, std::greater<>>;
    std::vector<uint64_t> next = counts_at(blend, start);
    const std::vector<uint64_t> end = counts_at(blend, start + size);
    const uint64_t last = start + size - 1;
    Heap by_release, by_deadline;
    const auto open = [&](size_t d) {
        if (next[d] < end[d]) by_release.emplace(blend.release(d, next[d]), d);
    };
    for (size_t d = 0; d < next.size(); ++d) open(d);
    for (uint64_t slot = start; slot <= last; ++slot) {
        while (!by_release.empty() && by_release.top().first <= slot) {
            const size_t d = by_release.top().second;
            by_release.pop();
            by_deadline.emplace(std::min(blend.deadline(d, next[d]), last), d);
        }
        if (by_deadline.empty() || by_deadline.top().first < slot) throw std::logic_error("blend: a deadline is missed");
        const size_t best = by_deadline.top().second;
        by_deadline.pop();
        sources[slot - start] = static_cast<uint16_t>(best);
        indices[slot - start] = static_cast<int64_t>(next[best]++);
        open(best);
    }
}

Blend make_blend(const std::vector<uint64_t>& weights) {
    Blend blend{weights, 0};
    if (weights.empty() || weights.size() > 65536) throw std::invalid_argument("blend: 1 to 65536 sources");
    for (uint64_t weight : weights) {
        if (weight == 0 || weight >= kLimit) throw std::invalid_argument("blend: a weight is out of range");
        blend.sum += weight;
        if (blend.sum > kLimit) throw std::invalid_argument("blend: the weights sum to more than 2^62");
    }
    return blend;
}

py::tuple blend_block(const std::vector<uint64_t>& weights, uint64_t start, uint64_t size) {
    const Blend blend = make_blend(weights);
    if (size == 0 || size >= kLimit || start % size != 0 || start >= kLimit - size) {
        throw std::invalid_argument("blend: no such block");
    }
    for (uint64_t weight : weights) {
        if (Wide(weight) * size < blend.sum) throw std::invalid_argument("blend: the block is too short");
    }
    py::array_t<uint16_t> sources(static_cast<py::ssize_t>(size));
    py::array_t<int64_t> indices(static_cast<py::ssize_t>(size));
    fill_block(blend, start, size, sources.mutable_data(), indices.mutable_data());
    return py::make_tuple(sources, indices);
}

std::vector<uint64_t> blend_counts(const std::vector<uint64_t>& weights, uint64_t t) {
    if (t >= kLimit) throw std::invalid_argument("blend: no such sample");
    return counts_at(make_blend(weights), t);
}

}  // namespace

PYBIND11_MODULE(_helpers, module) {
    module.doc() = "Inner loops of megatron.data.";
    module.def("blend_block", &blend_block, py::arg("weights"), py::arg("start"), py::arg("size"),
               "Give (source uint16 [size], index within it int64 [size]) of samples start to start + size,\n"
               "where start is a multiple of size and size at least the sum of the weights over each of them.");
    module.def("blend_counts", &blend_counts, py::arg("weights"), py::arg("start"),
               "Give how many of the samples before a block's start each source gives.");
}
