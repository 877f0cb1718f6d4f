// Python module megatron.curation._pii_scan: where personal data may stand, in one pass over the bytes of a text.
//
// PiiScan(prefixes).find(text): (kind, begin, end), in characters, in the order of their begin, of
//   kPrefix: one of the prefixes, where no ASCII word character stands before it; the end is that of the prefix
//   kWord: 16 to 128 characters of base64 and its URL form, not all of one kind, that change between digits, capitals
//     and small letters at least every sixth character; up to two `=` behind them belong to it
//   kIpv4: an address of four numbers, if the first one does not tell that no machine has it for all to see
//   kIpv6: four hexadecimal digits, the first a 2 or 3, before a colon; the end is that of the digits
// Whoever asks looks at each place more closely: this says "no" to nearly all of a text, never to what is one.
//
// WordMeasure(common_pairs).of(word): how many bytes it has, digits, capitals and small letters; changes, the part of
//   neighbours that are of two of these kinds; entropy, Shannon's in bits; pairs of letters, and common ones, which were
//   given. What is not ASCII is a letter.
//
// unreadable(word): the part of the bytes that a word of base64 stands for which are no ASCII text; the least of those
//   read from its first, second, third and fourth character.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace py = pybind11;

namespace {

using View = std::string_view;
enum Kind : int { kPrefix, kWord, kIpv4, kIpv6 };
constexpr size_t kMinWord = 16, kMaxWord = 128, kCharsForChange = 6;

// Classes of bytes. What is not ASCII may be a letter or a sign: whoever asks tells.
enum Class : uint8_t { kOther, kDigit, kUpper, kLower, kUnder, kBase64, kHigh };

constexpr std::array<uint8_t, 256> make_classes() {
    std::array<uint8_t, 256> classes{};
    for (int c = '0'; c <= '9'; ++c) classes[c] = kDigit;
    for (int c = 'A'; c <= 'Z'; ++c) classes[c] = kUpper;
    for (int c = 'a'; c <= 'z'; ++c) classes[c] = kLower;
    for (int c = 128; c < 256; ++c) classes[c] = kHigh;
    classes['_'] = kUnder;
    for (char c : {'+', '/', '-'}) classes[static_cast<uint8_t>(c)] = kBase64;
    return classes;
}
constexpr auto kClasses = make_classes();

uint8_t class_of(char c) { return kClasses[static_cast<uint8_t>(c)]; }
bool is_digit(char c) { return class_of(c) == kDigit; }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }
bool is_word(char c) {
    const uint8_t one = class_of(c);
    return one >= kDigit && one <= kUnder;
}

struct Place {
    Kind kind;
    size_t begin, end;
};

// Behind an IPv4 address that begins at a place; the place itself if none does, or one of 0., 10., 127., and 224. on:
// this machine, private ones, groups of them.
size_t ipv4_end(View text, size_t place) {
    size_t i = place;
    for (int part = 0; part < 4; ++part) {
        size_t digits = 0, number = 0;
        for (; i < text.size() && is_digit(text[i]) && digits <= 3; ++i, ++digits) number = number * 10 + (text[i] - '0');
        const bool has_zero = digits > 1 && text[i - digits] == '0';
        if (digits == 0 || digits > 3 || number > 255 || has_zero) return place;
        if (part == 0 && (number == 0 || number == 10 || number == 127 || number >= 224)) return place;
        if (part < 3 && (i >= text.size() || text[i++] != '.')) return place;
    }
    const bool goes_on = i < text.size() && (is_word(text[i]) || (text[i] == '.' && i + 1 < text.size() && is_digit(text[i + 1])));
    return goes_on ? place : i;
}

class PiiScan {
  public:
    explicit PiiScan(std::vector<std::string> prefixes) {
        for (std::string& prefix : prefixes) {
            prefixes_[static_cast<uint8_t>(prefix.at(0))].push_back(std::move(prefix));
        }
    }

    std::vector<Place> find(View text) const {
        std::vector<Place> found;
        size_t i = 0;
        while (i < text.size()) {
            const uint8_t first = class_of(text[i]);
            if (first == kOther || first == kHigh) {
                ++i;
                continue;
            }
            i = look_at_word(text, i, found);
        }
        std::stable_sort(found.begin(), found.end(), [](const Place& a, const Place& b) { return a.begin < b.begin; });
        to_characters(text, found);
        return found;
    }

  private:
    // Look at the run of base64 characters that begins at a place, and give its end.
    size_t look_at_word(View text, size_t begin, std::vector<Place>& found) const {
        std::array<size_t, 8> counts{};
        size_t changes = 0, i = begin;
        uint8_t last = kOther;
        for (; i < text.size(); ++i) {
            const uint8_t one = class_of(text[i]);
            if (one == kOther || one == kHigh) break;
            ++counts[one];
            if (one != last) {
                const bool is_boundary = (last == kOther || last == kBase64) && !(i > 0 && is_word(text[i - 1]));
                if (is_boundary) look_at_start(text, i, found);
                changes += last != kOther && one <= kLower && last <= kLower;
                last = one;
            }
        }
        const size_t size = i - begin;
        const size_t letters = counts[kUpper] + counts[kLower];
        if (size >= kMinWord && size <= kMaxWord && counts[kDigit] > 0 && letters > 0 && changes * kCharsForChange >= size) {
            size_t end = i;
            for (int k = 0; k < 2 && end < text.size() && text[end] == '='; ++k) ++end;
            found.push_back({kWord, begin, end});
        }
        if (size >= 4 && i < text.size() && text[i] == ':' && (text[i - 4] == '2' || text[i - 4] == '3') &&
            (size == 4 || !is_word(text[i - 5])) && std::all_of(text.begin() + (i - 4), text.begin() + i, is_hex)) {
            found.push_back({kIpv6, i - 4, i});
        }
        return i;
    }

