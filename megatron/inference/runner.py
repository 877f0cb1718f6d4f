"""A model that predicts, spread over processes: tokens in on every process, logits out where the last stage is.

Stages of a pipeline pass hidden states on, one batch after another; processes that share layers each hold their columns
of the logits and join them. Every process makes the same calls in the same order. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.inference.kv_cache import CacheShape, Decode, KVCache, LayersDecode, Prefill
from megatron.inference.load import make_decoder
from megatron.kernels.cached_attention import without_plans
from megatron.model.gpt import GPTModel
from megatron.model.transformer import TransformerLayer
from megatron.parallel.collectives import gather_first_dim
from megatron.parallel.context import ParallelContext
from megatron.transfer import to_device


class Runner:
    """One process's stage and its cache."""

    def __init__(
        self,
        model: GPTModel,
        context: ParallelContext,
        dtype: torch.dtype,
        *,
        max_rows: int,
    ) -> None:
        """model: its parameters plain and of dtype, as `load_model` gives it. max_rows: sequences at once."""
        self.config = model.config
        self._model = model.eval()
        self._context = context
        self._dtype = dtype
        self.cache = KVCache(
            CacheShape(
                layers=range(*_ends(model)),
                num_heads=_num_cached_heads(model),
                head_dim=model.config.head_dim,
                window=model.config.window_size,
                max_rows=max_rows,
                max_positions=model.config.max_position_embeddings,
            ),
            dtype,
            context.device,
        )
        self._decoder = make_decoder(model)
        # of the last stage, the first among those that have the same logits
        self._choosing_rank = (context.pp_size - 1) * context.tp_size

    @property
    def chooses(self) -> bool:
        """Whether this process chooses tokens, which the others are told."""
        return self._context.rank == self._choosing_rank

    def prefill(
        self, tokens: Tensor, first_row: int, first_position: int, wanted: Tensor | None
    ) -> Tensor | None:
        """Take tokens int64 [b, s] on the CPU for rows from first_row on, all from a position on.

        wanted: int64 [r] on the CPU, those of s*b, in that order, after which the next token is asked for; None: all.
        Gives logits [r, v] on the last stage, None on others. Collective over tp and pp.
        """
        b, s = tokens.shape
        rows = slice(first_row, first_row + b)
        self.cache.reserve(rows.stop, first_position + s)
        with torch.inference_mode():
            step = Prefill(self.cache, rows, first_position, s)
            ids = step.position_ids
            asked = None if wanted is None else to_device(wanted, self._context.device)
            return self._run(tokens, lambda x: self._model.predict(x, step, ids, asked))

    def decode(self, tokens: list[int], lengths: list[int], num_rows: int) -> Tensor | None:
        """Take one token for each of the first rows, that have lengths so far; num_rows are in use.

        Gives logits and is collective as `prefill`.
        """
        self.cache.reserve(num_rows, max(lengths) + 1)
        with torch.inference_mode(), without_plans(self._context.device):
            return self._run(torch.tensor(tokens).unsqueeze(1), self._decoding(lengths))

    def tell(self, values: Tensor) -> Tensor:
        """Give every process the values fp64 of the one that chooses; others pass a tensor of the shape. Collective."""
        if self._context.world_size > 1:
            dist.broadcast(values, src=self._choosing_rank)
        return values

    def _decoding(self, lengths: list[int]) -> Callable[[Tensor], Tensor]:
        """Give what predicts with one token of each of the first rows."""
        if self._decoder is None:
            step = Decode(self.cache, lengths)
            return lambda x: self._model.predict(x, step, step.position_ids)
        whole = LayersDecode(self.cache, lengths, self._decoder)
        return lambda x: self._model.predict(x, whole, whole.position_ids, layers=whole.run_layers)

    def _run(self, tokens: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Carry tokens [b, s], or what a stage before makes of them, through this stage."""
        context, device = self._context, self._context.device
        if context.pp_rank == 0:
            x = to_device(tokens, device)
        else:
            shape = (tokens.size(1), tokens.size(0), self.config.hidden_size)
            x = torch.empty(shape, dtype=self._dtype, device=device)
            dist.recv(x, group=context.pp_group, group_src=context.pp_rank - 1)
        out = predict(x)
        if context.pp_rank < context.pp_size - 1:
            dist.send(out.contiguous(), group=context.pp_group, group_dst=context.pp_rank + 1)
            return None
        if context.tp_size > 1:
            shards = gather_first_dim(out.unsqueeze(0), context.tp_group)  # [t, r, v/t]
            out = shards.transpose(0, 1).flatten(1, 2)  # [r, v]
        return out[:, : self.config.vocab_size]


def _ends(model: GPTModel) -> tuple[int, int]:
    """Give the first layer of a stage and the one after its last."""
    numbers = [int(number) for number in model.layers]
    return (numbers[0], numbers[-1] + 1) if numbers else (0, 0)


def _num_cached_heads(model: GPTModel) -> int:
    layer = next(iter(model.layers.values()), None)
    if layer is None:
        return 0
    assert isinstance(layer, TransformerLayer)
    return layer.self_attention.share.num_cached_heads
