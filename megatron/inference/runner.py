"""A model that predicts, spread over processes: tokens in on every process, logits out where the last stage is.

Stages of a pipeline pass hidden states on, one batch after another; processes that share layers each hold their columns
of the logits and join them. Every process makes the same calls in the same order. Knows nothing of requests.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.inference.kv_cache import CacheShape, Decode, KVCache, Prefill
from megatron.inference.load import hidden_dtype, make_stage
from megatron.kernels.cached_attention import without_plans
from megatron.kernels.rotary import Rotation
from megatron.model.gpt import GPTModel
from megatron.model.transformer import TransformerLayer
from megatron.parallel.collectives import gather_first_dim
from megatron.parallel.context import ParallelContext
from megatron.transfer import to_device

# tokens of a prompt's part after which the next one is asked for
Wanted = Literal["all", "last", "none"]


class Runner:
    """One process's stage and its cache."""

    def __init__(self, model: GPTModel, context: ParallelContext, *, max_rows: int) -> None:
        """model: as `load_model` gives it. max_rows: sequences at once."""
        self.config = model.config
        self._model = model.eval()
        self._context = context
        self._dtype = hidden_dtype(model)
        self._stage = make_stage(model)
        self.cache = KVCache(
            CacheShape(
                layers=range(*_ends(model)),
                num_heads=_num_cached_heads(model),
                head_dim=model.config.head_dim,
                window=model.config.window_size,
                max_rows=max_rows,
                max_positions=model.config.max_position_embeddings,
                key_panel=None if self._stage is None else self._stage.key_panel,
            ),
            self._dtype,
            context.device,
        )
        # of the last stage, the first among those that have the same logits
        self._choosing_rank = (context.pp_size - 1) * context.tp_size
        # kept: to ask for a rank takes microseconds, and a step of a small model a hundred
        self.chooses = context.rank == self._choosing_rank  # tokens, which the others are told
        self._is_first = context.pp_rank == 0
        self._is_last = context.pp_rank == context.pp_size - 1
        self._is_alone = context.world_size == 1

    def prefill(
        self, parts: Sequence[Sequence[int]], first_row: int, first_position: int, wanted: Wanted
    ) -> Tensor | None:
        """Take the next tokens of prompts for rows from first_row on, all from a position on.

        Gives logits [r, v] on the last stage, None on others: after the tokens that are wanted, row by row; "all" is for
        one prompt. Collective over tp and pp.
        """
        sizes = [len(part) for part in parts]
        assert wanted != "all" or len(parts) == 1
        self.cache.reserve(first_row + len(parts), first_position + max(sizes))
        with torch.inference_mode():
            if self._stage is None:
                return self._prefill_by_layers(parts, first_row, first_position, wanted)
            ids = [token for part in parts for token in part]
            rows = [row for row, size in enumerate(sizes, first_row) for _ in range(size)]
            positions = [first_position + place for size in sizes for place in range(size)]
            asked = {"all": None, "last": _ends_of(sizes), "none": []}[wanted]
            return self._run_stage(ids, rows, positions, asked)

    def decode(self, tokens: list[int], lengths: list[int], num_rows: int) -> Tensor | None:
        """Take one token for each of the first rows, that have lengths so far; num_rows are in use.

        Gives logits and is collective as `prefill`.
        """
        self.cache.reserve(num_rows, max(lengths) + 1)
        with torch.inference_mode():
            if self._stage is not None:
                return self._run_stage(tokens, range(len(tokens)), lengths, None)
            step = Decode(self.cache, lengths)
            ids = torch.tensor(tokens).unsqueeze(1)
            with without_plans(self._context.device):
                return self._run_layers(
                    ids, lambda x: self._model.predict(x, step, step.position_ids)
                )

    def tell(self, values: Tensor) -> Tensor:
        """Give every process the values fp64 of the one that chooses; others pass a tensor of the shape. Collective."""
        if not self._is_alone:
            dist.broadcast(values, src=self._choosing_rank)
        return values

    def _run_stage(
        self,
        ids: Sequence[int],
        rows: Sequence[int],
        positions: Sequence[int],
        wanted: Sequence[int] | None,
    ) -> Tensor | None:
        """Take tokens through the stage in one call, each at a row's position. wanted: as `Stage` takes it."""
        assert self._stage is not None
        places = torch.tensor(positions)
        rotation = None
        if self.config.has_rotary_positions:
            turn = Rotation.create(
                places.unsqueeze(0), self.config.head_dim, self.config.rotary_base
            )
            rotation = (turn.cos.flatten(1), turn.sin.flatten(1))  # [t, d/2]
        x = torch.tensor(ids) if self._is_first else self._receive(len(ids))
        out = self._stage(
            x,
            torch.tensor(rows),
            places,
            list(self.cache.keys.values()),
            list(self.cache.values.values()),
            rotation=rotation,
            wanted=wanted,
        )
        return self._give(out)

    def _prefill_by_layers(
        self, parts: Sequence[Sequence[int]], first_row: int, first_position: int, wanted: Wanted
    ) -> Tensor | None:
        """Do the same by the model's own layers, on parts that are filled up to equal lengths."""
        b, s = len(parts), max(map(len, parts))
        tokens = torch.zeros(b, s, dtype=torch.int64)
        for row, part in enumerate(parts):
            tokens[row, : len(part)] = torch.tensor(part)
        # of [s, b]
        last = [(len(part) - 1) * b + row for row, part in enumerate(parts)]
        asked = None
        if wanted != "all":
            asked = torch.tensor(last if wanted == "last" else [], dtype=torch.int64)
            asked = to_device(asked, self._context.device)
        step = Prefill(self.cache, slice(first_row, first_row + b), first_position, s)
        return self._run_layers(
            tokens, lambda x: self._model.predict(x, step, step.position_ids, asked)
        )

    def _run_layers(self, tokens: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Carry tokens [b, s], or what a stage before makes of them, through this stage."""
        context = self._context
        if self._is_first:
            x = to_device(tokens, context.device)
        else:
            x = self._receive(tokens.size(1), tokens.size(0))
        out = predict(x)
        if context.tp_size > 1 and self._is_last:
            shards = gather_first_dim(out.unsqueeze(0), context.tp_group)  # [t, r, v/t]
            out = shards.transpose(0, 1).flatten(1, 2)  # [r, v]
        return self._give(out)

    def _receive(self, *sizes: int) -> Tensor:
        """Wait for hidden states [*sizes, h] of the stage before."""
        context = self._context
        x = torch.empty(*sizes, self.config.hidden_size, dtype=self._dtype, device=context.device)
        dist.recv(x, group=context.pp_group, group_src=context.pp_rank - 1)
        return x

    def _give(self, out: Tensor) -> Tensor | None:
        """Give a last stage's logits, or send hidden states on."""
        if self._is_last:
            return out[:, : self.config.vocab_size]
        context = self._context
        dist.send(out.contiguous(), group=context.pp_group, group_dst=context.pp_rank + 1)
        return None


def _ends_of(sizes: Sequence[int]) -> list[int]:
    """Give the last places of runs of these sizes."""
    return [end - 1 for end in itertools.accumulate(sizes)]


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
