// Python module megatron.curation._minhash: shingles of texts, their MinHash signatures, and union-find.
//
// A text is cut into tokens, and every n consecutive tokens are a shingle; a text is the set of its shingles. With
// h_i, i = 1 … P, random functions of shingles, the signature is (min over the set of h_1, …, of h_P), and
//
//     P(min h_i of A = min h_i of B) = |A ∩ B| / |A ∪ B| = J(A, B)         (Broder, 1997).
//
// A token's hash is FNV-1a with a finisher, a shingle's a polynomial of its tokens' hashes, finished by murmur's fmix64.
// Of its high 32 bits x, h_i = ((x a_i + b_i) ^ ((x a_i + b_i) >> 15)) c_i mod 2^32 with odd a_i and c_i: one multiplication alone
// is measurably worse than theory, two with a shift between are not. 8 (AVX2) or 16 (AVX-512) functions go in one instruction.
//
// Tokens, by mode:
//   0 lexical   runs of letters, digits and _; of what is not ASCII, U+00C0 to U+1FFF are letters, and from U+2E80 on
//               every character is a token, since those scripts have no blanks; all else separates
//   1 bigcode   what re.split("[^A-Za-z_0-9]", text) gives, empty strings and all: every other character separates

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

namespace {

constexpr uint64_t kFnvOffset = 0xcbf29ce484222325ull, kFnvPrime = 0x100000001b3ull;
constexpr uint64_t kShingleFactor = 0x9e3779b97f4a7c15ull;  // odd
constexpr int kBlock = 32;  // functions whose minima stay in registers

uint64_t mix(uint64_t x) {
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ull;
    return x ^ (x >> 33);
}

uint64_t split_mix(uint64_t& state) { return mix(state += 0x9e3779b97f4a7c15ull); }

struct WordTable {
    bool is_word[256] = {};
    WordTable() {
        for (int c = 0; c < 128; ++c) {
            is_word[c] = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
        }
    }
};
const WordTable kWords;

class Shingler {
  public:
    Shingler(int mode, int ngram) : mode_(mode), ngram_(ngram) {
        if (mode < 0 || mode > 1) throw std::invalid_argument("minhash: mode is 0 or 1");
        if (ngram < 1 || ngram > 64) throw std::invalid_argument("minhash: shingles of 1 to 64 tokens");
    }

    // The distinct shingles of a text, in the order they first stand in it.
    const std::vector<uint64_t>& shingles(const char* text, size_t size) {
        tokens_.clear();
        const auto* bytes = reinterpret_cast<const unsigned char*>(text);
        if (mode_ == 1) {
            split_as_bigcode(bytes, size);
        } else {
            split_words(bytes, size);
        }
        distinct_.clear();
        const size_t n = ngram_;
        if (tokens_.size() < n) return distinct_;
        start_set(tokens_.size() - n + 1);
        for (size_t i = 0; i + n <= tokens_.size(); ++i) {
            uint64_t sum = 0;
            for (size_t k = 0; k < n; ++k) sum = (sum + tokens_[i + k]) * kShingleFactor;
            insert(mix(sum));
        }
        return distinct_;
    }

    size_t num_tokens() const { return tokens_.size(); }

  private:
    void split_as_bigcode(const unsigned char* text, size_t size) {
        uint64_t hash = kFnvOffset;
        for (size_t i = 0; i < size; ++i) {
            const unsigned char c = text[i];
            if (kWords.is_word[c]) {
                hash = (hash ^ c) * kFnvPrime;
            } else if ((c & 0xC0) != 0x80) {  // one for each character, however many bytes it has
                tokens_.push_back(mix(hash));
                hash = kFnvOffset;
            }
        }
        tokens_.push_back(mix(hash));
    }

