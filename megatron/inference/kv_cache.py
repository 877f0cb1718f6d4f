"""Keys and values of the tokens so far, by layer and row, and how a model's layers use them.

A row is a sequence in work. For each layer of this process there are two tensors [rows, k, positions, d], k being the key
heads that it attends with: for multi-query attention 1, so that a row costs a 48th of multi-head attention's with 48
heads. A `Stage` reads its keys in panels, [rows, k, positions / panel, d, panel]. Rows in use are the first ones, without
gaps, and what is read is a slice of them: attention runs on the cache as it lies. A sequence that ends gives its row to
the last one (`copy_row`), which costs one copy of a row for a whole sequence. Both dims grow by doubling, up to bounds.

Cells beyond a row's tokens hold zeros, or what another sequence left there: finite, and hidden from attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.kernels.attention import AttentionFunction
from megatron.kernels.cached_attention import cached_attention
from megatron.kernels.documents import Documents
from megatron.transfer import to_device


@dataclass(frozen=True)
class CacheShape:
    """What a cache is made for."""

    layers: range  # of this process, by their numbers in the model
    num_heads: int  # of keys, on this process
    head_dim: int
    window: int | None  # tokens that one sees, itself included
    max_rows: int
    max_positions: int
    key_panel: int | None = None  # tokens whose keys lie together


class KVCache:
    """The tensors. Knows nothing of requests."""

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.dtype, self.device = dtype, device
        self.num_rows = self.num_positions = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.reserve(1, min(128, shape.max_positions))

    def reserve(self, num_rows: int, num_positions: int) -> None:
        """Have room for so many rows of so many tokens; at least twice the room that was there, if it was too little."""
        assert num_rows <= self.shape.max_rows and num_positions <= self.shape.max_positions
        rows = _grown(self.num_rows, num_rows, self.shape.max_rows)
        positions = _grown(self.num_positions, num_positions, self.shape.max_positions)
        if (rows, positions) == (self.num_rows, self.num_positions):
            return
        d, panel = self.shape.head_dim, self.shape.key_panel
        cells = (positions, d)
        key_cells = cells if panel is None else (-(-positions // panel), d, panel)
        for tensors, sizes in ((self.keys, key_cells), (self.values, cells)):
            for layer in self.shape.layers:  # one at a time: only one is there twice
                # zeros: what is hidden is multiplied by 0, which has to give 0
                size = (rows, self.shape.num_heads, *sizes)
                grown = torch.zeros(size, dtype=self.dtype, device=self.device)
                if layer in tensors:
                    old = tensors[layer]
                    grown[: old.size(0), :, : old.size(2)] = old
                tensors[layer] = grown
        self.num_rows, self.num_positions = rows, positions

    def copy_row(self, source: int, target: int, num_positions: int) -> None:
        """Give a row the first num_positions tokens of another."""
        num_panels = -(-num_positions // (self.shape.key_panel or 1))
        for tensors, size in ((self.keys, num_panels), (self.values, num_positions)):
            for tensor in tensors.values():
                tensor[target, :, :size] = tensor[source, :, :size]


def _grown(size: int, needed: int, most: int) -> int:
    return size if needed <= size else min(max(needed, 2 * size), most)


class Prefill:
    """The next tokens of consecutive rows that have equally many so far: the layers' own attention, on more keys.

    Rows may have tokens to fill them up at their ends, which no other token sees and later ones overwrite.
    """

    def __init__(self, cache: KVCache, rows: slice, first_position: int, num_tokens: int) -> None:
        """rows [start, stop) of the cache, which has room for them, and the positions of their new tokens."""
        self._cache, self._rows = cache, rows
        self._end = first_position + num_tokens
        self._new = slice(first_position, self._end)
        num_rows = rows.stop - rows.start
        self._documents = Documents.create(
            None,
            cache.device,
            shape=(num_rows, num_tokens),
            window=cache.shape.window,
            first_position=first_position,
        )
        positions = torch.arange(first_position, self._end, device=cache.device)
        self.position_ids = positions.expand(num_rows, -1)  # int64 [b, s]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, attention: AttentionFunction
    ) -> Tensor:
        """As `Cache.attend`."""
        tensors = self._cache.keys[layer], self._cache.values[layer]
        for tensor, new in zip(tensors, (key, value), strict=True):
            # [s, b, k, d] -> [b, k, s, d]
            tensor[self._rows, :, self._new] = new.permute(1, 2, 0, 3)
        if self._new.start > 0:
            # [b, k, positions, d] -> [positions, b, k, d]
            key, value = (x[self._rows, :, : self._end].permute(2, 0, 1, 3) for x in tensors)
        return attention(query, key, value, None, self._documents)


class Decode:
    """One token of each of the first rows, which may have any numbers of tokens so far."""

    def __init__(self, cache: KVCache, lengths: Sequence[int]) -> None:
        """lengths: of the rows before this token. The cache has room for one more of each."""
        self._cache = cache
        shape, num_rows = cache.shape, len(lengths)
        ends = torch.tensor(lengths).unsqueeze(1)
        self.position_ids = to_device(ends, cache.device)  # int64 [b, 1]
        # of each row and head, the cell in a tensor taken as [rows * k * positions, d]
        heads = torch.arange(num_rows * shape.num_heads).view(num_rows, shape.num_heads)
        self._cells = to_device((heads * cache.num_positions + ends).flatten(), cache.device)
        shortest, longest = min(lengths), max(lengths)
        first = 0 if shape.window is None else max(0, shortest + 1 - shape.window)
        # what any row sees, as a view of a tensor: sizes, strides and where it starts
        d, row_size = shape.head_dim, cache.num_positions * shape.head_dim
        self._seen = (
            (num_rows, shape.num_heads, longest + 1 - first, d),
            (shape.num_heads * row_size, row_size, d, 1),
            first * d,
        )
        self._bias = None
        if shortest < longest:
            self._bias = self._make_bias(ends, torch.arange(first, longest + 1))

    def _make_bias(self, ends: Tensor, positions: Tensor) -> Tensor:
        """Give 0 for the keys that a row sees and -inf for others: [b, 1, keys]."""
        hidden = positions > ends
        if self._cache.shape.window is not None:
            hidden |= positions <= ends - self._cache.shape.window
        bias = torch.zeros(hidden.shape, dtype=self._cache.dtype).masked_fill_(
            hidden, float("-inf")
        )
        return to_device(bias.unsqueeze(1), self._cache.device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, attention: AttentionFunction
    ) -> Tensor:
        """As `Cache.attend`."""
        d = self._cache.shape.head_dim
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys.view(-1, d).index_copy_(0, self._cells, key.reshape(-1, d))
        values.view(-1, d).index_copy_(0, self._cells, value.reshape(-1, d))
        context = cached_attention(
            query[0], keys.as_strided(*self._seen), values.as_strided(*self._seen), self._bias
        )
        return context.unsqueeze(0)
