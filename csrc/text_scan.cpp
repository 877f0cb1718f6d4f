// Python module megatron.curation._text_scan: passes over a text that regular expressions take ten times as long for.
//
// visible_text: what an HTML page shows: no tags, comments, declarations, and nothing inside script and style. A `<`
//   that begins none of these is text. Entities are left as they are.
// encoded_runs: (sum, longest) of the runs of encoded data, in characters: base64 (64 or more characters of its alphabet,
//   line after line), pairs of hexadecimal digits (8 or more, with 0x or \x or without, apart or not), and 8 or more
//   \uXXXX. A character belongs to one run only.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

namespace py = pybind11;

namespace {

constexpr size_t kBase64Line = 64, kItems = 8;
constexpr size_t kTag = 1024;  // bytes of a tag outside of quotes: with more, quotes tell nothing
constexpr size_t kNone = std::string_view::npos;

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }
bool is_base64(char c) { return is_letter(c) || is_digit(c) || c == '+' || c == '/'; }
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

bool begins_with(std::string_view text, size_t place, std::string_view word) {
    if (text.size() - place < word.size()) return false;
    for (size_t i = 0; i < word.size(); ++i) {
        if (lower(text[place + i]) != word[i]) return false;
    }
    return true;
}

// Behind the `>` that ends the tag which begins at a place; one inside of quotes does not. kNone if it never ends.
size_t tag_end(std::string_view text, size_t place) {
    for (size_t i = place, count = 0; i < text.size() && count < kTag; ++i, ++count) {
        const char c = text[i];
        if (c == '>') return i + 1;
        if (c == '"' || c == '\'') {
            const size_t close = text.find(c, i + 1);
            if (close == kNone) break;  // a quote that is never closed is none
            i = close;
        }
    }
    const size_t end = text.find('>', place);
    return end == kNone ? kNone : end + 1;
}

// Behind the closing tag of an element that shows nothing.
size_t element_end(std::string_view text, size_t place, std::string_view closing) {
    for (size_t i = place; (i = text.find("</", i)) != kNone; ++i) {
        if (begins_with(text, i, closing)) {
            const size_t end = text.find('>', i);
            return end == kNone ? text.size() : end + 1;
        }
    }
    return text.size();
}

// Behind what begins with the `<` at a place and shows nothing; the place itself if it is text. last: where the last `>`
// of the text stands, since behind it nothing but a comment begins, and none needs to be looked for.
size_t hidden_end(std::string_view text, size_t place, size_t last) {
    if (place + 1 >= text.size()) return place;
    const char next = text[place + 1];
    if (next == '!' && text.compare(place, 4, "<!--") == 0) {
        const size_t end = text.find("-->", place + 4);
        return end == kNone ? text.size() : end + 3;
    }
    if (last == kNone || place > last) return place;
    if (next == '!' || next == '?') {
        const size_t end = text.find('>', place);
        return end == kNone ? place : end + 1;
    }
    const bool is_closing = next == '/' && place + 2 < text.size() && is_letter(text[place + 2]);
    if (!is_letter(next) && !is_closing) return place;
    const size_t end = tag_end(text, place + 1);
    if (end == kNone) return place;
    for (const auto& [name, closing] : {std::pair{"<script", "</script"}, std::pair{"<style", "</style"}}) {
        const size_t behind = place + std::strlen(name);
        if (begins_with(text, place, name) && behind < text.size() && !is_letter(text[behind]) && !is_digit(text[behind])) {
            return element_end(text, end, closing);
        }
    }
    return end;
}

std::string visible(std::string_view text) {
    std::string shown;
    shown.reserve(text.size());
    const size_t last = text.rfind('>');
    size_t place = 0;
    while (place < text.size()) {
        size_t open = text.find('<', place);
        if (open == kNone) open = text.size();
        shown.append(text, place, open - place);
        if (open == text.size()) break;
        place = hidden_end(text, open, last);
        if (place == open) {
            shown.push_back('<');
            ++place;
        }
    }
    return shown;
}

size_t base64_end(std::string_view text, size_t place) {
    size_t i = place, end = place;
    while (true) {
        const size_t line = i;
        while (i < text.size() && is_base64(text[i])) ++i;
        if (i - line < kBase64Line) break;
        end = i;
        while (i < text.size() && (text[i] == '\n' || text[i] == '\r')) ++i;
        if (i == end) break;
    }
    for (int k = 0; k < 2 && end > place && end < text.size() && text[end] == '='; ++k) ++end;
    return end;
}

size_t hex_item_end(std::string_view text, size_t place) {
    size_t i = place;
    if (i + 1 < text.size() && (text[i] == '0' || text[i] == '\\') && text[i + 1] == 'x') i += 2;
    if (i + 1 >= text.size() || !is_hex(text[i]) || !is_hex(text[i + 1])) return place;
    i += 2;
    if (i < text.size() && (text[i] == ',' || text[i] == ' ')) {
        ++i;
        while (i < text.size() && (text[i] == ' ' || text[i] == '\t' || text[i] == '\n' || text[i] == '\r')) ++i;
    }
    return i;
}

size_t unicode_item_end(std::string_view text, size_t place) {
    if (text.size() - place < 6 || text[place] != '\\' || text[place + 1] != 'u') return place;
    for (size_t i = 2; i < 6; ++i) {
        if (!is_hex(text[place + i])) return place;
    }
    return place + 6;
}

template <typename ItemEnd>
size_t run_end(std::string_view text, size_t place, ItemEnd item_end) {
    size_t i = place, items = 0;
    for (size_t next; i < text.size() && (next = item_end(text, i)) != i; ++items) i = next;
    return items >= kItems ? i : place;
}

std::pair<size_t, size_t> runs(std::string_view text) {
    size_t sum = 0, longest = 0, i = 0;
    while (i < text.size()) {
        const char c = text[i];
        size_t end = i;
        if (is_base64(c)) {
            size_t word = i;
            while (word < text.size() && is_base64(text[word])) ++word;
            if (word - i >= kBase64Line) end = base64_end(text, i);
            if (end == i && is_hex(c) && (i == 0 || text[i - 1] != '_')) end = run_end(text, i, hex_item_end);
            if (end == i) {
                i = word;  // runs begin where words do: digits inside of a longer word are a name's
                continue;
            }
        } else if (c == '\\') {
            end = run_end(text, i, unicode_item_end);
            if (end == i) end = run_end(text, i, hex_item_end);
        }
        if (end == i) {
            ++i;
            continue;
        }
        sum += end - i;
        longest = std::max(longest, end - i);
        i = end;
    }
    return {sum, longest};
}

std::string_view utf8_of(py::handle text) {
    Py_ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (data == nullptr) throw py::error_already_set();
    return {data, static_cast<size_t>(size)};
}

}  // namespace

PYBIND11_MODULE(_text_scan, module) {
    module.doc() = "Passes over a text for megatron.curation.";
    module.def("visible_text", [](py::str text) { return visible(utf8_of(text)); }, py::arg("text"),
               "Give what an HTML page shows, entities as they stand.");
    module.def("encoded_runs", [](py::str text) { const auto [sum, longest] = runs(utf8_of(text));
                                                  return py::make_tuple(sum, longest); },
               py::arg("text"), "Give (sum, longest) of the runs of base64, hexadecimal and \\u data.");
}
