// Many tensors in one launch: a table that says where they lie, and which tensor a block's chunk belongs to.
//
// Written by megatron/kernels/multi_tensor.py: int64 rows of num_tensors numbers each,
//   0  the tensor's first chunk, counted over all tensors      2  a number of its own, the bits of a double
//   1  its elements                                            3… its addresses, one row for each list of tensors
#pragma once

#include "vector.cuh"

namespace megatron {

struct Chunk {
    const int64_t* column;  // of its tensor in the table
    int64_t num_tensors;
    int64_t begin, size;  // elements of the tensor

    template <typename T>
    __device__ T* address(int list) const {
        T* const first = reinterpret_cast<T*>(column[(3 + list) * num_tensors]);
        __builtin_assume(__isGlobal(first));  // else each access would ask which memory it is to
        return first + begin;
    }
    __device__ double number() const { return __longlong_as_double(column[2 * num_tensors]); }
};

struct Table {
    const int64_t* rows;
    int64_t num_tensors, chunk_size;

    // The chunk of that number: of the last tensor that starts there or before, for empty ones have none.
    __device__ Chunk find(int64_t number) const {
        int64_t low = 0, high = num_tensors - 1;
        while (low < high) {
            const int64_t middle = (low + high + 1) / 2;
            if (rows[middle] <= number) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        const int64_t begin = (number - rows[low]) * chunk_size, left = rows[num_tensors + low] - begin;
        return {rows + low, num_tensors, begin, left < chunk_size ? left : chunk_size};
    }
};

template <typename T, int N>
__device__ inline bool is_aligned(const T* p) {
    return reinterpret_cast<uintptr_t>(p) % sizeof(Vector<T, N>) == 0;
}

}  // namespace megatron
