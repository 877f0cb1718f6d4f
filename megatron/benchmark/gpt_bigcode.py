"""Hugging Face's GPTBigCode taking the steps that ours take: same shape, batches, arithmetic and optimizer.

As somebody would train it with transformers: its own loss, PyTorch's fused AdamW with fp32 weights, clipping, and
autocast for bf16. It is given batches that lie in memory, ours reads them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from megatron.benchmark import peers
from megatron.benchmark.measure import Clock, Row, Timed, measure, timed
from megatron.benchmark.steps import take_step
from megatron.config import Config
from megatron.convert.hf_gpt_bigcode import GPT_BIGCODE
from megatron.errors import ConfigError
from megatron.training.run import Run

NUM_BATCHES = 8  # that the peer takes in turn


def compare(
    run: Run,
    *,
    steps_per_turn: int,
    rounds: int,
    num_warmup: int,
    with_compiled: bool,
    clock: Clock,
) -> list[Row]:
    """Time a run and the peer in turns; a row each for the peer as it is and, if asked for, compiled.

    clock: time.perf_counter, or time.process_time for the time that the process had a core.
    """
    size = run.batches.size(run.progress.consumed_samples)
    device = run.parts.context.device
    batches = [run.loader.batch(n * size, size).tokens.to(device) for n in range(NUM_BATCHES)]
    name = f"transformers {peers.version('transformers')}"
    sides = {name: GPTBigCode(run.config, device, batches, is_compiled=False)}
    if with_compiled:
        sides[f"{name}, compiled"] = GPTBigCode(run.config, device, batches, is_compiled=True)

    def ours() -> None:
        take_step(run)[0].read()

    for take in (ours, *(side.take_step for side in sides.values())):
        for _ in range(num_warmup):
            take()

    def turn(take: Callable[[], object]) -> Timed:
        return timed(lambda: [take() for _ in range(steps_per_turn)], clock)

    kind = "CPU time" if clock is time.process_time else "wall time"
    return measure(
        f"train, {run.config.precision.compute_dtype}",
        "tokens/s",
        steps_per_turn * size * run.parts.seq_length,
        turn(ours),
        {name: turn(side.take_step) for name, side in sides.items()},
        rounds=rounds,
        note=f"{kind}, threads: {torch.get_num_threads()}, steps a turn: {steps_per_turn}",
    )


class GPTBigCode:
    """The peer's model and optimizer, and the batches that it takes in turn."""

    def __init__(
        self,
        config: Config,
        device: torch.device,
        batches: Sequence[Tensor],
        *,
        is_compiled: bool,
    ) -> None:
        """Make the model; batches: ids int64 [B, s] on the device."""
        if peers.version("transformers") is None:
            raise ConfigError("--peer needs transformers: pip install transformers")
        from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

        fields = GPT_BIGCODE.write_fields(config.model)
        model: Any = GPTBigCodeForCausalLM(
            GPTBigCodeConfig(
                vocab_size=config.model.padded_vocab_size,
                initializer_range=config.model.init_method_std,
                use_cache=False,
                **fields,
            )
        )
        self._model: nn.Module = model.to(device).train()
        self._run: Any = torch.compile(self._model) if is_compiled else self._model
        self._batches = batches
        self._num_taken = 0
        self._device = device
        self._dtype = getattr(torch, config.precision.compute_dtype)
        self._micro_batch_size = config.training.micro_batch_size
        self._clip_grad = config.optimizer.clip_grad
        self._optimizer = _make_optimizer(self._model, config)

    def take_step(self) -> float:
        """Update the weights with the next batch and give its loss. Synchronises the device."""
        batch = self._batches[self._num_taken % len(self._batches)]
        self._num_taken += 1
        micro_batches = batch.split(self._micro_batch_size)
        total = torch.zeros((), device=self._device)
        is_mixed = self._dtype != torch.float32
        for tokens in micro_batches:
            with torch.autocast(self._device.type, self._dtype, enabled=is_mixed):
                loss = self._run(input_ids=tokens, labels=tokens).loss
            (loss / len(micro_batches)).backward()
            total += loss.detach()
        if self._clip_grad > 0.0:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_grad)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(total) / len(micro_batches)


def _make_optimizer(model: nn.Module, config: Config) -> torch.optim.AdamW:
    options = config.optimizer
    parameters = list(model.parameters())
    assert options.lr is not None
    return torch.optim.AdamW(
        [
            {
                "params": [p for p in parameters if p.ndim >= 2],
                "weight_decay": options.weight_decay,
            },
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=options.lr / 100,  # ours warms up; the rate does not change the time
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_eps,
        fused=True,
    )
