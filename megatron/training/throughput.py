"""Tokens a second, and what they come to in FLOP/s and in parts of a device's peak."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from megatron.model.flops import FlopsPerToken


@dataclass
class Clock:
    """Wall time of the steps since the last log line; validation and saving do not count.

    True when it is read with all steps done: between a start and a pause a GPU may be behind.
    """

    seconds: float = 0.0  # up to the last pause
    tokens: int = 0
    num_steps: int = 0
    attention_share: float = 1.0  # mean over the tokens
    warm_up_seconds: float = 0.0  # of the first step of a process, where it is among these
    num_warm_up_steps: int = 0
    _started: float | None = field(default=None, repr=False)

    def start(self) -> None:
        """Go on, if it does not."""
        if self._started is None:
            self._started = time.monotonic()

    def pause(self) -> None:
        """Stop, if it goes."""
        if self._started is not None:
            self.seconds += time.monotonic() - self._started
            self._started = None

    def end_warm_up(self) -> None:
        """Tell the step that has just been taken apart: a process compiles, allocates and opens files in its first."""
        self.pause()
        self.warm_up_seconds, self.num_warm_up_steps = self.seconds, 1
        self.start()

    @property
    def usual_step_seconds(self) -> float | None:
        """What a step takes that is no process's first; None where there was no other."""
        num_steps = self.num_steps - self.num_warm_up_steps
        return (self.seconds - self.warm_up_seconds) / num_steps if num_steps > 0 else None

    def count(self, tokens: int, attention_share: float) -> None:
        """Account for one step."""
        self.tokens += tokens
        self.num_steps += 1
        self.attention_share += (attention_share - self.attention_share) * tokens / self.tokens


@dataclass(frozen=True)
class Throughput:
    """What turns tokens a second into FLOP/s, per GPU (or per CPU process)."""

    world_size: int
    flops_per_token: FlopsPerToken
    peak_flops: float | None  # of one device in the compute dtype; None where it is not known

    def fields(
        self, tokens: int, seconds: float, attention_share: float
    ) -> dict[str, float | None]:
        """Give the speed fields of a metrics line; attention_share as in `FlopsPerToken.within_documents`."""
        rate = tokens / seconds
        rate_per_gpu = rate / self.world_size
        full = rate_per_gpu * self.flops_per_token.full
        causal = rate_per_gpu * self.flops_per_token.within_documents(attention_share)
        return {
            "tokens_per_second": rate,
            "tokens_per_second_per_gpu": rate_per_gpu,
            "tflops_per_gpu_full": full / 1e12,
            "tflops_per_gpu_causal": causal / 1e12,
            "mfu_full": full / self.peak_flops if self.peak_flops else None,
            "mfu_causal": causal / self.peak_flops if self.peak_flops else None,
        }


# Dense bf16/fp16 tensor-core peak of one device in FLOP/s, from the vendor's data sheets.
PEAK_FLOPS = {
    "V100": 125e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


def peak_flops(device_name: str, compute_dtype: str) -> float | None:
    """Give the peak of a named device, None when it or the dtype is not in the table."""
    if compute_dtype == "float32":
        return None
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)