    // Look at what begins where no word character stands before.
    void look_at_start(View text, size_t place, std::vector<Place>& found) const {
        for (const std::string& prefix : prefixes_[static_cast<uint8_t>(text[place])]) {
            if (text.compare(place, prefix.size(), prefix) == 0) {
                found.push_back({kPrefix, place, place + prefix.size()});
            }
        }
        if (is_digit(text[place]) && !(place > 0 && text[place - 1] == '.')) {
            const size_t end = ipv4_end(text, place);
            if (end != place) found.push_back({kIpv4, place, end});
        }
    }

    static void to_characters(View text, std::vector<Place>& found) {
        size_t done = 0, hidden = 0;  // bytes looked at, and those of them that continue a character
        for (Place& place : found) {
            for (; done < place.begin; ++done) hidden += (static_cast<uint8_t>(text[done]) & 0xc0) == 0x80;
            place.begin -= hidden;  // what is found is ASCII itself
            place.end -= hidden;
        }
    }

    std::array<std::vector<std::string>, 256> prefixes_;
};

struct Measured {
    size_t size = 0, digits = 0, capitals = 0, small = 0;
    double changes = 0, entropy = 0;
    size_t pairs = 0, common = 0;
};

class WordMeasure {
  public:
    explicit WordMeasure(const std::vector<std::string>& common_pairs) {
        for (const std::string& pair : common_pairs) common_.at(place(pair.at(0), pair.at(1))) = true;
    }

    Measured of(View word) const {
        Measured found;
        std::array<uint32_t, 256> counts{};
        size_t changes = 0;
        uint8_t before = kOther;
        for (size_t i = 0; i < word.size(); ++i) {
            const uint8_t one = class_of(word[i]);
            found.digits += one == kDigit;
            found.capitals += one == kUpper;
            found.small += one == kLower;
            ++counts[static_cast<uint8_t>(word[i])];
            changes += is_kind(one) && is_kind(before) && one != before;
            if (is_letter(one) && is_letter(before)) {
                ++found.pairs;
                found.common += one != kHigh && before != kHigh && common_[place(word[i - 1], word[i])];
            }
            before = one;
        }
        found.size = word.size();
        const double size = static_cast<double>(word.size());
        if (word.size() > 1) found.changes = changes / (size - 1);
        for (const uint32_t count : counts) {
            if (count) found.entropy -= count / size * std::log2(count / size);
        }
        return found;
    }

  private:
    static bool is_kind(uint8_t one) { return one == kDigit || one == kUpper || one == kLower; }
    static bool is_letter(uint8_t one) { return one == kUpper || one == kLower || one == kHigh; }
    static size_t place(char first, char second) { return ((first | 0x20) - 'a') * 26 + ((second | 0x20) - 'a'); }

    std::array<bool, 26 * 26> common_{};
};

uint32_t base64_value(char c) {
    switch (class_of(c)) {
        case kUpper: return c - 'A';
        case kLower: return c - 'a' + 26;
        case kDigit: return c - '0' + 52;
        default: return c == '+' || c == '-' ? 62 : 63;
    }
}

double unreadable(View word) {
    while (!word.empty() && word.back() == '=') word.remove_suffix(1);
    double least = 1;
    for (size_t first = 0; first < 4 && first + 4 <= word.size(); ++first) {
        size_t bytes = 0, others = 0;
        for (size_t i = first; i + 4 <= word.size(); i += 4, bytes += 3) {
            uint32_t group = 0;
            for (size_t k = 0; k < 4; ++k) group = group << 6 | base64_value(word[i + k]);
            for (int shift = 16; shift >= 0; shift -= 8) {
                const uint8_t byte = group >> shift & 255;
                others += !((byte >= 32 && byte < 127) || byte == '\t' || byte == '\n' || byte == '\r');
            }
        }
        least = std::min(least, static_cast<double>(others) / bytes);
    }
    return least;
}

}  // namespace

PYBIND11_MODULE(_pii_scan, module) {
    module.doc() = "Places of possible personal data for megatron.curation.";
    py::class_<PiiScan>(module, "PiiScan")
        .def(py::init<std::vector<std::string>>(), py::arg("prefixes"))
        .def("find",
             [](const PiiScan& scan, const py::bytes& text) {
                 py::list places;
                 for (const Place& place : scan.find(View(text))) {
                     places.append(py::make_tuple(static_cast<int>(place.kind), place.begin, place.end));
                 }
                 return places;
             },
             py::arg("text"), "Give (kind, begin, end) in characters of the text, which is UTF-8.");
    py::class_<Measured>(module, "Measured")
        .def_readonly("size", &Measured::size)
        .def_readonly("digits", &Measured::digits)
        .def_readonly("capitals", &Measured::capitals)
        .def_readonly("small", &Measured::small)
        .def_readonly("changes", &Measured::changes)
        .def_readonly("entropy", &Measured::entropy)
        .def_readonly("pairs", &Measured::pairs)
        .def_readonly("common", &Measured::common);
    py::class_<WordMeasure>(module, "WordMeasure")
        .def(py::init<const std::vector<std::string>&>(), py::arg("common_pairs"))
        .def("of", &WordMeasure::of, py::arg("word"));
    module.def("unreadable", &unreadable, py::arg("word"));
}
