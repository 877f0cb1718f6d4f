// Python module megatron.tokenizer._byte_pair: text to ids and back for byte-level byte-pair tokenizers.
//
// Text is cut into pieces (pretokenizer.h), and each piece is looked up among those seen before (word_table.h) or
// merged from its bytes (byte_pair_merges.h). Ids are those of the `tokenizers` package; megatron/tokenizer/byte_pair.py
// says for which definitions. Encoding holds no lock and may run in any number of threads: each takes a memory of
// pieces of its own, which later calls take up again.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "byte_pair_merges.h"
#include "pretokenizer.h"
#include "word_table.h"

namespace py = pybind11;

namespace {

struct Text {
    const uint8_t* begin;
    const uint8_t* end;

    size_t size() const { return static_cast<size_t>(end - begin); }
};

// Ids in one growing block that is never cleared, so that untouched memory costs nothing.
class IdBuffer {
public:
    uint32_t* reserve(size_t count) {
        if (size_ + count > capacity_) {
            capacity_ = std::max(2 * capacity_, size_ + count);
            void* block = std::realloc(data_.get(), capacity_ * sizeof(uint32_t));
            if (block == nullptr) throw std::bad_alloc();
            static_cast<void>(data_.release());
            data_.reset(static_cast<uint32_t*>(block));
        }
        return data_.get() + size_;
    }
    void advance(size_t count) { size_ += count; }
    const uint32_t* data() const { return data_.get(); }
    size_t size() const { return size_; }

    // Hands the ids over without a copy; the buffer is empty then.
    py::array_t<int32_t> to_array() {
        void* const block = std::realloc(data_.get(), std::max<size_t>(size_, 1) * sizeof(uint32_t));
        if (block == nullptr) throw std::bad_alloc();
        static_cast<void>(data_.release());
        const py::capsule owner(block, [](void* given) { std::free(given); });
        const auto count = static_cast<py::ssize_t>(size_);
        size_ = capacity_ = 0;
        return py::array_t<int32_t>(count, static_cast<int32_t*>(block), owner);
    }

private:
    struct Free {
        void operator()(void* block) const { std::free(block); }
    };
    std::unique_ptr<uint32_t[], Free> data_;
    size_t size_ = 0, capacity_ = 0;
};

// The bytes that each of the first n ids stands for, back to back.
class TokenBytes {
public:
    explicit TokenBytes(const std::vector<std::string>& tokens) : starts_{0} {
        for (const std::string& token : tokens) {
            bytes_ += token;
            starts_.push_back(bytes_.size());
        }
        bytes_.append(kChunk, '\0');
    }
    // Writes the bytes of an id and gives where they end. Copies kChunk bytes, in one move, where there is room.
    char* copy(size_t id, char* out, const char* limit) const {
        if (size(id) <= kChunk && limit - out >= static_cast<ptrdiff_t>(kChunk)) {
            std::memcpy(out, begin(id), kChunk);
            return out + size(id);
        }
        return std::copy_n(begin(id), size(id), out);
    }
    size_t count() const { return starts_.size() - 1; }
    const char* begin(size_t id) const { return bytes_.data() + starts_[id]; }
    size_t size(size_t id) const { return starts_[id + 1] - starts_[id]; }

private:
    static constexpr size_t kChunk = 16;

    std::string bytes_;
    std::vector<size_t> starts_;
};

class BytePairEncoder {
public:
    BytePairEncoder(const std::vector<std::string>& tokens, const std::vector<bool>& is_piece,
                    const std::vector<std::array<uint32_t, 3>>& merges, bool is_cl100k, size_t max_digits,
                    bool digits_alone, bool ignore_merges)
        : tokens_(tokens),
          pretokenizer_(is_cl100k, max_digits, digits_alone),
          merges_(byte_ids(tokens, is_piece), to_merges(merges)),
          first_words_(tokens.size()) {
        remember_tokens(is_piece, ignore_merges);
    }

