"""Self-attention with any number of key/value heads, its query heads shared out over tp.

The normalised input enters the tensor parallel region once, for queries, keys and values together: one collective over
tp each way, and never one on keys or values. Where several processes share a sequence (cp), each gathers the keys and
values of all of it, few next to the hidden states if heads share them, and attends with the queries it holds. Key/value heads that tp does not divide are computed by each process for
its own query heads, from a whole copy of their weight (StarCoder's multi-query attention at any tp).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron.kernels.attention import AttentionDropout, AttentionFunction
from megatron.kernels.documents import Documents
from megatron.kernels.dropout import site_keys
from megatron.kernels.linear_product import Product
from megatron.kernels.registry import Kernels
from megatron.kernels.rotary import Rotation
from megatron.model.mlp import output_initial
from megatron.model.recompute import recompute_in_backward
from megatron.options import ModelConfig
from megatron.parallel.collectives import TensorParallelRegion
from megatron.parallel.context_parallel import ContextParallelRegion
from megatron.parallel.layers import (
    ColumnParallelLinear,
    PartialGradientLinear,
    RowParallelLinear,
)
from megatron.parallel.parameter import Normal, ParameterFactory
from megatron.parallel.random import derive_key


@dataclass(frozen=True)
class DropoutKeys:
    """The coordinates of a micro-batch's tokens, from which every site derives what it drops."""

    outside: Tensor  # int64 [s, b], or [s/t, b] with sequence parallel
    inside: Tensor  # int64 [s, b]
    first_sample: int | None  # with attention dropout: it seeds kernels that draw from a generator


@dataclass(frozen=True)
class QueryChunk:
    """Consecutive tokens of each sample: they attend to all before them, wherever those are computed."""

    rows: slice  # of the tokens that this process holds
    positions: range
    documents: Documents | None  # None: a token attends to all before it in its sample


