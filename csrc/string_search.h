// Many strings looked for in one pass, in a text as it is or without its white space and comments.
//
// Of each string eight windows of 16 bytes, each a byte after the other, are remembered by their hash (of short strings
// fewer and smaller ones). Wherever the string stands, one of them begins at a multiple of eight: only there is the text
// looked at, and a Bloom filter answers for nearly all of these places. The time does not grow with the number of strings.

#pragma once

#include <algorithm>
#include <array>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "bloom.h"
#include "source_text.h"

// A table, since comparisons would take longer than all else that is done with a byte.
struct Shown {
    uint8_t is[256];
};

constexpr Shown make_shown() {
    Shown shown{};
    for (int c = 0; c < 256; ++c) shown.is[c] = !is_space(c);
    return shown;
}

constexpr Shown kShown = make_shown();

// Copies what is no white space of a stretch, and gives the end of the copy. Writes a byte behind it at most.
inline char* copy_shown(View stretch, char* out) {
    for (const char c : stretch) {
        *out = c;
        out += kShown.is[static_cast<uint8_t>(c)];
    }
    return out;
}

// A text without white space and comments, its ASCII letters in lower case.
inline std::string normalised(View text, bool hash, bool slash) {
    std::string result(text.size() + 1, '\0');
    char* end = result.data();
    each_stretch(text, hash, slash, [&](View stretch) { end = copy_shown(stretch, end); });
    for (char* c = result.data(); c < end; ++c) *c = lower(*c);
    result.resize(end - result.data());
    return result;
}

// Where the bytes at sorted places of the normalised text stand in the text as it was.
inline std::vector<size_t> places_before(View text, bool hash, bool slash, const std::vector<size_t>& shown) {
    std::vector<size_t> places;
    size_t count = 0;
    each_stretch(text, hash, slash, [&](View stretch) {
        for (const char& c : stretch) {
            if (is_space(c)) continue;
            while (places.size() < shown.size() && shown[places.size()] == count) places.push_back(&c - text.data());
            ++count;
        }
    });
    return places;
}

// The windows of some strings, all of one size, as many of each as the stride: the text is looked at every so many bytes.
class Windows {
  public:
    struct Window {
        uint32_t number;
        size_t offset;
    };

    Windows(size_t size, size_t stride, const std::vector<std::string>& patterns, const std::vector<uint32_t>& numbers)
        : size_(size), stride_(stride), bloom_(numbers.size() * stride) {
        for (uint32_t number : numbers) {
            const std::string& pattern = patterns[number];
            const size_t first = rarest(pattern, size + stride - 1);
            // The last one first: where a string overlaps itself, the place that begins first is found.
            for (size_t offset = first + stride; offset-- > first;) {
                const uint64_t hash = hash_at(pattern.data() + offset);
                bloom_.add(hash);
                table_[hash].push_back({number, offset});
            }
        }
    }

    // Calls visit(window, place) for every window that may stand at a place of the text.
    template <typename Visit>
    void each(View text, Visit visit) const {
        if (size_ == 16) return each_of<16>(text, visit);  // a load of a known size is one instruction
        if (size_ == 8) return each_of<8>(text, visit);
        each_of<0>(text, visit);
    }

  private:
    template <size_t kSize, typename Visit>
    void each_of(View text, Visit visit) const {
        for (size_t i = 0; i + size_ <= text.size(); i += stride_) {
            const uint64_t hash = hash_of<kSize>(text.data() + i);
            if (!bloom_.may_hold(hash)) continue;
            const auto entry = table_.find(hash);
            if (entry == table_.end()) continue;
            for (const Window& window : entry->second) visit(window, i);
        }
    }

    uint64_t hash_at(const char* place) const {
        return size_ == 16 ? hash_of<16>(place) : hash_of<0>(place);
    }

    // Capitals as small letters; that a few signs become one does not matter to a hash.
    static uint64_t small(uint64_t bytes) { return bytes | 0x2020202020202020ull; }