    py::tuple encode_batch(const py::sequence& texts, size_t num_threads) {
        // A list of our own keeps every text alive: a sequence may make its items on demand, and a caller's list may
        // change while other threads of Python run.
        PyObject* const list = PySequence_List(texts.ptr());
        if (list == nullptr) throw py::error_already_set();
        const auto alive = py::reinterpret_steal<py::list>(list);
        std::vector<Text> views;
        views.reserve(alive.size());
        for (const py::handle item : alive) views.push_back(view_of(item));
        py::array_t<int64_t> sizes(static_cast<py::ssize_t>(views.size()));
        std::vector<IdBuffer> parts;
        {
            int64_t* const counts = sizes.mutable_data();
            py::gil_scoped_release release;
            parts = encode(views, counts, num_threads);
        }
        return py::make_tuple(parts.size() == 1 ? parts[0].to_array() : joined(parts), sizes);
    }

    py::bytes decode(const py::array_t<int64_t, py::array::c_style | py::array::forcecast>& ids) const {
        size_t size = 0;
        for (py::ssize_t i = 0; i < ids.size(); ++i) {
            const int64_t id = ids.data()[i];
            if (id < 0 || static_cast<size_t>(id) >= tokens_.count()) {
                throw py::index_error("id " + std::to_string(id) + " is beyond the vocabulary of " +
                                      std::to_string(tokens_.count()));
            }
            size += tokens_.size(static_cast<size_t>(id));
        }
        PyObject* bytes = PyBytes_FromStringAndSize(nullptr, static_cast<py::ssize_t>(size));
        if (bytes == nullptr) throw py::error_already_set();
        char* out = PyBytes_AS_STRING(bytes);
        const char* const limit = out + size;
        for (py::ssize_t i = 0; i < ids.size(); ++i) out = tokens_.copy(static_cast<size_t>(ids.data()[i]), out, limit);
        return py::reinterpret_steal<py::bytes>(bytes);
    }

private:
    static py::array_t<int32_t> joined(const std::vector<IdBuffer>& parts) {
        size_t total = 0;
        for (const IdBuffer& part : parts) total += part.size();
        py::array_t<int32_t> ids(static_cast<py::ssize_t>(total));
        int32_t* out = ids.mutable_data();
        for (const IdBuffer& part : parts) out = std::copy_n(part.data(), part.size(), out);
        return ids;
    }

    struct Memory {
        WordTable words;
        LongWordTable long_words;
    };

    // A memory of pieces for one thread, given back when it is done.
    class Lease {
    public:
        explicit Lease(BytePairEncoder& owner) : owner_(owner) {
            const std::lock_guard<std::mutex> lock(owner_.mutex_);
            owner_.idle_.reserve(owner_.idle_.size() + ++owner_.num_leases_);  // so that giving back cannot fail
            if (!owner_.idle_.empty()) {
                memory_ = std::move(owner_.idle_.back());
                owner_.idle_.pop_back();
            }
        }
        ~Lease() {
            const std::lock_guard<std::mutex> lock(owner_.mutex_);
            owner_.idle_.push_back(std::move(memory_));
            --owner_.num_leases_;
        }
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;

        // A full one is dropped for a fresh one, which soon knows the frequent pieces again.
        Memory& memory() {
            if (memory_ == nullptr || memory_->words.is_full() || memory_->long_words.is_full()) {
                memory_ = std::make_unique<Memory>(Memory{owner_.first_words_, owner_.first_long_words_});
            }
            return *memory_;
        }

    private:
        BytePairEncoder& owner_;
        std::unique_ptr<Memory> memory_;
    };

    static std::array<uint32_t, 256> byte_ids(const std::vector<std::string>& tokens,
                                              const std::vector<bool>& is_piece) {
        std::array<uint32_t, 256> ids;
        ids.fill(UINT32_MAX);
        for (size_t id = 0; id < tokens.size(); ++id) {
            if (is_piece[id] && tokens[id].size() == 1) {
                ids[static_cast<uint8_t>(tokens[id][0])] = static_cast<uint32_t>(id);
            }
        }
        for (uint32_t id : ids) {
            if (id == UINT32_MAX) throw std::invalid_argument("a byte has no token");
        }
        return ids;
    }

    static std::vector<Merges::Merge> to_merges(const std::vector<std::array<uint32_t, 3>>& merges) {
        std::vector<Merges::Merge> result;
        for (const auto& [left, right, merged] : merges) result.push_back({left, right, merged});
        return result;
    }

