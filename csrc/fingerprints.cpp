// Python module megatron.attribution._fingerprints: normalised text, its winnowed fingerprints, and a Bloom filter of them.
//
// Normalised text: every run of blanks (space, \t, \n, \v, \f, \r) is one space; all other bytes are as they are.
// With its bytes c_0 … c_{n-1}, every k of them in a row are a gram with the hash
//
//     g_i = fmix64(sum_j (c_{i+j} + 1) B^{k-1-j} mod 2^64)
//
// and of every w grams in a row the one of least hash is a fingerprint, of equal ones the last (Schleimer et al., 2003).
// Two texts that share w + k - 1 bytes share a window of w grams, and with it a fingerprint, wherever it stands in them.
//
// The filter is blocked: a key has one block of 4,096 bits, which lies in one page of a file, and sets `probes` of its
// bits, 12 bits of hash each. A fingerprint is the least of w, so it is mixed again before it says anything. Keys may be
// added from many threads at once.
//
// Tokens are turned to bytes by Spelling, whose sentinels are a newline each: no run of text goes through one.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace py = pybind11;

namespace {

constexpr uint64_t kBase = 0x9e3779b97f4a7c15ull;  // odd
constexpr int kWords = 64;  // of a block
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

uint64_t mix(uint64_t x) {
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ull;
    return x ^ (x >> 33);
}

bool is_blank(unsigned char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Passes on the bytes of normalised text one by one.
class Normaliser {
  public:
    void clear() { in_blanks_ = false; }
    template <typename Sink>
    void add(std::string_view bytes, Sink sink) {
        for (char c : bytes) {
            const bool blank = is_blank(static_cast<unsigned char>(c));
            if (!blank) {
                sink(c);
            } else if (!in_blanks_) {
                sink(' ');
            }
            in_blanks_ = blank;
        }
    }

  private:
    bool in_blanks_ = false;
};

// The hash of the last k bytes, as bytes come.
class RollingHash {
  public:
    explicit RollingHash(size_t gram) : last_(gram) {
        for (size_t i = 0; i < gram; ++i) leading_ *= kBase;
    }
    void clear() {
        std::fill(last_.begin(), last_.end(), 0);
        sum_ = 0;
        place_ = 0;
    }
    uint64_t add(char byte) {
        const uint64_t value = static_cast<uint64_t>(static_cast<unsigned char>(byte)) + 1;
        sum_ = sum_ * kBase + value - last_[place_] * leading_;
        last_[place_] = value;
        if (++place_ == last_.size()) place_ = 0;
        return mix(sum_);
    }

  private:
    std::vector<uint64_t> last_;
    uint64_t leading_ = 1, sum_ = 0;
    size_t place_ = 0;
};

// Which gram each window chooses. A gram's hash is read by its place, no farther back than the window.
struct Chooser {
    size_t window, best = 0;
    // Say whether the window that ends in gram i chooses another one than the window before; the choice is `best`.
    template <typename HashAt>
    bool step(size_t i, HashAt hash) {
        bool is_new = i + 1 == window;
        if (i == 0) {
            best = 0;
        } else if (hash(i) <= hash(best)) {
            best = i;
            is_new = true;
        } else if (best + window <= i) {
            best = i + 1 - window;
            for (size_t j = best + 1; j <= i; ++j) {
                if (hash(j) <= hash(best)) best = j;
            }
            is_new = true;
        }
        return is_new && i + 1 >= window;
    }
};

uint64_t block_of(uint64_t key, uint64_t num_blocks) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(mix(key ^ 0xa0761d6478bd642full)) * num_blocks) >> 64);
}

// The bits of a key in its block, one after the other.
class Probes {
  public:
    explicit Probes(uint64_t key) : state_(key) {}
    unsigned next() {
        if (left_ == 0) {
            word_ = mix(state_ += 0xe7037ed1a0b428dbull);
            left_ = 5;
        }
        const unsigned bit = word_ & 4095;
        word_ >>= 12;
        --left_;
        return bit;
    }

  private:
    uint64_t state_, word_ = 0;
    int left_ = 0;
};

void check_filter(const py::buffer_info& blocks, int probes) {
    if (blocks.ndim != 2 || blocks.shape[1] != kWords || blocks.shape[0] == 0) {
        throw std::invalid_argument("fingerprints: a filter is uint64 [blocks, 64]");
    }
    if (probes < 1 || probes > 64) throw std::invalid_argument("fingerprints: 1 to 64 probes");
}

