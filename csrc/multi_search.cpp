// Python module megatron.curation._multi_search: many texts looked for in one pass, exactly, normalised or in part.
//
// normalise(text, hash, slash): the text without white space and comments, in lower case; what stands inside quotes
//   keeps its comment signs. hash: `#` begins a comment; slash: `//` and `/* */` do.
// StringSearch(patterns): find(text) gives (pattern, begin, end) in bytes, each pattern once. A window of 16 bytes (or
//   of all, if fewer) of each pattern is hashed; at each byte of the text a Bloom filter answers for nearly all. The
//   time does not grow with the number of patterns. find_normalised does so in the normalised text, and gives the
//   places in the text as it was.
// GramSearch(n, patterns, shape): find(text) gives (pattern, matched, total, begin, end): how many different runs of n
//   tokens of a pattern stand within twice its length. Tokens are words in lower case, or with shape those of Python
//   with every name alike, strings and comments left out, so that renaming changes nothing.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace {

using View = std::string_view;
using Place = std::tuple<uint32_t, size_t, size_t>;
constexpr size_t kWindow = 16;

uint64_t mix(uint64_t a) {
    a ^= a >> 32;
    a *= 0xd6e8feb86659fd93ull;
    a ^= a >> 32;
    return a;
}

uint64_t load(const char* place, size_t size) {
    uint64_t word = 0;
    std::memcpy(&word, place, size);
    return word;
}

uint64_t hash_window(const char* place, size_t size) {
    if (size == kWindow) {  // constant sizes, so that the loads are one instruction each
        return mix(load(place, 8) * 0x9e3779b97f4a7c15ull ^ load(place + 8, 8));
    }
    if (size > 8) return mix(load(place, 8) * 0x9e3779b97f4a7c15ull ^ load(place + 8, size - 8));
    return mix(load(place, size) ^ size << 56);
}

// A set of hashes that says "no" at once: one bit of a table of at least 32 bits a member.
class Bloom {
  public:
    explicit Bloom(size_t members) {
        while ((size_t{1} << bits_) < members * 32) ++bits_;
        words_.assign((size_t{1} << bits_) / 64, 0);
    }
    void add(uint64_t hash) { words_[index(hash) / 64] |= uint64_t{1} << (index(hash) % 64); }
    bool may_hold(uint64_t hash) const { return words_[index(hash) / 64] >> (index(hash) % 64) & 1; }

  private:
    size_t index(uint64_t hash) const { return hash >> (64 - bits_); }
    size_t bits_ = 16;
    std::vector<uint64_t> words_;
};

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '_' || (c & 0x80);
}
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

// Behind the string that a quote begins, npos if it is none: three quotes end at three, one on its line.
size_t string_end(View text, size_t place) {
    const char quote = text[place];
    const bool triple = place + 2 < text.size() && text[place + 1] == quote && text[place + 2] == quote;
    for (size_t i = place + (triple ? 3 : 1); i < text.size(); ++i) {
        if (text[i] == '\\') {
            ++i;
        } else if (triple) {
            if (text[i] == quote && i + 2 < text.size() && text[i + 1] == quote && text[i + 2] == quote) return i + 3;
        } else if (text[i] == quote) {
            return i + 1;
        } else if (text[i] == '\n') {
            return View::npos;
        }
    }
    return View::npos;
}

// Behind the comment that begins at a place, or the place itself.
size_t comment_end(View text, size_t place, bool hash, bool slash) {
    const char c = text[place], next = place + 1 < text.size() ? text[place + 1] : '\0';
    if ((hash && c == '#') || (slash && c == '/' && next == '/')) {
        const size_t end = text.find('\n', place);
        return end == View::npos ? text.size() : end;
    }
    if (slash && c == '/' && next == '*') {
        const size_t end = text.find("*/", place + 2);
        return end == View::npos ? text.size() : end + 2;
    }
    return place;
}

void normalise_into(View text, bool hash, bool slash, std::string& result, std::vector<uint32_t>* places) {
    result.resize(text.size());
    if (places) places->resize(text.size());
    char* out = result.data();
    uint32_t* at = places ? places->data() : nullptr;
    size_t count = 0, string = 0;  // before `string`, all is inside quotes
    for (size_t i = 0; i < text.size();) {
        const char c = text[i];
        if (i >= string) {
            if (c == '"' || c == '\'') {
                const size_t end = string_end(text, i);
                if (end != View::npos) string = end;
            } else if (c == '#' || c == '/') {
                const size_t end = comment_end(text, i, hash, slash);
                if (end != i) {
                    i = end;
                    continue;
                }
            }
        }
        if (!is_space(c)) {
            out[count] = lower(c);
            if (at) at[count] = static_cast<uint32_t>(i);
            ++count;
        }
        ++i;
    }
    result.resize(count);
    if (places) places->resize(count);
}

