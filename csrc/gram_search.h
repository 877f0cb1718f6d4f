// Texts looked for in part: how many different runs of n tokens of one stand within twice its length.
//
// Tokens are words in lower case, which prose and code share; or with shape those of Python with every name alike,
// strings and comments left out, so that renaming changes nothing.

#pragma once

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "bloom.h"
#include "source_text.h"

// Eight bytes in lower case, of which the first so many belong to a word.
inline uint64_t eight_of_word(View text, size_t place, size_t size) {
    const size_t there = text.size() - place;
    const uint64_t bytes = there >= 8 ? load(text.data() + place, 8) : load(text.data() + place, there);
    const uint64_t small = bytes | (0x2020202020202020ull & ~(bytes >> 2));  // bytes from 128 on stay as they are
    return size >= 8 ? small : small & ~(~uint64_t{0} << 8 * size);
}

// A number for a word, whatever its case: its bytes, if they are eight at most.
inline uint64_t word_value(View text, size_t place, size_t size) {
    uint64_t value = eight_of_word(text, place, size);
    for (size_t done = 8; done < size; done += 8) {
        value = mix(value) * 0x9e3779b97f4a7c15ull + eight_of_word(text, place + done, size - done);
    }
    return value;
}

// Python's keywords, in a table without two at one place.
class Keywords {
  public:
    Keywords() {
        while (!fits()) factor_ = mix(factor_) | 1;
    }
    bool holds(uint64_t value) const { return table_[place(value)] == value; }

  private:
    size_t place(uint64_t value) const { return value * factor_ >> 56; }
    bool fits() {
        table_.fill(0);
        for (View word : {"and", "as", "assert", "break", "class", "continue", "def", "del", "elif", "else", "except",
                          "finally", "for", "from", "global", "if", "import", "in", "is", "lambda", "none", "nonlocal",
                          "not", "or", "pass", "raise", "return", "true", "false", "try", "while", "with", "yield"}) {
            uint64_t& entry = table_[place(word_value(word, 0, word.size()))];
            if (entry) return false;
            entry = word_value(word, 0, word.size());
        }
        return true;
    }

    uint64_t factor_ = 0x9e3779b97f4a7c15ull;
    std::array<uint64_t, 256> table_{};
};

// Calls visit(value, begin, end) for the words of a text.
template <typename Visit>
void each_word(View text, Visit visit) {
    const auto mark = [&](size_t block) {
        const uint64_t words = mask_of(text, block, is_word);
        return Marks{words & ~(words << 1), words};
    };
    walk(text, mark, [&](size_t place, size_t block, uint64_t words) {
        const size_t end = word_end(text, place, block, words);
        visit(word_value(text, place, end - place), place, end);
        return end;
    });
}

// Calls visit(value, begin, end) for Python's tokens: 1 for all names, their bytes for keywords and numbers.
template <typename Visit>
void each_shape(View text, const Keywords& keywords, Visit visit) {
    const auto mark = [&](size_t block) {
        const uint64_t words = mask_of(text, block, is_word);
        const uint64_t signs = ~(words | mask_of(text, block, is_space));
        return Marks{(words & ~(words << 1)) | signs, words};
    };
    Strings strings(text);
    walk(text, mark, [&](size_t place, size_t block, uint64_t words) {
        const uint8_t c = text[place];
        if (c == '#') return comment_end(text, place, true, false);
        if (c == '"' || c == '\'') {
            const size_t end = strings.end(place);
            return end == kNone ? place + 1 : end;
        }
        uint64_t value = uint64_t{c} << 56;  // of a sign; no word's eight bytes are these
        size_t end = place + 1;
        if (is_word(c)) {
            end = word_end(text, place, block, words);
            const uint64_t first = eight_of_word(text, place, end - place);
            const bool is_keyword = end - place <= 8 && keywords.holds(first);
            value = is_digit(c) ? word_value(text, place, end - place) : is_keyword ? first : 1;
        }
        visit(value, place, end);
        return end;
    });
}