    template <size_t kSize>
    uint64_t hash_of(const char* place) const {
        if (kSize == 16) return mix(small(load(place, 8)) * 0x9e3779b97f4a7c15ull ^ small(load(place + 8, 8)));
        return mix(small(load(place, kSize ? kSize : size_)));
    }

    // Where the stretch of most different bytes begins, among the first ones: runs of spaces or dashes are everywhere.
    static size_t rarest(const std::string& pattern, size_t size) {
        size_t best = 0, most = 0;
        for (size_t at = 0; at + size <= pattern.size() && at < 256; ++at) {
            std::array<bool, 256> seen{};
            size_t count = 0;
            for (size_t i = at; i < at + size; ++i) {
                bool& one = seen[static_cast<unsigned char>(pattern[i])];
                count += !one;
                one = true;
            }
            if (count > most) {
                most = count;
                best = at;
            }
        }
        return best;
    }

    size_t size_, stride_;
    Bloom bloom_;
    std::unordered_map<uint64_t, std::vector<Window>> table_;
};

class StringSearch {
  public:
    using Place = std::tuple<uint32_t, size_t, size_t>;  // number, begin, end

    explicit StringSearch(std::vector<std::string> patterns) : patterns_(std::move(patterns)) {
        std::map<std::pair<size_t, size_t>, std::vector<uint32_t>> groups;
        for (uint32_t number = 0; number < patterns_.size(); ++number) {
            const size_t size = patterns_[number].size();
            if (size == 0) throw std::invalid_argument("an empty pattern");
            groups[size_and_stride(size)].push_back(number);
        }
        for (const auto& [shape, numbers] : groups) windows_.emplace_back(shape.first, shape.second, patterns_, numbers);
    }

    // Each pattern that a text holds, whatever the case of its ASCII letters, once, in the order of the text.
    std::vector<Place> find(View text) const {
        std::vector<Place> found;
        std::unordered_set<uint32_t> seen;
        for (const Windows& windows : windows_) {
            windows.each(text, [&](const Windows::Window& window, size_t place) {
                const std::string& pattern = patterns_[window.number];
                if (place < window.offset || seen.count(window.number)) return;
                const size_t begin = place - window.offset;
                if (!equals(text.substr(begin, pattern.size()), pattern)) return;
                seen.insert(window.number);
                found.emplace_back(window.number, begin, begin + pattern.size());
            });
        }
        std::sort(found.begin(), found.end(), [](const Place& a, const Place& b) {
            return std::tie(std::get<1>(a), std::get<0>(a)) < std::tie(std::get<1>(b), std::get<0>(b));
        });
        return found;
    }

    // The same in the normalised text, with the places of the text as it was.
    std::vector<Place> find_normalised(View text, bool hash, bool slash) const {
        std::vector<Place> found = find(normalised(text, hash, slash));
        if (found.empty()) return found;
        std::vector<size_t> shown;
        for (const auto& [number, begin, end] : found) shown.insert(shown.end(), {begin, end - 1});
        std::sort(shown.begin(), shown.end());
        const std::vector<size_t> places = places_before(text, hash, slash, shown);
        const auto place_of = [&](size_t one) {
            return places[std::lower_bound(shown.begin(), shown.end(), one) - shown.begin()];
        };
        for (auto& [number, begin, end] : found) {
            begin = place_of(begin);
            end = place_of(end - 1) + 1;
        }
        return found;
    }

  private:
    static bool equals(View text, View pattern) {
        const auto is_same = [](uint8_t a, uint8_t b) { return lower(a) == lower(b); };
        return std::equal(text.begin(), text.end(), pattern.begin(), pattern.end(), is_same);
    }

    // The longer the windows and their strides, the less is looked at; both must fit into the string.
    static std::pair<size_t, size_t> size_and_stride(size_t pattern) {
        if (pattern >= 16 + 8 - 1) return {16, 8};
        if (pattern >= 8 + 4 - 1) return {8, 4};
        return {std::min(pattern, size_t{7}), 1};
    }

    std::vector<std::string> patterns_;
    std::vector<Windows> windows_;
};