    void split_words(const unsigned char* text, size_t size) {
        uint64_t hash = kFnvOffset;
        bool is_open = false;
        const auto close = [&] {
            if (is_open) tokens_.push_back(mix(hash));
            hash = kFnvOffset;
            is_open = false;
        };
        for (size_t i = 0; i < size;) {
            const unsigned char c = text[i];
            if (c < 0x80) {
                if (kWords.is_word[c]) {
                    hash = (hash ^ c) * kFnvPrime;
                    is_open = true;
                } else {
                    close();
                }
                ++i;
                continue;
            }
            const size_t length = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
            uint32_t code = c & (0xFF >> (length + 1));
            for (size_t k = 1; k < length && i + k < size; ++k) code = (code << 6) | (text[i + k] & 0x3F);
            const bool is_letter = code >= 0xC0 && code < 0x2000 && code != 0xD7 && code != 0xF7;
            const bool is_alone = code >= 0x2E80 && !(code >= 0x3000 && code < 0x3040) && !(code >= 0xFE00 && code < 0xFF10);
            if (!is_letter) close();
            if (is_letter || is_alone) {
                for (size_t k = 0; k < length && i + k < size; ++k) hash = (hash ^ text[i + k]) * kFnvPrime;
                is_open = true;
            }
            if (is_alone) close();
            i += length;
        }
        close();
    }

    void start_set(size_t most) {
        size_t size = 64;
        while (size < 2 * most) size *= 2;
        if (table_.size() < size || table_.size() > 64 * size) {
            table_.assign(size, 0);
        } else {
            size = table_.size();
            std::fill(table_.begin(), table_.end(), 0);
        }
        mask_ = size - 1;
        has_zero_ = false;
    }

    void insert(uint64_t value) {
        if (value == 0) {
            if (!has_zero_) distinct_.push_back(0);
            has_zero_ = true;
            return;
        }
        size_t place = value & mask_;
        while (table_[place] != 0) {
            if (table_[place] == value) return;
            place = (place + 1) & mask_;
        }
        table_[place] = value;
        distinct_.push_back(value);
    }