class GramSearch {
  public:
    using Found = std::tuple<uint32_t, size_t, size_t, size_t, size_t>;  // number, matched, total, begin, end

    GramSearch(size_t n, const std::vector<std::string>& patterns, bool shape)
        : n_(n ? n : throw std::invalid_argument("runs of no tokens")), is_shape_(shape), bloom_(count(patterns)) {
        for (uint32_t number = 0; number < patterns.size(); ++number) {
            std::unordered_set<uint64_t> different;
            sizes_.push_back(each_gram(patterns[number], [&](const Gram& gram) { different.insert(gram.hash); }));
            totals_.push_back(different.size());
            for (uint64_t hash : different) {
                bloom_.add(hash);
                table_[hash].push_back(number);
            }
        }
    }

    // The patterns of which at least this part is found.
    std::vector<Found> find(View text, double least) const {
        Hits hits;
        each_gram(text, [&](const Gram& gram) {
            if (bloom_.may_hold(gram.hash)) note(gram, hits);
        });
        std::vector<Found> found;
        for (const auto& [number, grams] : hits) {
            if (grams.size() < least * totals_[number]) continue;
            const Found one = densest(number, grams);
            if (std::get<1>(one) >= least * totals_[number]) found.push_back(one);
        }
        std::sort(found.begin(), found.end());
        return found;
    }

  private:
    struct Gram {
        uint64_t hash;
        size_t number, begin, end;  // its first token, and its bytes
    };
    struct Token {
        uint64_t hash;
        size_t begin;
    };
    using Hits = std::unordered_map<uint32_t, std::vector<Gram>>;

    void note(const Gram& gram, Hits& hits) const {
        const auto entry = table_.find(gram.hash);
        if (entry == table_.end()) return;
        for (uint32_t number : entry->second) hits[number].push_back(gram);
    }

    size_t count(const std::vector<std::string>& patterns) const {
        size_t total = 1;
        for (const std::string& pattern : patterns) each_gram(pattern, [&](const Gram&) { ++total; });
        return total;
    }

    // Gives the number of tokens. A gram's hash is a polynomial over its tokens, rolled on from one to the next.
    template <typename Visit>
    size_t each_gram(View text, Visit visit) const {
        constexpr uint64_t base = 0x9e3779b97f4a7c15ull;
        uint64_t hash = 0, leaving = 1;
        for (size_t i = 0; i < n_; ++i) leaving *= base;
        std::vector<Token> last(n_);  // the tokens of a gram, round and round
        size_t count = 0, oldest = 0;
        const auto roll = [&](uint64_t value, size_t begin, size_t end) __attribute__((always_inline)) {
            const uint64_t token = mix(value);
            hash = hash * base + (token - leaving * last[oldest].hash);
            last[oldest] = {token, begin};
            oldest = oldest + 1 < n_ ? oldest + 1 : 0;
            if (++count >= n_) visit(Gram{mix(hash), count - n_, last[oldest].begin, end});
        };
        is_shape_ ? each_shape(text, keywords_, roll) : each_word(text, roll);
        return count;
    }

    // The stretch of at most twice the pattern's length that holds most of its different grams.
    Found densest(uint32_t number, const std::vector<Gram>& grams) const {
        const size_t width = 2 * sizes_[number];
        std::unordered_map<uint64_t, size_t> inside;
        size_t first = 0, best = 0, best_first = 0, best_last = 0;
        for (size_t last = 0; last < grams.size(); ++last) {
            ++inside[grams[last].hash];
            while (grams[last].number - grams[first].number > width) {
                const auto entry = inside.find(grams[first++].hash);
                if (--entry->second == 0) inside.erase(entry);
            }
            if (inside.size() > best) {
                best = inside.size();
                best_first = first;
                best_last = last;
            }
        }
        return {number, best, totals_[number], grams[best_first].begin, grams[best_last].end};
    }

    size_t n_;
    bool is_shape_;
    Keywords keywords_;
    Bloom bloom_;
    std::vector<size_t> sizes_, totals_;
    std::unordered_map<uint64_t, std::vector<uint32_t>> table_;
};
