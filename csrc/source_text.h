// Source code as bytes: which of them are words, white space and quotes, and where strings and comments end.
//
// Kinds are told 64 bytes at a time, a bit each: bit i of a mask is byte i of the block. A compiler makes of the loop
// over a block a few wide instructions, and a walk from bit to bit has no branch a byte.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

using View = std::string_view;
constexpr size_t kNone = View::npos, kBlock = 64;

constexpr bool is_space(uint8_t c) { return (c == ' ') | (static_cast<uint8_t>(c - '\t') < 5); }
constexpr bool is_digit(uint8_t c) { return static_cast<uint8_t>(c - '0') < 10; }
constexpr bool is_word(uint8_t c) {  // what is not ASCII may be a letter, and counts as one
    return (static_cast<uint8_t>((c | 0x20) - 'a') < 26) | is_digit(c) | (c == '_') | (c >= 0x80);
}
constexpr uint8_t lower(uint8_t c) { return c | (static_cast<uint8_t>(c - 'A') < 26) << 5; }

// The bytes of one block for which `is` holds. Behind the end of the text stands white space.
template <typename Is>
uint64_t mask_of(View text, size_t block, Is is) {
    uint8_t rest[kBlock], holds[kBlock];
    const char* bytes = text.data() + block;
    if (text.size() - block < kBlock) {
        std::memset(rest, ' ', kBlock);
        bytes = static_cast<const char*>(std::memcpy(rest, bytes, text.size() - block));
    }
    for (size_t i = 0; i < kBlock; ++i) holds[i] = is(bytes[i]);
    uint64_t mask = 0;
    for (size_t i = 0; i < kBlock; i += 8) {
        uint64_t eight;
        std::memcpy(&eight, holds + i, 8);
        mask |= (eight * 0x0102040810204080ull >> 56) << i;  // the lowest bits of eight bytes, side by side
    }
    return mask;
}

// What of a block is looked at, and which of its bytes belong to words.
struct Marks {
    uint64_t wanted, words;
};

// Calls visit(place, block, words) for each byte of a text that mark(block) wants, and goes on at the place it gives.
template <typename Mark, typename Visit>
void walk(View text, Mark mark, Visit visit) {
    size_t next = 0;
    for (size_t block = 0; block < text.size(); block += kBlock) {
        if (next >= block + kBlock) continue;
        const Marks marks = mark(block);
        for (uint64_t left = marks.wanted; left; left &= left - 1) {  // without its lowest bit
            const size_t place = block + __builtin_ctzll(left);
            if (place >= next) next = visit(place, block, marks.words);
        }
    }
}

// Behind the word that begins at a place, with the words of its block; the place itself if none does.
inline size_t word_end(View text, size_t place, size_t block, uint64_t words) {
    const uint64_t others = ~(words >> (place - block));
    if (others && place + __builtin_ctzll(others) < block + kBlock) return place + __builtin_ctzll(others);
    size_t end = block + kBlock;
    while (end < text.size() && is_word(text[end])) ++end;
    return end;
}

// Where the strings of a text end. What was once seen to be never closed is remembered, so that a text full of
// opening quotes takes no longer than any other.
class Strings {
  public:
    explicit Strings(View text) : text_(text) {}

    // Behind the string that a quote begins, kNone if it is none: three quotes end at three, one on its line.
    size_t end(size_t place) {
        const char quote = text_[place];
        const bool is_triple = closes(place, quote, true);
        size_t& open = open_until_[quote == '"'][is_triple];
        if (place < open) return kNone;
        size_t i = place + (is_triple ? 3 : 1);
        for (; i < text_.size(); ++i) {
            const char c = text_[i];
            if (c == '\\') {
                ++i;
            } else if (c == quote) {
                if (closes(i, quote, is_triple)) return i + (is_triple ? 3 : 1);
            } else if (c == '\n' && !is_triple) {
                break;
            }
        }
        open = i;
        return kNone;
    }

  private:
    bool closes(size_t place, char quote, bool is_triple) const {
        return !is_triple || (place + 2 < text_.size() && text_[place + 1] == quote && text_[place + 2] == quote);
    }

    View text_;
    std::array<std::array<size_t, 2>, 2> open_until_{};
};

// Behind the comment that begins at a place, or the place itself. hash: `#` begins one; slash: `//` and `/* */` do.
inline size_t comment_end(View text, size_t place, bool hash, bool slash) {
    const char c = text[place], next = place + 1 < text.size() ? text[place + 1] : '\0';
    if ((hash && c == '#') || (slash && c == '/' && next == '/')) {
        const size_t end = text.find('\n', place);
        return end == kNone ? text.size() : end;
    }
    if (slash && c == '/' && next == '*') {
        const size_t end = text.find("*/", place + 2);
        return end == kNone ? text.size() : end + 2;
    }
    return place;
}

// Calls visit for each stretch of a text between comments. What stands inside quotes begins none.
template <typename Visit>
void each_stretch(View text, bool hash, bool slash, Visit visit) {
    Strings strings(text);
    size_t begin = 0;
    const auto is_marked = [=](uint8_t c) {
        return (c == '"') | (c == '\'') | (hash & (c == '#')) | (slash & (c == '/'));
    };
    const auto mark = [&](size_t block) { return Marks{mask_of(text, block, is_marked), 0}; };
    walk(text, mark, [&](size_t place, size_t, uint64_t) {
        if (text[place] == '"' || text[place] == '\'') {
            const size_t end = strings.end(place);
            return end == kNone ? place + 1 : end;
        }
        const size_t end = comment_end(text, place, hash, slash);
        if (end == place) return place + 1;
        visit(text.substr(begin, place - begin));
        begin = end;
        return end;
    });
    visit(text.substr(begin));
}