class StringSearch {
  public:
    explicit StringSearch(std::vector<std::string> patterns) : patterns_(std::move(patterns)), bloom_(patterns_.size()) {
        for (uint32_t number = 0; number < patterns_.size(); ++number) {
            const std::string& pattern = patterns_[number];
            if (pattern.empty()) throw std::invalid_argument("an empty pattern");
            const size_t size = std::min(pattern.size(), kWindow), anchor = rarest(pattern, size);
            const uint64_t hash = hash_window(pattern.data() + anchor, size);
            bloom_.add(hash);
            table_[hash].emplace_back(number, anchor);
            if (std::find(sizes_.begin(), sizes_.end(), size) == sizes_.end()) sizes_.push_back(size);
        }
    }

    std::vector<Place> find(View text) const {
        std::vector<Place> found;
        std::unordered_set<uint32_t> seen;
        for (size_t size : sizes_) {
            if (size == kWindow) {
                scan(text, kWindow, found, seen);
            } else {
                scan(text, size, found, seen);
            }
        }
        return found;
    }

    std::vector<Place> find_normalised(View text, bool hash, bool slash) const {
        if (text.size() > UINT32_MAX) throw std::invalid_argument("a text above 4 GB");
        std::string shown;
        std::vector<uint32_t> places;
        normalise_into(text, hash, slash, shown, &places);
        std::vector<Place> found = find(shown);
        for (auto& [number, begin, end] : found) {
            begin = places[begin];
            end = places[end - 1] + 1;
        }
        return found;
    }

  private:
    // The window of most different bytes among the first ones: runs of spaces or dashes are everywhere.
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

    inline __attribute__((always_inline)) void scan(
        View text, size_t size, std::vector<Place>& found, std::unordered_set<uint32_t>& seen) const {
        for (size_t i = 0; i + size <= text.size(); ++i) {
            const uint64_t hash = hash_window(text.data() + i, size);
            if (bloom_.may_hold(hash)) check(text, i, hash, size, found, seen);
        }
    }

    void check(View text, size_t place, uint64_t hash, size_t size, std::vector<Place>& found,
               std::unordered_set<uint32_t>& seen) const {
        const auto entry = table_.find(hash);
        if (entry == table_.end()) return;
        for (const auto& [number, anchor] : entry->second) {
            const std::string& pattern = patterns_[number];
            if (place < anchor || std::min(pattern.size(), kWindow) != size || seen.count(number)) continue;
            if (text.substr(place - anchor, pattern.size()) != pattern) continue;
            seen.insert(number);
            found.emplace_back(number, place - anchor, place - anchor + pattern.size());
        }
    }

    std::vector<std::string> patterns_;
    Bloom bloom_;
    std::vector<size_t> sizes_;
    std::unordered_map<uint64_t, std::vector<std::pair<uint32_t, size_t>>> table_;
};

const std::unordered_set<View> kKeywords = {
    "and", "as", "assert", "break", "class", "continue", "def", "del", "elif", "else", "except", "finally", "for",
    "from", "global", "if", "import", "in", "is", "lambda", "none", "nonlocal", "not", "or", "pass", "raise",
    "return", "true", "false", "try", "while", "with", "yield"};

struct Token {
    uint64_t hash;
    uint32_t begin, end;
};

uint64_t hash_word(View word) {
    uint64_t hash = 0xcbf29ce484222325ull;
    for (char c : word) hash = (hash ^ static_cast<unsigned char>(lower(c))) * 0x100000001b3ull;
    return mix(hash);
}

bool is_keyword(View word) {
    if (word.size() < 2 || word.size() > 8) return false;
    char small[8];
    for (size_t i = 0; i < word.size(); ++i) small[i] = lower(word[i]);
    return kKeywords.count(View(small, word.size())) > 0;
}

// Words in lower case: what prose and code share.
void split_words(View text, std::vector<Token>& tokens) {
    for (size_t i = 0; i < text.size();) {
        if (!is_word(text[i])) {
            ++i;
            continue;
        }
        const size_t begin = i;
        uint64_t hash = 0xcbf29ce484222325ull;
        for (; i < text.size() && is_word(text[i]); ++i) {
            hash = (hash ^ static_cast<unsigned char>(lower(text[i]))) * 0x100000001b3ull;
        }
        tokens.push_back({mix(hash), static_cast<uint32_t>(begin), static_cast<uint32_t>(i)});
    }
}

// Tokens of Python with every name alike, without strings and comments.
void split_shape(View text, std::vector<Token>& tokens) {
    for (size_t i = 0; i < text.size();) {
        const char c = text[i];
        const size_t begin = i;
        uint64_t hash = 1;
        if (is_space(c)) {
            ++i;
            continue;
        } else if (c == '#') {
            i = comment_end(text, i, true, false);
            continue;
        } else if (c == '"' || c == '\'') {
            const size_t end = string_end(text, i);
            i = end == View::npos ? i + 1 : end;
            continue;
        } else if (is_word(c)) {
            while (i < text.size() && is_word(text[i])) ++i;
            const View word = text.substr(begin, i - begin);
            if (is_digit(c) || is_keyword(word)) hash = hash_word(word);
        } else {
            hash = mix(static_cast<unsigned char>(c) + 2);
            ++i;
        }
        tokens.push_back({hash, static_cast<uint32_t>(begin), static_cast<uint32_t>(i)});
    }
}

