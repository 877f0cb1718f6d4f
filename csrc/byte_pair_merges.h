// Byte-pair encoding of one piece of text: again and again the adjacent pair of lowest rank is merged, the leftmost of
// several (Sennrich et al., 2016). Short pieces scan all pairs for it, long ones keep them in a heap: O(n log n).

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <queue>
#include <stdexcept>
#include <utility>
#include <vector>

class Merges {
public:
    struct Merge {
        uint32_t left, right, result;
    };

    // merges in the order of their rank; where a pair comes twice, the later counts.
    Merges(const std::array<uint32_t, 256>& byte_ids, const std::vector<Merge>& merges)
        : byte_ids_(byte_ids), results_(merges.size()) {
        if (merges.size() >= kNoRank) throw std::length_error("more than four million merges");
        size_t num_slots = 16;
        while (num_slots < 2 * merges.size()) num_slots *= 2;
        pairs_.assign(num_slots, kEmpty);
        mask_ = num_slots - 1;
        for (uint32_t rank = 0; rank < merges.size(); ++rank) {
            const Merge& merge = merges[rank];
            if (std::max(merge.left, merge.right) > kMaxId) throw std::length_error("more than two million ids");
            results_[rank] = merge.result;
            const uint64_t key = key_of(merge.left, merge.right);
            size_t slot = slot_of(key);
            while (pairs_[slot] != kEmpty && (pairs_[slot] ^ key) > kNoRank) slot = (slot + 1) & mask_;
            pairs_[slot] = key | rank;
        }
        for (size_t left = 0; left < 256; ++left) {
            for (size_t right = 0; right < 256; ++right) {
                byte_ranks_[left << 8 | right] = rank(byte_ids_[left], byte_ids_[right]);
            }
        }
    }

    // Writes at most `size` ids to `ids` and gives their number.
    size_t encode(const uint8_t* p, size_t size, uint32_t* ids) const {
        for (size_t i = 0; i < size; ++i) ids[i] = byte_ids_[p[i]];
        return size <= kShort ? merge_short(p, size, ids) : merge_long(size, ids);
    }

private:
    static constexpr size_t kShort = 48;
    static constexpr int kIdBits = 21, kRankBits = 22;  // a pair and its rank are one word
    static constexpr uint32_t kMaxId = (1u << kIdBits) - 1;
    static constexpr uint32_t kNoRank = (1u << kRankBits) - 1;
    static constexpr uint64_t kEmpty = UINT64_MAX;  // its rank is kNoRank

    static uint64_t key_of(uint64_t left, uint64_t right) { return (left << kIdBits | right) << kRankBits; }

    size_t slot_of(uint64_t key) const {
        const uint64_t product = key * 0x9E3779B97F4A7C15u;
        return (product ^ product >> 32) & mask_;
    }

    uint32_t rank(uint32_t left, uint32_t right) const {
        const uint64_t key = key_of(left, right);
        size_t slot = slot_of(key);
        while ((pairs_[slot] ^ key) > kNoRank && pairs_[slot] != kEmpty) slot = (slot + 1) & mask_;
        return static_cast<uint32_t>(pairs_[slot] & kNoRank);
    }

    size_t merge_short(const uint8_t* p, size_t size, uint32_t* ids) const {
        uint32_t ranks[kShort];  // of ids[i] and ids[i + 1]
        for (size_t i = 0; i + 1 < size; ++i) ranks[i] = byte_ranks_[size_t{p[i]} << 8 | p[i + 1]];
        while (size > 1) {
            size_t best = 0;
            for (size_t i = 1; i + 1 < size; ++i) {
                if (ranks[i] < ranks[best]) best = i;
            }
            if (ranks[best] == kNoRank) break;
            ids[best] = results_[ranks[best]];
            for (size_t i = best + 1; i + 1 < size; ++i) {
                ids[i] = ids[i + 1];
                ranks[i - 1] = ranks[i];
            }
            --size;
            if (best + 1 < size) ranks[best] = rank(ids[best], ids[best + 1]);
            if (best > 0) ranks[best - 1] = rank(ids[best - 1], ids[best]);
        }
        return size;
    }

    size_t merge_long(size_t size, uint32_t* ids) const {
        struct Link {
            uint32_t previous, next, rank;  // rank of this id and the next
        };
        using Candidate = std::pair<uint32_t, uint32_t>;  // rank, place
        if (size >= UINT32_MAX) throw std::length_error("a piece of text of 4 GiB without a place to cut it");
        const auto end = static_cast<uint32_t>(size);
        std::vector<Link> links(size);
        std::vector<Candidate> first;
        for (uint32_t i = 0; i < end; ++i) {
            links[i] = {i - 1, i + 1, i + 1 < end ? rank(ids[i], ids[i + 1]) : kNoRank};
            if (links[i].rank != kNoRank) first.emplace_back(links[i].rank, i);
        }
        std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates(std::greater<>{},
                                                                                          std::move(first));
        const auto open = [&](uint32_t i) {
            const uint32_t next = links[i].next;
            links[i].rank = next < end ? rank(ids[i], ids[next]) : kNoRank;
            if (links[i].rank != kNoRank) candidates.emplace(links[i].rank, i);
        };
        while (!candidates.empty()) {
            const auto [best, i] = candidates.top();
            candidates.pop();
            if (links[i].rank != best) continue;  // merged into another meanwhile, or not what it was
            const uint32_t gone = links[i].next;
            ids[i] = results_[best];
            links[i].next = links[gone].next;
            links[gone].rank = kNoRank;
            if (links[i].next < end) links[links[i].next].previous = i;
            open(i);
            if (i > 0) open(links[i].previous);
        }
        size_t count = 0;
        for (uint32_t i = 0; i < end; i = links[i].next) ids[count++] = ids[i];
        return count;
    }

    std::array<uint32_t, 256> byte_ids_;
    std::vector<uint32_t> results_;  // by rank
    std::vector<uint64_t> pairs_;    // left, right, rank
    size_t mask_;
    std::vector<uint32_t> byte_ranks_ = std::vector<uint32_t>(1 << 16);  // of pairs of bytes, the first ones of a piece
};
