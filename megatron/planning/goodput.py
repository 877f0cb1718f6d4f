"""What failures and checkpoints leave of a run's time, and how often to save.

A run of device-hours H on devices that fail once in M_d hours each fails H / M_d times; what is lost then is what was
done since the last checkpoint, and the time to notice, start again and load. Failures are independent (exponential), as
J. T. Daly assumes whose formula of the expected run time is used here ("A higher order estimate of the optimum
checkpoint interval for restart dumps", Future Generation Computer Systems 22, 2006). Knows nothing of layouts beyond their step time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from megatron.config import Config
from megatron.model.flops import num_parameters

# Llama 3 (arXiv 2407.21783 §3.3.4): 419 unexpected interruptions of 16,384 GPUs in 54 days.
DEVICE_MTBF_HOURS = 54 * 24 * 16_384 / 419
FP32_BYTES = 4


@dataclass(frozen=True)
class Failures:
    """What a run's time depends on besides its steps. The defaults are assumptions, but for the first."""

    device_mtbf_hours: float = DEVICE_MTBF_HOURS
    restart_minutes: float = 10.0  # from a failure to the first new step
    storage_bandwidth: float = 20e9  # bytes a second, of all processes together
    host_copy_bandwidth: float = 10e9  # bytes a second and process, device to host


@dataclass(frozen=True)
class Goodput:
    """What failures and saving leave of a run's time, at one interval between checkpoints."""

    save_interval: int  # steps
    interval_seconds: float
    stall_seconds: float  # that training stands still for a checkpoint
    write_seconds: float  # until a checkpoint counts
    checkpoint_bytes: float
    mtbf_hours: float  # of the whole run
    share: float  # of the time that goes into steps which count
    days: float  # with failures and saves


@dataclass(frozen=True)
class Steps:
    """What a run would be if nothing failed and nothing was saved."""

    world_size: int
    seconds: float  # of a step
    days: float  # of all


def plan_goodput(config: Config, steps: Steps, failures: Failures) -> Goodput:
    """Model a run with the interval of --save-interval, or the best one where none is given."""
    interval = config.checkpoint.save_interval or best_interval(config, steps, failures)
    mtbf = failures.device_mtbf_hours * 3600 / steps.world_size
    stall, write = _save_seconds(config, steps, failures)
    share = _share(
        interval * steps.seconds,
        stall=stall,
        # what is not yet written when a failure comes is lost too
        restart=60 * failures.restart_minutes + write - stall,
        mtbf=mtbf,
    )
    return Goodput(
        save_interval=interval,
        interval_seconds=interval * steps.seconds,
        stall_seconds=stall,
        write_seconds=write,
        checkpoint_bytes=checkpoint_bytes(config),
        mtbf_hours=mtbf / 3600,
        share=share,
        days=steps.days / share if share > 0 else math.inf,
    )


def best_interval(config: Config, steps: Steps, failures: Failures) -> int:
    """Give the number of steps between checkpoints that wastes the least, by Young's formula: sqrt(2 x stall x MTBF).

    Not below what a checkpoint takes to be written: the next one would wait for it.
    """
    stall, write = _save_seconds(config, steps, failures)
    mtbf = failures.device_mtbf_hours * 3600 / steps.world_size
    return max(1, round(max(math.sqrt(2 * stall * mtbf), write) / steps.seconds))


def checkpoint_bytes(config: Config) -> float:
    """Give the size of a checkpoint's tensors: fp32 weights and the two moments."""
    moments = 0
    if not config.checkpoint.no_save_optim:
        moments = sum(getattr(torch, name).itemsize for name in config.optimizer.moment_dtypes)
    return float(num_parameters(config.model) * (FP32_BYTES + moments))


def _save_seconds(config: Config, steps: Steps, failures: Failures) -> tuple[float, float]:
    """Give (how long training stands still for a checkpoint, how long until it counts)."""
    size = checkpoint_bytes(config)
    write = size / failures.storage_bandwidth
    if not config.checkpoint.async_save:
        return write, write
    copy = size / steps.world_size / failures.host_copy_bandwidth
    return copy, copy + write


def _share(work: float, *, stall: float, restart: float, mtbf: float) -> float:
    """Give the share of the time that is work, of segments of work seconds between checkpoints."""
    exponent = (work + stall) / mtbf
    if (
        max(exponent, restart / mtbf) > 700
    ):  # a segment or a restart without a failure is never seen
        return 0.0
    return work / (mtbf * math.exp(restart / mtbf) * math.expm1(exponent))
