// What pieces of text encode to, remembered: two hash tables from bytes to ids that only ever grow, up to a bound.
//
// Source code repeats itself: of a hundred pieces, ninety-eight were seen before. Pieces of up to 15 bytes, nearly all
// of them, live in entries of half a cache line, ids included, and are compared as two words; longer ones are kept
// aside and compared byte by byte. Equal bytes always encode alike, so remembering changes nothing.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

struct Masks {
    uint64_t low[16], high[16];
};

// The bytes of two words that belong to a key, by its size.
constexpr Masks make_masks() {
    Masks masks{};
    for (size_t size = 0; size < 16; ++size) {
        for (size_t byte = 0; byte < size; ++byte) {
            (byte < 8 ? masks.low : masks.high)[size] |= uint64_t{0xFF} << 8 * (byte % 8);
        }
    }
    return masks;
}

constexpr Masks kMasks = make_masks();

// A key of 1 to 15 bytes, padded with zeros; its size is in the highest byte, so no key is zero.
struct ShortKey {
    uint64_t low, high;

    static constexpr size_t kMaxSize = 15;

    // Reads 16 bytes where the text has as many, so that no branch depends on the size.
    static ShortKey read(const uint8_t* p, size_t size, const uint8_t* end) {
        ShortKey key{0, 0};
        if (end - p >= 16) {
            std::memcpy(&key, p, 16);
        } else {
            std::memcpy(&key, p, size);
        }
        key.low &= kMasks.low[size];
        key.high = (key.high & kMasks.high[size]) | static_cast<uint64_t>(size) << 56;
        return key;
    }

    bool operator==(const ShortKey& other) const { return low == other.low && high == other.high; }

    uint64_t hash() const {
        const auto product = static_cast<unsigned __int128>(low ^ 0x9E3779B97F4A7C15u) *
                             static_cast<unsigned __int128>(high ^ 0xD1B54A32D192ED03u);
        return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
    }
};

class WordTable {
public:
    static constexpr size_t kMaxInline = 3;
    static constexpr uint32_t kElsewhere = 1u << 31;  // count of an entry whose ids are in `spilled`

    struct Entry {
        ShortKey key{0, 0};
        uint32_t ids[kMaxInline] = {0, 0, 0};  // with kElsewhere: the place in `spilled`
        uint32_t count = 0;
    };

    explicit WordTable(size_t num_words) : entries_(kMinSlots) {
        while (entries_.size() < 4 * num_words) entries_.resize(2 * entries_.size());
        mask_ = entries_.size() - 1;
    }

    void prefetch(uint64_t hash) const { __builtin_prefetch(&entries_[hash & mask_]); }

    // The entry of a key, or the empty one where it belongs.
    Entry& find(const ShortKey& key, uint64_t hash) {
        size_t slot = hash & mask_;
        while (entries_[slot].key.high != 0 && !(entries_[slot].key == key)) slot = (slot + 1) & mask_;
        return entries_[slot];
    }

    void fill(Entry& entry, const ShortKey& key, const uint32_t* ids, size_t count) {
        entry.key = key;
        entry.count = static_cast<uint32_t>(count);
        if (count <= kMaxInline) {
            std::copy_n(ids, count, entry.ids);
        } else {
            entry.count |= kElsewhere;
            entry.ids[0] = static_cast<uint32_t>(spilled_.size());
            spilled_.insert(spilled_.end(), ids, ids + count);
        }
        if (2 * ++size_ > entries_.size() && entries_.size() < kMaxSlots) grow();
    }

    const uint32_t* spilled(const Entry& entry) const { return &spilled_[entry.ids[0]]; }
    bool is_full() const { return 2 * size_ > entries_.size(); }

private:
    static constexpr size_t kMinSlots = 16;
    static constexpr size_t kMaxSlots = size_t{1} << 21;  // 64 MiB

    void grow() {
        std::vector<Entry> old(2 * entries_.size());
        old.swap(entries_);
        mask_ = entries_.size() - 1;
        for (const Entry& entry : old) {
            if (entry.key.high != 0) find(entry.key, entry.key.hash()) = entry;
        }
    }

    std::vector<Entry> entries_;
    std::vector<uint32_t> spilled_;
    size_t mask_, size_ = 0;
};

// The same for keys of any size up to kMaxSize.
class LongWordTable {
public:
    static constexpr size_t kMaxSize = 1024;

    struct Entry {
        uint64_t hash = 0;
        uint32_t key = 0, key_size = 0;  // where in bytes_; a size of 0 is an empty entry
        uint32_t ids = 0, count = 0;     // where in ids_
    };

    LongWordTable() : entries_(1 << 14), mask_(entries_.size() - 1) {}

    static uint64_t hash(const uint8_t* p, size_t size) {
        uint64_t result = size;
        for (; size >= 8; p += 8, size -= 8) {
            uint64_t word;
            std::memcpy(&word, p, 8);
            result = mix(result ^ word);
        }
        uint64_t word = 0;
        std::memcpy(&word, p, size);
        return mix(result ^ word);
    }

    void prefetch(uint64_t hash) const { __builtin_prefetch(&entries_[hash & mask_]); }

    // The entry of a key, or the empty one where it belongs.
    Entry& find(const uint8_t* p, size_t size, uint64_t hash) {
        size_t slot = hash & mask_;
        while (entries_[slot].key_size != 0) {
            const Entry& entry = entries_[slot];
            if (entry.hash == hash && entry.key_size == size && !std::memcmp(&bytes_[entry.key], p, size)) break;
            slot = (slot + 1) & mask_;
        }
        return entries_[slot];
    }

    void fill(Entry& entry, const uint8_t* p, size_t size, uint64_t hash, const uint32_t* ids, size_t count) {
        entry = {hash, static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(size),
                 static_cast<uint32_t>(ids_.size()), static_cast<uint32_t>(count)};
        bytes_.insert(bytes_.end(), p, p + size);
        ids_.insert(ids_.end(), ids, ids + count);
        if (2 * ++size_ > entries_.size()) grow();
    }

    const uint32_t* ids(const Entry& entry) const { return &ids_[entry.ids]; }
    bool is_full() const { return bytes_.size() > kMaxBytes; }

private:
    static constexpr size_t kMaxBytes = size_t{1} << 25;

    static uint64_t mix(uint64_t word) {
        const auto product = static_cast<unsigned __int128>(word ^ 0x9E3779B97F4A7C15u) * 0xD1B54A32D192ED03u;
        return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
    }

    void grow() {
        std::vector<Entry> old(2 * entries_.size());
        old.swap(entries_);
        mask_ = entries_.size() - 1;
        for (const Entry& entry : old) {
            if (entry.key_size == 0) continue;
            size_t slot = entry.hash & mask_;
            while (entries_[slot].key_size != 0) slot = (slot + 1) & mask_;
            entries_[slot] = entry;
        }
    }

    std::vector<Entry> entries_;
    std::vector<uint8_t> bytes_;
    std::vector<uint32_t> ids_;
    size_t mask_, size_ = 0;
};