    // Most pieces are tokens. With ignore_merges all tokens encode to themselves, else those that merging arrives at.
    void remember_tokens(const std::vector<bool>& is_piece, bool ignore_merges) {
        std::vector<uint32_t> ids;
        for (size_t id = 0; id < tokens_.count(); ++id) {
            const size_t size = tokens_.size(id);
            if (!is_piece[id] || size == 0) continue;
            const auto* p = reinterpret_cast<const uint8_t*>(tokens_.begin(id));
            ids.resize(size);
            const auto self = static_cast<uint32_t>(id);
            if (!ignore_merges && !(merges_.encode(p, size, ids.data()) == 1 && ids[0] == self)) continue;
            if (size <= ShortKey::kMaxSize) {
                const ShortKey key = ShortKey::read(p, size, p + size);
                first_words_.fill(first_words_.find(key, key.hash()), key, &self, 1);
            } else if (size <= LongWordTable::kMaxSize || ignore_merges) {
                const uint64_t hash = LongWordTable::hash(p, size);
                first_long_words_.fill(first_long_words_.find(p, size, hash), p, size, hash, &self, 1);
                longest_ = std::max(longest_, size);
            }
        }
    }

    static Text view_of(py::handle item) {
        Py_ssize_t size = 0;
        const char* data = nullptr;
        if (PyUnicode_Check(item.ptr())) {
            data = PyUnicode_AsUTF8AndSize(item.ptr(), &size);
            if (data == nullptr) throw py::error_already_set();
        } else if (PyBytes_Check(item.ptr())) {
            data = PyBytes_AS_STRING(item.ptr());
            size = PyBytes_GET_SIZE(item.ptr());
            check_utf8(data, size);
        } else {
            throw py::type_error("a text is str or bytes");
        }
        const auto* begin = reinterpret_cast<const uint8_t*>(data);
        return {begin, begin + size};
    }

    static void check_utf8(const char* data, Py_ssize_t size) {
        const auto* const begin = reinterpret_cast<const uint8_t*>(data);
        if (is_utf8(begin, begin + size)) return;
        PyObject* const decoded = PyUnicode_DecodeUTF8(data, size, "strict");  // raises, and says where
        Py_XDECREF(decoded);
        if (decoded == nullptr) throw py::error_already_set();
    }

    // Ids of all texts in order, in one or more parts, and how many are of each. Holds no lock of Python.
    std::vector<IdBuffer> encode(const std::vector<Text>& texts, int64_t* counts, size_t num_threads) {
        if (num_threads <= 1 || texts.size() <= 1) {
            std::vector<IdBuffer> parts(1);
            encode_part(texts, 0, texts.size(), counts, parts[0]);
            return parts;
        }
        num_threads = std::min(num_threads, texts.size());
        const size_t num_parts = std::min(texts.size(), kPartsPerThread * num_threads);
        std::vector<IdBuffer> parts(num_parts);
        std::atomic<size_t> next_part{0};
        std::vector<std::exception_ptr> failures(num_threads);
        const auto work = [&](size_t thread) {
            try {
                for (size_t part; (part = next_part++) < num_parts;) {
                    const size_t begin = texts.size() * part / num_parts, end = texts.size() * (part + 1) / num_parts;
                    encode_part(texts, begin, end, counts, parts[part]);
                }
            } catch (...) {  // carried to the caller's thread
                failures[thread] = std::current_exception();
            }
        };
        std::vector<std::thread> threads;
        threads.reserve(num_threads);
        try {
            for (size_t i = 1; i < num_threads; ++i) threads.emplace_back(work, i);
        } catch (const std::system_error&) {
            // The system gives no more threads: those that there are do all of the work.
        }
        work(0);
        for (std::thread& thread : threads) thread.join();
        for (const std::exception_ptr& failure : failures) {
            if (failure) std::rethrow_exception(failure);
        }
        return parts;
    }

    void encode_part(const std::vector<Text>& texts, size_t begin, size_t end, int64_t* counts, IdBuffer& ids) {
        Lease lease(*this);
        for (size_t i = begin; i < end; ++i) {
            const size_t before = ids.size();
            encode_text(texts[i], lease.memory(), ids);
            counts[i] = static_cast<int64_t>(ids.size() - before);
        }
    }

    struct Piece {
        const uint8_t* begin;
        size_t size;
        uint64_t hash;
        ShortKey key;  // of a short one

        bool is_short() const { return size <= ShortKey::kMaxSize; }
    };