template <typename T>
py::array_t<T> as_array(const std::vector<T>& values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

class Spelling {
  public:
    Spelling(const std::vector<std::string>& tokens, const std::vector<bool>& is_sentinel) {
        if (tokens.size() != is_sentinel.size()) throw std::invalid_argument("Spelling: lists of different length");
        offsets_.push_back(0);
        for (size_t i = 0; i < tokens.size(); ++i) {
            bytes_ += is_sentinel[i] ? "\n" : tokens[i];
            offsets_.push_back(bytes_.size());
        }
    }

    size_t size() const { return offsets_.size() - 1; }

    std::string_view of(int64_t token) const {
        if (token < 0 || static_cast<size_t>(token) >= size()) throw py::value_error("id " + std::to_string(token));
        const size_t start = offsets_[token];
        return std::string_view(bytes_).substr(start, offsets_[token + 1] - start);
    }

    template <typename T>
    py::bytes text(Array<T> tokens) const {
        std::string result;
        for (py::ssize_t i = 0; i < tokens.size(); ++i) result += of(tokens.data()[i]);
        return result;
    }

    // Fingerprints of documents that lie back to back and end at `ends`; those equal to the one before are left out.
    template <typename T>
    py::array_t<uint64_t> fingerprints(Array<T> tokens, Array<int64_t> ends, size_t gram, size_t window) const {
        const T* token = tokens.data();
        const int64_t* end = ends.data();
        const int64_t num_tokens = tokens.size(), num_documents = ends.size();
        if (gram == 0 || window == 0) throw std::invalid_argument("fingerprints: gram and window are positive");
        std::vector<uint64_t> found;
        {
            py::gil_scoped_release release;
            size_t ring = 1;
            while (ring <= window) ring *= 2;  // the choice of the window before is looked at once more
            std::vector<uint64_t> recent(ring);  // a document may be longer than memory
            const auto hash = [&](size_t i) { return recent[i & (ring - 1)]; };
            Normaliser normaliser;
            RollingHash rolling(gram);
            int64_t place = 0;
            for (int64_t document = 0; document < num_documents; ++document) {
                if (end[document] < place || end[document] > num_tokens) throw std::invalid_argument("fingerprints: ends");
                normaliser.clear();
                rolling.clear();
                Chooser chooser{window};
                size_t num_bytes = 0;
                const size_t before = found.size();
                const auto keep = [&](uint64_t value) {
                    if (found.size() == before || found.back() != value) found.push_back(value);
                };
                for (; place < end[document]; ++place) {
                    normaliser.add(of(token[place]), [&](char c) {
                        const uint64_t value = rolling.add(c);
                        if (++num_bytes < gram) return;
                        const size_t i = num_bytes - gram;
                        recent[i & (ring - 1)] = value;
                        if (chooser.step(i, hash)) keep(hash(chooser.best));
                    });
                }
                if (num_bytes >= gram && num_bytes - gram + 1 < window) keep(hash(chooser.best));
            }
        }
        return as_array(found);
    }

    // How many bytes of text before `start` and from `stop` on stand also before token `first` and from `last` on,
    // where tokens [low, high) are one document.
    template <typename T>
    py::tuple extend(Array<T> tokens, int64_t first, int64_t last, int64_t low, int64_t high, std::string_view text,
                     int64_t start, int64_t stop) const {
        const int64_t size = static_cast<int64_t>(text.size());
        if (!(0 <= low && low <= first && first <= last && last <= high && high <= tokens.size() && 0 <= start &&
              start <= stop && stop <= size)) {
            throw std::invalid_argument("extend: places out of order");
        }
        const T* token = tokens.data();
        int64_t left = 0, right = 0;
        for (bool is_equal = true; is_equal && first > low;) {
            const std::string_view piece = of(token[--first]);
            for (size_t i = piece.size(); is_equal && i-- > 0;) {
                is_equal = left < start && text[start - left - 1] == piece[i];
                left += is_equal;
            }
        }
        for (bool is_equal = true; is_equal && last < high;) {
            const std::string_view piece = of(token[last++]);
            for (size_t i = 0; is_equal && i < piece.size(); ++i) {
                is_equal = stop + right < size && text[stop + right] == piece[i];
                right += is_equal;
            }
        }
        return py::make_tuple(left, right);
    }

  private:
    std::string bytes_;
    std::vector<size_t> offsets_;
};

py::tuple normalise(py::bytes given) {
    const std::string_view text = given;
    Normaliser normaliser;
    std::string normalised;
    std::vector<int64_t> places;
    for (size_t i = 0; i < text.size(); ++i) {
        normaliser.add(text.substr(i, 1), [&](char c) {
            normalised.push_back(c);
            places.push_back(static_cast<int64_t>(i));
        });
    }
    return py::make_tuple(py::bytes(normalised), as_array(places));
}

py::tuple grams(py::bytes normalised, size_t gram, size_t window) {
    if (gram == 0 || window == 0) throw std::invalid_argument("grams: gram and window are positive");
    const std::string_view text = normalised;
    std::vector<uint64_t> hashes;
    std::vector<int64_t> places;
    RollingHash rolling(gram);
    for (size_t i = 0; i < text.size(); ++i) {
        const uint64_t value = rolling.add(text[i]);
        if (i + 1 >= gram) hashes.push_back(value);
    }
    Chooser chooser{window};
    for (size_t i = 0; i < hashes.size(); ++i) {
        if (chooser.step(i, [&](size_t j) { return hashes[j]; })) places.push_back(static_cast<int64_t>(chooser.best));
    }
    if (!hashes.empty() && hashes.size() < window) places.push_back(static_cast<int64_t>(chooser.best));
    return py::make_tuple(as_array(hashes), as_array(places));
}

void insert(Array<uint64_t> blocks, uint64_t first_block, uint64_t num_blocks, int probes, Array<uint64_t> keys) {
    const py::buffer_info info = blocks.request(true);
    check_filter(info, probes);
    auto* words = reinterpret_cast<std::atomic<uint64_t>*>(info.ptr);
    const auto held = static_cast<uint64_t>(info.shape[0]);
    const uint64_t* key = keys.data();
    const int64_t count = keys.size();
    py::gil_scoped_release release;
    for (int64_t i = 0; i < count; ++i) {
        const uint64_t block = block_of(key[i], num_blocks);
        if (block < first_block || block - first_block >= held) continue;
        auto* const line = words + (block - first_block) * kWords;
        Probes bits(key[i]);
        for (int p = 0; p < probes; ++p) {
            const unsigned bit = bits.next();
            line[bit >> 6].fetch_or(uint64_t{1} << (bit & 63), std::memory_order_relaxed);
        }
    }
}

py::array_t<bool> contains(Array<uint64_t> blocks, int probes, Array<uint64_t> keys) {
    const py::buffer_info info = blocks.request();
    check_filter(info, probes);
    const auto* words = static_cast<const uint64_t*>(info.ptr);
    const auto num_blocks = static_cast<uint64_t>(info.shape[0]);
    const uint64_t* key = keys.data();
    const int64_t count = keys.size();
    py::array_t<bool> result(count);
    bool* found = result.mutable_data();
    py::gil_scoped_release release;
    for (int64_t i = 0; i < count; ++i) {
        const uint64_t* const line = words + block_of(key[i], num_blocks) * kWords;
        Probes bits(key[i]);
        bool is_set = true;
        for (int p = 0; is_set && p < probes; ++p) {
            const unsigned bit = bits.next();
            is_set = line[bit >> 6] >> (bit & 63) & 1;
        }
        found[i] = is_set;
    }
    return result;
}

// HyperLogLog: the longest run of leading zeros, plus 1, of the keys of each of 2^p registers.
void count_distinct(Array<uint8_t> registers, Array<uint64_t> keys) {
    const py::buffer_info info = registers.request(true);
    auto* held = static_cast<uint8_t*>(info.ptr);
    int precision = 0;
    while ((py::ssize_t{1} << precision) < info.size) ++precision;
    if (precision < 4 || (py::ssize_t{1} << precision) != info.size) throw std::invalid_argument("count_distinct: 2^p registers");
    const uint64_t* key = keys.data();
    const int64_t count = keys.size();
    py::gil_scoped_release release;
    for (int64_t i = 0; i < count; ++i) {
        const uint64_t hash = mix(key[i] ^ 0x8ebc6af09c88c6e3ull);
        const uint64_t rest = hash << precision | (uint64_t{1} << (precision - 1));
        const auto rank = static_cast<uint8_t>(__builtin_clzll(rest) + 1);
        uint8_t& place = held[hash >> (64 - precision)];
        place = std::max(place, rank);
    }
}

template <typename T>
void define_for(py::class_<Spelling>& spelling) {
    spelling.def("text", &Spelling::text<T>, py::arg("tokens").noconvert());
    spelling.def("fingerprints", &Spelling::fingerprints<T>, py::arg("tokens").noconvert(), py::arg("ends"),
                 py::arg("gram"), py::arg("window"));
    spelling.def("extend", &Spelling::extend<T>, py::arg("tokens").noconvert(), py::arg("first"), py::arg("last"),
                 py::arg("low"), py::arg("high"), py::arg("text"), py::arg("start"), py::arg("stop"));
}

}  // namespace

