"""Causal attention in blocks of queries, made for a CPU's caches and for few key/value heads.

A block's scores never leave the cache, keys that none of its queries sees are not touched (those after it, those of
documents that ended before it, and those before its window), and backward computes the probabilities again (as
FlashAttention, arXiv 2205.14135, does in other proportions). The query heads of a group are rows of one product with
their shared key head, which makes multi-query products large. Dropout is keyed, so it is the same in every layout; its
bits are computed again in backward too. Softmax is in the input's dtype, its sums in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron.kernels.attention import AttentionDropout
from megatron.kernels.documents import Documents
from megatron.kernels.dropout import head_keys, keep_, keep_bits, keep_scale


def _fold(x: Tensor, num_groups: int) -> Tensor:
    """Make the heads of a group rows: [s, b, n, d] -> [b*g, s*(n/g), d], in the order of positions."""
    s, b, n, d = x.shape
    x = x.view(s, b, num_groups, n // num_groups, d).permute(1, 2, 0, 3, 4)  # [b, g, s, n/g, d]
    return x.reshape(b * num_groups, s * (n // num_groups), d)


def _unfold(x: Tensor, seq_length: int, num_groups: int) -> Tensor:
    """Undo `_fold`: [b*g, s*(n/g), d] -> [s, b, n, d]."""
    x = x.view(x.size(0) // num_groups, num_groups, seq_length, -1, x.size(2))
    return x.permute(2, 0, 1, 3, 4).flatten(2, 3)


@dataclass(frozen=True)
class _Block:
    """Some queries of some samples, and the keys that they see among them."""

    samples: slice  # of b*g
    rows: slice  # of sq*(n/g)
    keys: slice  # of sk; the last ones are those of the rows' own positions
    hidden: Tensor | None  # bool [positions, keys]: keys of other documents or before the window

    @property
    def queries(self) -> tuple[slice, slice]:
        return self.samples, self.rows

    @property
    def columns(self) -> tuple[slice, slice]:
        return self.samples, self.keys


class _Blocks:
    """The blocks of one call: which rows and keys meet, and with which probabilities."""

    def __init__(
        self,
        query: Tensor,
        num_groups: int,
        *,
        first_position: int,
        row_keys: Tensor | None,
        probability: float,
        documents: Documents | None,
    ) -> None:
        self.num_queries = query.size(0)
        self.first_position = first_position  # of the queries among the keys
        self.num_groups = num_groups
        self.heads_per_group = query.size(2) // num_groups
        self.probability = probability
        self.row_keys = row_keys  # int64 [b*g, sq*(n/g)]
        self.documents = documents
        # rows of a block: enough for a fast product, few enough that its scores stay in the cache
        self.size = 32 if self.heads_per_group >= 4 else 64
        future = query.new_full((self.size, self.size), float("-inf")).triu_(1)
        self.future = future.repeat_interleave(self.heads_per_group, dim=0)

    def __iter__(self) -> Iterator[_Block]:
        """Give the blocks: of all samples at once, or of one at a time where each has documents of its own."""
        g, r, skipped = self.num_groups, self.heads_per_group, self.first_position
        begins = range(0, self.num_queries, self.size)
        spans = [(begin, min(begin + self.size, self.num_queries)) for begin in begins]
        if self.documents is None:
            for begin, end in spans:
                rows = slice(begin * r, end * r)
                yield _Block(slice(None), rows, slice(0, skipped + end), None)
            return
        device_keys = self.documents.first_keys
        is_shared = self.documents.is_same_in_all_samples
        for sample, first_keys in enumerate(self.documents.host_first_keys.tolist()):
            samples = slice(None) if is_shared else slice(sample * g, (sample + 1) * g)
            for begin, end in spans:
                keys, hidden = slice(first_keys[begin], skipped + end), None
                if first_keys[end - 1] > keys.start:
                    positions = torch.arange(keys.start, keys.stop, device=device_keys.device)
                    hidden = device_keys[sample, begin:end, None] > positions
                yield _Block(samples, slice(begin * r, end * r), keys, hidden)

    def softmax(self, query: Tensor, key: Tensor, hidden: Tensor | None) -> Tensor:
        """Give the probabilities of a block before dropout, [b*g, rows, keys]."""
        scores = torch.bmm(query, key.transpose(1, 2))
        num_positions = query.size(1) // self.heads_per_group
        scores[:, :, -num_positions:] += self.future[: query.size(1), :num_positions]
        if hidden is not None:
            by_position = scores.view(scores.size(0), num_positions, -1, key.size(1))
            by_position.masked_fill_(hidden[:, None], float("-inf"))
        return torch.softmax(scores, dim=-1, out=scores)

    def keep_bits(self, block: _Block, num_keys: int) -> Tensor | None:
        """Give what dropout leaves of a block's probabilities, as `keep_` takes it; None without dropout."""
        if self.row_keys is None:
            return None
        return keep_bits(
            self.row_keys[block.queries],
            num_keys,
            self.probability,
            first_channel=block.keys.start,
        )


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        dropout: AttentionDropout | None,
        documents: Documents | None,
    ) -> Tensor:
        sq, b, n, d = query.shape
        sk, _, g, _ = key.shape
        row_keys = None
        if dropout is not None:
            heads = head_keys(dropout.row_keys, dropout.first_head, n)  # [sq, b, n]
            row_keys = _fold(heads.unsqueeze(-1), g).squeeze(-1)
        blocks = _Blocks(
            query,
            g,
            first_position=sk - sq,
            row_keys=row_keys,
            probability=0.0 if dropout is None else dropout.probability,
            documents=documents,
        )
        queries = _fold(query * d**-0.5, g)
        keys, values = _fold(key, g), _fold(value, g)  # [b*g, sk, d]
        if dropout is not None:
            # here instead of on the probabilities, of which there are many more
            values = values * keep_scale(dropout.probability)
        out = torch.empty_like(queries)
        for block in blocks:
            key_block = keys[block.columns]
            probabilities = blocks.softmax(queries[block.queries], key_block, block.hidden)
            bits = blocks.keep_bits(block, key_block.size(1))
            if bits is not None:
                keep_(probabilities, bits)
            out[block.queries] = torch.bmm(probabilities, values[block.columns])
        ctx.save_for_backward(queries, keys, values)
        ctx.blocks = blocks
        ctx.shape = (sq, b, g, d)
        return _unfold(out, sq, g).reshape(sq, b, n * d).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        queries, keys, values = ctx.saved_tensors
        blocks: _Blocks = ctx.blocks
        sq, b, g, d = ctx.shape
        sk = keys.size(1)
        grad = _fold(grad.reshape(sq, b, -1, d), g)
        query_grad = torch.empty_like(queries)
        # fp32 sums over blocks, whatever the dtype
        key_grad = torch.zeros_like(keys, dtype=torch.float32)
        value_grad = torch.zeros_like(values, dtype=torch.float32)
        for block in blocks:
            query, key = queries[block.queries], keys[block.columns]
            probabilities = blocks.softmax(query, key, block.hidden)
            probability_grad = torch.bmm(grad[block.queries], values[block.columns].transpose(1, 2))
            kept, bits = probabilities, blocks.keep_bits(block, key.size(1))
            if bits is not None:
                kept = keep_(probabilities.clone(), bits)
                keep_(probability_grad, bits)
            value_grad[block.columns] += torch.bmm(kept.transpose(1, 2), grad[block.queries])
            score_grad = torch.ops.aten._softmax_backward_data(
                probability_grad, probabilities, -1, probabilities.dtype
            )
            query_grad[block.queries] = torch.bmm(score_grad, key)
            key_grad[block.columns] += torch.bmm(score_grad.transpose(1, 2), query)
        if blocks.row_keys is not None:
            value_grad *= keep_scale(blocks.probability)
        return (
            _unfold(query_grad.mul_(d**-0.5), sq, g),
            _unfold(key_grad.to(keys.dtype), sk, g),
            _unfold(value_grad.to(values.dtype), sk, g),
            None,
            None,
        )


def blocked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: AttentionDropout | None,
    documents: Documents | None = None,
) -> Tensor:
    """Attend block by block: query [sq, b, n, d], key and value [sk, b, g, d], g dividing n -> [sq, b, n*d]."""
    return _BlockedAttention.apply(query, key, value, dropout, documents)