class Cache(Protocol):
    """The keys and values of tokens that came before, so that only those of new tokens are computed."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, attention: AttentionFunction
    ) -> Tensor:
        """Keep a layer's keys and values of the new tokens, and attend with their queries to all so far.

        query [s, b, n/t, d], key and value [s, b, g/t, d] -> [s, b, h/t]. layer: its number in the model. attention:
        the layer's own, for whole runs of tokens.
        """
        ...


@dataclass(frozen=True)
class MicroBatch:
    """What layers know of the tokens of a micro-batch besides their hidden states; the same for every layer."""

    chunks: tuple[QueryChunk, ...]
    keys: DropoutKeys | None = None  # None: no dropout
    rotation: Rotation | None = None  # None: positions are in the embedding
    cache: Cache | None = (
        None  # what decides who attends to whom in place of chunks, without gradients
    )


@dataclass(frozen=True)
class HeadShare:
    """Which heads one process computes."""

    num_heads: int
    first_head: int
    first_group: int
    num_groups: int
    heads_per_group: tuple[int, ...]  # of this process's heads, by group

    @classmethod
    def create(cls, config: ModelConfig, tp_size: int, tp_rank: int) -> HeadShare:
        num_heads = config.num_attention_heads // tp_size
        first_head = tp_rank * num_heads
        group_size = config.num_attention_heads // config.query_groups
        groups = [head // group_size for head in range(first_head, first_head + num_heads)]
        used = range(groups[0], groups[-1] + 1)
        return cls(
            num_heads, first_head, used.start, len(used), tuple(groups.count(g) for g in used)
        )

    @property
    def num_cached_heads(self) -> int:
        """How many key/value heads attention is given, and a cache keeps."""
        repeats = self.repeats
        return self.num_groups if repeats is None else sum(repeats)

    @property
    def repeats(self) -> tuple[int, ...] | None:
        """How often to repeat each group's heads so that all serve equally many; None: they do already."""
        common = math.gcd(*self.heads_per_group)
        counts = tuple(count // common for count in self.heads_per_group)
        return None if set(counts) == {1} else counts


class SelfAttention(nn.Module):
    """Causal self-attention: query, key_value and dense (output) products around the attention kernel."""

    def __init__(
        self,
        config: ModelConfig,
        parameters: ParameterFactory,
        region: TensorParallelRegion,
        kernels: Kernels,
        cp: ContextParallelRegion,
        *,
        layer: int,
    ) -> None:
        """layer: its number in the model."""
        super().__init__()
        has_bias = not config.disable_bias_linear
        initial = Normal(config.init_method_std)
        projection_size = config.num_attention_heads * config.head_dim
        self.region = region
        self.cp = cp
        self.layer = layer
        self.head_dim = config.head_dim
        self.share = HeadShare.create(config, region.size, region.rank)
        self.attend = kernels.attention
        self.recomputes = config.recomputes("core_attn") and kernels.stores_attention_probabilities
        self.dropout = config.attention_dropout
        self.site = derive_key(parameters.seed, parameters.prefix, "probabilities")
        self.query = ColumnParallelLinear(
            config.hidden_size,
            projection_size,
            parameters.scope("query"),
            initial=initial,
            has_bias=has_bias,
            product=kernels.product,
        )
        self.key_value = self._make_key_value(
            config, parameters.scope("key_value"), kernels.product
        )
        # in a model that only predicts: query and key_value as one product
        self.joined: Callable[[Tensor], Tensor] | None = None
        self.dense = RowParallelLinear(
            projection_size,
            config.hidden_size,
            parameters.scope("dense"),
            region,
            initial=output_initial(config),
            has_bias=has_bias,
            product=kernels.product,
        )

    def _make_key_value(
        self, config: ModelConfig, parameters: ParameterFactory, product: Product
    ) -> ColumnParallelLinear | PartialGradientLinear:
        """Make the product whose rows are [groups, (key, value), d]."""
        rows_per_group = 2 * config.head_dim
        out_size = config.query_groups * rows_per_group
        initial, has_bias = Normal(config.init_method_std), not config.disable_bias_linear
        if config.query_groups % self.region.size == 0:
            return ColumnParallelLinear(
                config.hidden_size,
                out_size,
                parameters,
                initial=initial,
                has_bias=has_bias,
                product=product,
            )
        first = self.share.first_group * rows_per_group
        return PartialGradientLinear(
            config.hidden_size,
            out_size,
            parameters,
            self.region,
            initial=initial,
            has_bias=has_bias,
            rows=slice(first, first + self.share.num_groups * rows_per_group),
            product=product,
        )

    def forward(
        self, x: Tensor, batch: MicroBatch, compute_x: Callable[[], Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x [s, b, h] or [s/t, b, h] -> the same shape, and the bias [h] not yet added. Collective over tp and cp.

        s are the positions that this process holds, of whole samples or of its share (cp). compute_x: gives x again in
        backward, so that it need not be kept; collective over tp then.
        """
        x = self.region.enter(x)  # [s, b, h]
        s, b, _ = x.shape
        queries, keys_values = self._project(x)
        if compute_x is not None:
            recompute_in_backward(x, lambda: self.region.enter(compute_x()), (queries, keys_values))
        query = queries.view(s, b, self.share.num_heads, self.head_dim)
        key_value = keys_values.view(s, b, self.share.num_groups, 2, self.head_dim)
        key, value = key_value.unbind(dim=3)  # [s, b, g/t, d] each
        if batch.rotation is not None:
            query, key = batch.rotation.turn(query), batch.rotation.turn(key)
        if self.cp.size > 1:
            key, value = self.cp.gather(torch.stack([key, value], dim=2)).unbind(dim=2)
        if self.share.repeats is not None:
            key, value = self._repeat(key), self._repeat(value)
        if batch.cache is not None:
            return self.dense(batch.cache.attend(self.layer, query, key, value, self.attend))
        if len(batch.chunks) == 1:
            return self.dense(self._attend(query, key, value, batch.chunks[0], batch.keys))
        contexts = [
            self._attend(
                query[chunk.rows],
                key[: chunk.positions.stop],
                value[: chunk.positions.stop],
                chunk,
                batch.keys,
            )
            for chunk in batch.chunks
        ]
        return self.dense(torch.cat(contexts))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give queries [s, b, n/t * d], and keys and values [s, b, g/t * 2d]."""
        if self.joined is None:
            return self.query(x), self.key_value(x)
        num_queries = self.share.num_heads * self.head_dim
        both = self.joined(x)
        return both[..., :num_queries], both[..., num_queries:]

    def _repeat(self, x: Tensor) -> Tensor:
        """Repeat key or value heads, [s, b, g, d], so that all serve equally many query heads."""
        assert self.share.repeats is not None
        groups = zip(x.split(1, dim=2), self.share.repeats, strict=True)
        # counts stay Python's: a tensor of them would have to be copied to the device
        return torch.cat([head.expand(-1, -1, count, -1) for head, count in groups], dim=2)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        chunk: QueryChunk,
        keys: DropoutKeys | None,
    ) -> Tensor:
        """Attend with a chunk's queries to the keys up to its end: [sq, b, n/t, d], [sk, b, g/t, d] -> [sq, b, h/t]."""
        dropout = self._dropout(keys, chunk)
        if not self.recomputes:
            return self.attend(query, key, value, dropout, chunk.documents)
        # dropout is keyed: there is no generator to put back
        return checkpoint(
            self.attend,
            query,
            key,
            value,
            dropout,
            chunk.documents,
            use_reentrant=False,
            preserve_rng_state=False,
        )

    def _dropout(self, keys: DropoutKeys | None, chunk: QueryChunk) -> AttentionDropout | None:
        if keys is None or self.dropout == 0.0:
            return None
        assert keys.first_sample is not None
        first = (keys.first_sample, self.share.first_head, chunk.positions.start)
        return AttentionDropout(
            self.dropout,
            site_keys(keys.inside[chunk.rows], self.site),
            self.share.first_head,
            seed=derive_key(self.site, *first),
        )
