// A set of hashes that says "no" at once to nearly all that is not in it, and the hashes.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

inline uint64_t mix(uint64_t a) {
    a ^= a >> 32;
    a *= 0xd6e8feb86659fd93ull;
    a ^= a >> 32;
    return a;
}

inline uint64_t load(const char* place, size_t size) {
    uint64_t word = 0;
    std::memcpy(&word, place, size);
    return word;
}

// Two bits of one word of the table for each member, 32 bits of memory or more a member, so that a question is one
// load, and about one of two hundred others is taken for a member.
class Bloom {
  public:
    explicit Bloom(size_t members) {
        while ((size_t{64} << bits_) < members * 32) ++bits_;
        words_.resize(size_t{1} << bits_);
    }
    void add(uint64_t hash) { words_[hash >> (64 - bits_)] |= marks(hash); }
    bool may_hold(uint64_t hash) const { return !(marks(hash) & ~words_[hash >> (64 - bits_)]); }

  private:
    static uint64_t marks(uint64_t hash) { return uint64_t{1} << (hash & 63) | uint64_t{1} << (hash >> 6 & 63); }

    size_t bits_ = 8;
    std::vector<uint64_t> words_;
};
