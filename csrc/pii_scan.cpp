// Python module megatron.curation._pii_scan: where personal data may stand, in one pass over the bytes of a text.
//
// PiiScan(prefixes).find(text): (kind, begin, end), in characters, in the order of their begin, of
//   kPrefix: one of the prefixes, where no ASCII word character stands before it; the end is that of the prefix
//   kWord: 16 to 128 characters of base64 and its URL form, not all of one kind, that change between digits, capitals
//     and small letters at least every sixth character; up to two `=` behind them belong to it
//   kIpv4: four numbers of up to three digits with dots between
//   kIpv6: four hexadecimal digits, the first a 2 or 3, before a colon; the end is that of the digits
// Whoever asks looks at each place more closely: this says "no" to nearly all of a text, never to what is one.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
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

// Behind an IPv4 address that begins at a place; the place itself if none does.
size_t ipv4_end(View text, size_t place) {
    size_t i = place;
    for (int part = 0; part < 4; ++part) {
        size_t digits = 0;
        while (i < text.size() && is_digit(text[i])) ++i, ++digits;
        if (digits == 0 || digits > 3) return place;
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
}