PYBIND11_MODULE(_fingerprints, module) {
    module.doc() = "Normalised text, fingerprints and their Bloom filter for megatron.attribution.";
    py::class_<Spelling> spelling(module, "Spelling", "The bytes of each id; a sentinel's is a newline.");
    spelling.def(py::init<const std::vector<std::string>&, const std::vector<bool>&>(), py::arg("tokens"),
                 py::arg("is_sentinel"));
    spelling.def("__len__", &Spelling::size);
    define_for<uint8_t>(spelling);
    define_for<uint16_t>(spelling);
    define_for<int32_t>(spelling);
    define_for<int64_t>(spelling);
    module.def("normalise", &normalise, py::arg("text"), "Give (normalised bytes, place of each in the text, int64).");
    module.def("grams", &grams, py::arg("normalised"), py::arg("gram"), py::arg("window"),
               "Give (hash of every gram, uint64; places of those that are fingerprints, int64).");
    module.def("insert", &insert, py::arg("blocks").noconvert(), py::arg("first_block"), py::arg("num_blocks"),
               py::arg("probes"), py::arg("keys").noconvert(), "Add keys to blocks first_block … of a filter of num_blocks.");
    module.def("contains", &contains, py::arg("blocks").noconvert(), py::arg("probes"), py::arg("keys").noconvert(),
               "Say of each key whether a filter has it, but for false positives.");
    module.def("count_distinct", &count_distinct, py::arg("registers").noconvert(), py::arg("keys").noconvert(),
               "Add keys to the registers of a HyperLogLog, uint8 [2^p].");
}
