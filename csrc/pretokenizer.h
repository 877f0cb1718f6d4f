// Cuts text into the pieces that byte-pair encoding never merges across, as the regular expressions of GPT-2 and of
// cl100k (Llama 3) do, with one pass over the bytes and a table of character classes in place of a matcher.
//
//   gpt2    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//   cl100k  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,m}| ?[^\s\p{L}\p{N}]+[\r\n]*
//           |\s*[\r\n]+|\s+(?!\S)|\s+
//
// With digits_alone, text is cut before and after every digit first (StarCoder), and the expression sees each part by
// itself: a digit is then a wall that no piece crosses, and white space before it is white space at the end of a text.
//
// No expression looks back, so where a piece ends depends on where it starts and on what follows, and on nothing else.
// Text is valid UTF-8.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "unicode_classes.h"

// Says whether bytes are UTF-8 as Unicode defines it: no surrogate, nothing above U+10FFFF, no longer form than needed.
inline bool is_utf8(const uint8_t* p, const uint8_t* end) {
    while (p < end) {
        uint64_t word;
        if (end - p >= 8 && (std::memcpy(&word, p, 8), (word & 0x8080808080808080u) == 0)) {
            p += 8;
            continue;
        }
        const uint8_t first = *p++;
        if (first < 0x80) continue;
        const int num_more = first < 0xC2 ? -1 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : first < 0xF5 ? 3 : -1;
        if (num_more < 0 || end - p < num_more) return false;
        const uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
        const uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
        if (*p < low || *p > high) return false;
        for (int i = 1; i < num_more; ++i) {
            if ((p[i] & 0xC0) != 0x80) return false;
        }
        p += num_more;
    }
    return true;
}

enum Class : uint8_t { kOther, kLetter, kNumber, kSpace, kWall, kMultibyte };

struct Character {
    Class kind;
    uint8_t size;  // bytes
};

// The class of every character: a byte below 0x80 in one look-up, any other in three.
class CharacterClasses {
public:
    explicit CharacterClasses(bool digits_alone) : pages_(1) {
        paint(unicode::kLetters, kLetter);
        paint(unicode::kNumbers, kNumber);
        paint(unicode::kSpaces, kSpace);
        if (digits_alone) paint(unicode::kDigits, kWall);
        for (size_t byte = 0; byte < 256; ++byte) {
            ascii_[byte] = byte < 0x80 ? of(static_cast<uint32_t>(byte)) : kMultibyte;
        }
    }

    // kMultibyte for a byte that is not a character by itself.
    Class of_byte(uint8_t byte) const { return ascii_[byte]; }

    Character at(const uint8_t* p) const {
        if (*p < 0x80) return {ascii_[*p], 1};
        if (*p < 0xE0) return {of((p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu)), 2};
        if (*p < 0xF0) return {of((p[0] & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu)), 3};
        return {of((p[0] & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu)), 4};
    }

private:
    using Page = std::array<Class, 256>;

    Class of(uint32_t code) const { return pages_[page_of_[code >> 8]][code & 255]; }

    template <size_t n>
    void paint(const unicode::Range (&ranges)[n], Class kind) {
        for (const unicode::Range& range : ranges) {
            for (uint32_t code = range.first; code <= range.last; ++code) {
                uint16_t& page = page_of_[code >> 8];
                if (page == 0) {  // page 0 is the blank one
                    page = static_cast<uint16_t>(pages_.size());
                    pages_.emplace_back();
                }
                pages_[page][code & 255] = kind;
            }
        }
    }

    std::array<Class, 256> ascii_{};
    std::array<uint16_t, 0x1100> page_of_{};
    std::vector<Page> pages_;
};

inline int trailing_zeros(uint64_t bits) { return __builtin_ctzll(bits); }

// Which of 64 bytes are of which class: bit i of each mask is for byte i. Eight bytes at a time, a byte a lane.
struct AsciiBlock {
    uint64_t letters = 0, numbers = 0, spaces = 0, blanks = 0, quotes = 0, not_ascii = 0, others = 0;