    // Pieces are looked up some at a time, so that the entries of all of them are on their way from memory at once.
    void encode_text(const Text& text, Memory& memory, IdBuffer& ids) const {
        std::array<Piece, kPiecesAtOnce> pieces;
        size_t count = 0;
        const auto look_up = [&] {
            for (size_t i = 0; i < count; ++i) {
                const Piece& piece = pieces[i];
                uint32_t* const out = ids.reserve(piece.size + WordTable::kMaxInline);
                ids.advance(piece.is_short() ? encode_short(piece, memory.words, out)
                                             : encode_long(piece, memory.long_words, out));
            }
            count = 0;
        };
        pretokenizer_.split(text.begin, text.end, [&](const uint8_t* p, const uint8_t* next) {
            Piece& piece = pieces[count++];
            piece.begin = p;
            piece.size = static_cast<size_t>(next - p);
            if (piece.is_short()) {
                piece.key = ShortKey::read(p, piece.size, text.end);
                piece.hash = piece.key.hash();
                memory.words.prefetch(piece.hash);
            } else if (piece.size <= longest_) {
                piece.hash = LongWordTable::hash(p, piece.size);
                memory.long_words.prefetch(piece.hash);
            }
            if (count == kPiecesAtOnce) look_up();
        });
        look_up();
    }

    size_t encode_short(const Piece& piece, WordTable& words, uint32_t* out) const {
        WordTable::Entry& entry = words.find(piece.key, piece.hash);
        if (entry.key.high == 0) {
            const size_t count = merges_.encode(piece.begin, piece.size, out);
            if (!words.is_full()) words.fill(entry, piece.key, out, count);
            return count;
        }
        if (entry.count & WordTable::kElsewhere) {
            const size_t count = entry.count & ~WordTable::kElsewhere;
            std::copy_n(words.spilled(entry), count, out);
            return count;
        }
        std::memcpy(out, entry.ids, sizeof(entry.ids));  // all of them: no branch on their number
        return entry.count;
    }

    size_t encode_long(const Piece& piece, LongWordTable& words, uint32_t* out) const {
        const auto [p, size, hash, key] = piece;
        if (size > longest_) return merges_.encode(p, size, out);
        LongWordTable::Entry& entry = words.find(p, size, hash);
        if (entry.key_size == 0) {
            const size_t count = merges_.encode(p, size, out);
            if (!words.is_full()) words.fill(entry, p, size, hash, out, count);
            return count;
        }
        std::copy_n(words.ids(entry), entry.count, out);
        return entry.count;
    }

    static constexpr size_t kPartsPerThread = 8, kPiecesAtOnce = 32;

    TokenBytes tokens_;
    PreTokenizer pretokenizer_;
    Merges merges_;
    WordTable first_words_;  // what every memory starts with: the tokens
    LongWordTable first_long_words_;
    size_t longest_ = LongWordTable::kMaxSize;  // piece that is remembered
    std::mutex mutex_;
    std::vector<std::unique_ptr<Memory>> idle_;
    size_t num_leases_ = 0;  // that are out
};

}  // namespace

PYBIND11_MODULE(_byte_pair, module) {
    module.doc() = "Byte-level byte-pair encoding.";
    py::class_<BytePairEncoder>(module, "BytePairEncoder")
        .def(py::init<const std::vector<std::string>&, const std::vector<bool>&,
                      const std::vector<std::array<uint32_t, 3>>&, bool, size_t, bool, bool>(),
             py::arg("tokens"), py::arg("is_piece"), py::arg("merges"), py::kw_only(), py::arg("is_cl100k"),
             py::arg("max_digits"), py::arg("digits_alone"), py::arg("ignore_merges"),
             "tokens: the bytes of every id; is_piece: whether text may encode to it; merges: ids of (left, right,\n"
             "result) by rank. For the others see csrc/pretokenizer.h.")
        .def("encode_batch", &BytePairEncoder::encode_batch, py::arg("texts"), py::arg("num_threads") = 1,
             "Give the ids of all texts (str, or bytes of UTF-8) back to back, int32, and the number of ids of each,\n"
             "int64. Other threads of Python run meanwhile.")
        .def("decode", &BytePairEncoder::decode, py::arg("ids"),
             "Give the bytes that ids (int64 [n]) stand for; IndexError for one beyond the vocabulary.");
}