class GramSearch {
  public:
    using Found = std::tuple<uint32_t, size_t, size_t, size_t, size_t>;

    GramSearch(size_t n, const std::vector<std::string>& patterns, bool shape)
        : n_(n), shape_(shape), bloom_(count(n, patterns, shape)) {
        if (n == 0) throw std::invalid_argument("runs of no tokens");
        std::vector<uint64_t> grams;
        for (uint32_t number = 0; number < patterns.size(); ++number) {
            const std::vector<Token> tokens = split(patterns[number], shape);
            hash_grams(tokens, grams);
            sizes_.push_back(tokens.size());
            const std::unordered_set<uint64_t> different(grams.begin(), grams.end());
            totals_.push_back(different.size());
            for (uint64_t gram : different) {
                bloom_.add(gram);
                table_[gram].push_back(number);
            }
        }
    }

    std::vector<Found> find(View text) const {
        if (text.size() > UINT32_MAX) throw std::invalid_argument("a text above 4 GB");
        const std::vector<Token> tokens = split(text, shape_);
        std::unordered_map<uint32_t, std::vector<std::pair<size_t, uint64_t>>> hits;
        const auto look = [&](size_t at, uint64_t gram) {
            if (!bloom_.may_hold(gram)) return;
            const auto entry = table_.find(gram);
            if (entry == table_.end()) return;
            for (uint32_t number : entry->second) hits[number].emplace_back(at, gram);
        };
        each_gram(tokens, look);
        std::vector<Found> found;
        for (const auto& [number, list] : hits) found.push_back(densest(number, list, tokens));
        std::sort(found.begin(), found.end());
        return found;
    }

  private:
    static std::vector<Token> split(View text, bool shape) {
        std::vector<Token> tokens;
        tokens.reserve(text.size() / 4);
        shape ? split_shape(text, tokens) : split_words(text, tokens);
        return tokens;
    }

    static size_t count(size_t n, const std::vector<std::string>& patterns, bool shape) {
        size_t total = 1;
        for (const std::string& pattern : patterns) {
            const size_t size = split(pattern, shape).size();
            total += size >= n ? size - n + 1 : 0;
        }
        return total;
    }

    // A polynomial over n tokens, rolled on: two multiplications a token for any n.
    template <typename Look>
    void each_gram(const std::vector<Token>& tokens, Look look) const {
        constexpr uint64_t base = 0x9e3779b97f4a7c15ull | 1;
        uint64_t hash = 0, leaving = 1;
        for (size_t i = 0; i < n_; ++i) leaving *= base;
        for (size_t i = 0; i < tokens.size(); ++i) {
            hash = hash * base + tokens[i].hash;
            if (i >= n_) hash -= leaving * tokens[i - n_].hash;
            if (i + 1 >= n_) look(i + 1 - n_, mix(hash));
        }
    }

    void hash_grams(const std::vector<Token>& tokens, std::vector<uint64_t>& grams) const {
        grams.clear();
        each_gram(tokens, [&](size_t, uint64_t gram) { grams.push_back(gram); });
    }

    // The stretch of at most twice the pattern's length that holds most of its different grams.
    Found densest(uint32_t number, const std::vector<std::pair<size_t, uint64_t>>& list,
                  const std::vector<Token>& tokens) const {
        const size_t width = 2 * sizes_[number];
        std::unordered_map<uint64_t, size_t> inside;
        size_t first = 0, best = 0, best_first = 0, best_last = 0;
        for (size_t last = 0; last < list.size(); ++last) {
            ++inside[list[last].second];
            while (list[last].first - list[first].first > width) {
                const auto entry = inside.find(list[first++].second);
                if (--entry->second == 0) inside.erase(entry);
            }
            if (inside.size() > best) {
                best = inside.size();
                best_first = first;
                best_last = last;
            }
        }
        return {number, best, totals_[number], tokens[list[best_first].first].begin,
                tokens[list[best_last].first + n_ - 1].end};
    }

    size_t n_;
    bool shape_;
    Bloom bloom_;
    std::vector<size_t> sizes_, totals_;
    std::unordered_map<uint64_t, std::vector<uint32_t>> table_;
};

}  // namespace

PYBIND11_MODULE(_multi_search, module) {
    module.def(
        "normalise",
        [](View text, bool hash, bool slash) {
            std::string result;
            normalise_into(text, hash, slash, result, nullptr);
            return py::bytes(result);
        },
        py::arg("text"), py::arg("hash"), py::arg("slash"));
    py::class_<StringSearch>(module, "StringSearch")
        .def(py::init<std::vector<std::string>>(), py::arg("patterns"))
        .def("find", &StringSearch::find, py::arg("text"))
        .def("find_normalised", &StringSearch::find_normalised, py::arg("text"), py::arg("hash"), py::arg("slash"));
    py::class_<GramSearch>(module, "GramSearch")
        .def(py::init<size_t, const std::vector<std::string>&, bool>(), py::arg("n"), py::arg("patterns"),
             py::arg("shape"))
        .def("find", &GramSearch::find, py::arg("text"));
}