    explicit AsciiBlock(const uint8_t* p) {
        for (int i = 0; i < 8; ++i) {
            uint64_t lanes;
            std::memcpy(&lanes, p + 8 * i, 8);
            const uint64_t high = lanes & kHigh;
            lanes &= ~kHigh;
            const uint64_t blank = within(lanes, ' ', ' ');
            letters |= gather(within(lanes | kOnes * 0x20, 'a', 'z')) << 8 * i;
            numbers |= gather(within(lanes, '0', '9')) << 8 * i;
            spaces |= gather(within(lanes, '\t', '\r') | blank) << 8 * i;
            blanks |= gather(blank) << 8 * i;
            quotes |= gather(within(lanes, '\'', '\'')) << 8 * i;
            not_ascii |= gather(high) << 8 * i;
        }
        others = ~(letters | numbers | spaces);
    }

private:
    static constexpr uint64_t kOnes = 0x0101010101010101u, kHigh = 0x8080808080808080u;

    // The high bit of each lane, below 0x80, that is one of first … last.
    static uint64_t within(uint64_t lanes, uint64_t first, uint64_t last) {
        return (lanes + kOnes * (0x80 - first)) & ~(lanes + kOnes * (0x7F - last)) & kHigh;
    }
    // The high bits of the lanes as the low eight bits.
    static uint64_t gather(uint64_t high_bits) { return (high_bits >> 7) * 0x0102040810204080u >> 56; }
};

class PreTokenizer {
public:
    PreTokenizer(bool is_cl100k, size_t max_digits, bool digits_alone)
        : classes_(digits_alone), is_cl100k_(is_cl100k), has_walls_(digits_alone), max_digits_(max_digits) {}

    // Calls emit(begin, end) for each piece of [p, end) in order; together they are all of it.
    template <typename Emit>
    void split(const uint8_t* p, const uint8_t* end, Emit&& emit) const {
        if (is_cl100k_) {
            while (p < end) {
                const uint8_t* next = next_cl100k(p, end);
                emit(p, next);
                p = next;
            }
        } else {
            while (p < end) {
                const uint8_t* next = split_block(p, end, emit);
                if (next == p) emit(p, next = next_gpt2(p, end));
                p = next;
            }
        }
    }

private:
    // gpt2 on up to 64 bytes at once: emits the pieces that end in the block, and gives where the next one starts.
    //
    // Among ASCII characters that begin no contraction, whether a piece starts at one is told by it and its neighbours:
    // a letter, number or other starts one unless the character before it is of its class, or a space; a white one
    // starts one unless it is between white ones (or, before a wall, after one). No branch depends on a character.
    template <typename Emit>
    const uint8_t* split_block(const uint8_t* p, const uint8_t* end, Emit& emit) const {
        if (end - p < 64) return p;
        const AsciiBlock block(p);
        uint64_t irregular = block.not_ascii;
        for (uint64_t quotes = block.quotes; quotes != 0; quotes &= quotes - 1) {
            const int place = trailing_zeros(quotes);
            if (contraction(p + place, end)) irregular |= uint64_t{1} << place;
        }
        const int num_plain = irregular == 0 ? 64 : trailing_zeros(irregular);
        if (num_plain < 4) return p;
        const uint64_t numbers_that_join = has_walls_ ? 0 : block.numbers;
        const uint64_t solid = block.letters | block.others | numbers_that_join;
        const uint64_t joins = (block.letters & block.letters << 1) | (block.others & block.others << 1) |
                               (numbers_that_join & numbers_that_join << 1) | block.blanks << 1;
        const uint64_t white_starts = block.spaces & (~(block.spaces << 1) | solid >> 1);
        uint64_t starts = (solid & ~joins) | white_starts | (has_walls_ ? block.numbers : 0);
        // The first character starts a piece, and is known to. The last has a neighbour that was not looked at.
        starts &= (~uint64_t{0} >> (65 - num_plain)) & ~uint64_t{1};
        const uint8_t* begin = p;
        while (starts != 0) {
            const uint8_t* next = p + trailing_zeros(starts);
            emit(begin, next);
            begin = next;
            starts &= starts - 1;
        }
        return begin;
    }