    int mode_;
    size_t ngram_;
    std::vector<uint64_t> tokens_, distinct_, table_;
    size_t mask_ = 0;
    bool has_zero_ = false;
};

// Minima of kBlock functions over all shingles.
FOR_EACH_PROCESSOR
void minima_of_block(const uint32_t* shingles, size_t count, const uint32_t* a, const uint32_t* b, const uint32_t* c,
                     uint32_t* minima) {
    uint32_t least[kBlock];
    for (int i = 0; i < kBlock; ++i) least[i] = UINT32_MAX;
    for (size_t s = 0; s < count; ++s) {
        const uint32_t x = shingles[s];
        for (int i = 0; i < kBlock; ++i) {
            uint32_t y = x * a[i] + b[i];
            y = (y ^ (y >> 15)) * c[i];
            least[i] = y < least[i] ? y : least[i];
        }
    }
    std::memcpy(minima, least, sizeof(least));
}

struct Functions {
    std::vector<uint32_t> a, b, c;
    Functions(size_t count, uint64_t seed) : a(count), b(count), c(count) {
        for (size_t i = 0; i < count; ++i) {
            a[i] = static_cast<uint32_t>(split_mix(seed)) | 1;
            b[i] = static_cast<uint32_t>(split_mix(seed));
            c[i] = static_cast<uint32_t>(split_mix(seed)) | 1;
        }
    }
};

struct Text {
    const char* data;
    size_t size;
};

Text utf8_of(py::handle item) {
    Py_ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(item.ptr(), &size);
    if (data == nullptr) throw py::error_already_set();
    return {data, static_cast<size_t>(size)};
}

py::array_t<uint64_t> shingle_hashes(py::str text, int mode, int ngram) {
    Shingler shingler(mode, ngram);
    const Text given = utf8_of(text);
    std::vector<uint64_t> found = shingler.shingles(given.data, given.size);
    std::sort(found.begin(), found.end());
    return py::array_t<uint64_t>(static_cast<py::ssize_t>(found.size()), found.data());
}

py::tuple signatures(py::list texts, int mode, int ngram, size_t num_permutations, uint64_t seed) {
    if (num_permutations == 0 || num_permutations % kBlock != 0) {
        throw std::invalid_argument("minhash: the number of functions is a multiple of 32");
    }
    std::vector<Text> given;
    for (py::handle item : texts) given.push_back(utf8_of(item));
    const auto n = static_cast<py::ssize_t>(given.size());
    py::array_t<uint32_t> result({n, static_cast<py::ssize_t>(num_permutations)});
    py::array_t<uint32_t> counts(n);
    uint32_t* row = result.mutable_data();
    uint32_t* count = counts.mutable_data();
    {
        py::gil_scoped_release release;  // the list holds the texts
        const Functions functions(num_permutations, seed);
        Shingler shingler(mode, ngram);
        std::vector<uint32_t> high;
        for (const Text& text : given) {
            high.clear();
            for (uint64_t shingle : shingler.shingles(text.data, text.size)) high.push_back(shingle >> 32);
            for (size_t i = 0; i < num_permutations; i += kBlock) {
                minima_of_block(high.data(), high.size(), &functions.a[i], &functions.b[i], &functions.c[i], row + i);
            }
            row += num_permutations;
            *count++ = static_cast<uint32_t>(std::min<size_t>(high.size(), UINT32_MAX));
        }
    }
    return py::make_tuple(result, counts);
}

py::array_t<uint64_t> band_keys(py::array_t<uint32_t, py::array::c_style> signatures, size_t bands, size_t rows) {
    const auto view = signatures.unchecked<2>();
    if (bands * rows > static_cast<size_t>(view.shape(1))) throw std::invalid_argument("minhash: more bands x rows than functions");
    py::array_t<uint64_t> keys({view.shape(0), static_cast<py::ssize_t>(bands)});
    uint64_t* key = keys.mutable_data();
    for (py::ssize_t i = 0; i < view.shape(0); ++i) {
        const uint32_t* value = view.data(i, 0);
        for (size_t band = 0; band < bands; ++band) {
            uint64_t hash = mix(band + 1);
            for (size_t row = 0; row < rows; ++row) hash = mix(hash ^ *value++);
            *key++ = hash;
        }
    }
    return keys;
}

int64_t find_root(int64_t* parents, int64_t x) {
    while (parents[x] != x) {
        parents[x] = parents[parents[x]];
        x = parents[x];
    }
    return x;
}

void unite(py::array_t<int64_t> parents, py::array_t<int64_t> first, py::array_t<int64_t> second) {
    auto tree = parents.mutable_unchecked<1>();
    const auto a = first.unchecked<1>();
    const auto b = second.unchecked<1>();
    const int64_t size = tree.shape(0);
    if (a.shape(0) != b.shape(0)) throw std::invalid_argument("unite: pairs of different number");
    int64_t* data = tree.mutable_data(0);
    for (py::ssize_t i = 0; i < a.shape(0); ++i) {
        if (a(i) < 0 || a(i) >= size || b(i) < 0 || b(i) >= size) throw std::invalid_argument("unite: no such element");
        const int64_t x = find_root(data, a(i)), y = find_root(data, b(i));
        data[std::max(x, y)] = std::min(x, y);
    }
}

py::array_t<int64_t> roots(py::array_t<int64_t> parents, py::array_t<int64_t> elements) {
    auto tree = parents.mutable_unchecked<1>();
    const auto given = elements.unchecked<1>();
    py::array_t<int64_t> found(given.shape(0));
    int64_t* out = found.mutable_data();
    for (py::ssize_t i = 0; i < given.shape(0); ++i) {
        if (given(i) < 0 || given(i) >= tree.shape(0)) throw std::invalid_argument("roots: no such element");
        out[i] = find_root(tree.mutable_data(0), given(i));
    }
    return found;
}

}  // namespace

PYBIND11_MODULE(_minhash, module) {
    module.doc() = "MinHash and union-find for megatron.curation.";
    module.def("shingle_hashes", &shingle_hashes, py::arg("text"), py::arg("mode"), py::arg("ngram"),
               "Give the 64-bit hashes of a text's distinct shingles, sorted.");
    module.def("signatures", &signatures, py::arg("texts"), py::arg("mode"), py::arg("ngram"),
               py::arg("num_permutations"), py::arg("seed"),
               "Give (signatures uint32 [n, num_permutations], distinct shingles of each uint32 [n]).");
    module.def("band_keys", &band_keys, py::arg("signatures"), py::arg("bands"), py::arg("rows"),
               "Give a key for each band of rows of each signature, uint64 [n, bands].");
    module.def("unite", &unite, py::arg("parents").noconvert(), py::arg("first"), py::arg("second"),
               "Join the trees of each pair in parents int64, in place; the root is the least element.");
    module.def("roots", &roots, py::arg("parents").noconvert(), py::arg("elements"), "Give the root of each element.");
}