    const uint8_t* next_gpt2(const uint8_t* p, const uint8_t* end) const {
        const Character first = classes_.at(p);
        if (first.kind == kSpace) {
            if (*p == ' ' && p + 1 < end) {
                const Character second = classes_.at(p + 1);
                if (second.kind < kSpace) return run(p + 1 + second.size, end, second.kind);
            }
            return white_space(p, end);
        }
        if (first.kind == kWall) return p + first.size;
        if (*p == '\'') {
            if (const size_t size = contraction(p, end)) return p + size;
        }
        return run(p + first.size, end, first.kind);
    }

    const uint8_t* next_cl100k(const uint8_t* p, const uint8_t* end) const {
        const Character first = classes_.at(p);
        if (first.kind == kWall) return p + first.size;
        if (*p == '\'') {
            if (const size_t size = folded_contraction(p, end)) return p + size;
        }
        if (first.kind == kLetter) return run(p + first.size, end, kLetter);
        if (first.kind == kNumber) return numbers(p, end);
        const uint8_t* second = p + first.size;
        const Class next = second < end ? classes_.at(second).kind : kWall;
        if (next == kLetter && *p != '\r' && *p != '\n') return run(second, end, kLetter);
        if (first.kind == kOther) return newlines(run(second, end, kOther), end);
        if (*p == ' ' && next == kOther) return newlines(run(second, end, kOther), end);
        return white_space_by_lines(p, end);
    }

    // The end of the characters of one class from p on.
    const uint8_t* run(const uint8_t* p, const uint8_t* end, Class kind) const {
        while (p < end) {
            const Class here = classes_.of_byte(*p);
            if (here == kind) {
                ++p;
                continue;
            }
            if (here != kMultibyte) break;
            const Character character = classes_.at(p);
            if (character.kind != kind) break;
            p += character.size;
        }
        return p;
    }

    // \s+(?!\S)|\s+ : all of it at the end of a text, else all but the last character, which goes with what follows.
    const uint8_t* white_space(const uint8_t* p, const uint8_t* end) const {
        const uint8_t *stop = p, *last = p;
        while (stop < end) {
            const Character character = classes_.at(stop);
            if (character.kind != kSpace) {
                return character.kind == kWall || last == p ? stop : last;
            }
            last = stop;
            stop += character.size;
        }
        return stop;
    }

    // \s*[\r\n]+ first: up to the last end of line in the white space, if it holds one.
    const uint8_t* white_space_by_lines(const uint8_t* p, const uint8_t* end) const {
        const uint8_t *stop = run(p, end, kSpace), *q = stop;
        while (q > p && q[-1] != '\r' && q[-1] != '\n') --q;
        return q > p ? q : white_space(p, end);
    }

    const uint8_t* numbers(const uint8_t* p, const uint8_t* end) const {
        for (size_t count = 0; count < max_digits_ && p < end; ++count) {
            const Character character = classes_.at(p);
            if (character.kind != kNumber) break;
            p += character.size;
        }
        return p;
    }

    static const uint8_t* newlines(const uint8_t* p, const uint8_t* end) {
        while (p < end && (*p == '\r' || *p == '\n')) ++p;
        return p;
    }

    // The size of 's 't 'm 'd 're 've 'll at p, or 0.
    static size_t contraction(const uint8_t* p, const uint8_t* end) {
        if (end - p < 2) return 0;
        if (p[1] == 's' || p[1] == 't' || p[1] == 'm' || p[1] == 'd') return 2;
        if (end - p < 3) return 0;
        return (p[1] == 'r' && p[2] == 'e') || (p[1] == 'v' && p[2] == 'e') || (p[1] == 'l' && p[2] == 'l') ? 3 : 0;
    }

    // The same in either case; U+017F, the long s, is an s in another case.
    static size_t folded_contraction(const uint8_t* p, const uint8_t* end) {
        if (end - p >= 3 && p[1] == 0xC5 && p[2] == 0xBF) return 3;
        uint8_t folded[3] = {'\'', 0, 0};
        const size_t size = end - p < 3 ? static_cast<size_t>(end - p) : 3;
        for (size_t i = 1; i < size; ++i) {
            folded[i] = p[i] >= 'A' && p[i] <= 'Z' ? static_cast<uint8_t>(p[i] | 0x20) : p[i];
        }
        return contraction(folded, folded + size);
    }

    CharacterClasses classes_;
    bool is_cl100k_, has_walls_;
    size_t max_digits_;  // of a piece of numbers, in cl100k
};
