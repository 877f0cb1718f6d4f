"""A trace of a few steps, and which kernels their time went to."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from megatron.benchmark.steps import take_step
from megatron.errors import ConfigError
from megatron.logging import get_logger
from megatron.training.run import Run

logger = get_logger(__name__)

NUM_ROWS = 30
NAME_LENGTH = 90


def profile_steps(run: Run, folder: Path, num_steps: int) -> str:
    """Take steps under torch.profiler; write rank_R.json.gz, which ui.perfetto.dev opens, and give a table."""
    device = run.parts.context.device
    path = folder / f"rank_{run.parts.context.rank}.json.gz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--profile {folder} cannot be made: {error.strerror}") from None
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        for _ in range(num_steps):
            take_step(run)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    table = _table(profiler, device, seconds / num_steps, num_steps)
    profiler.export_chrome_trace(str(path))
    logger.info(f"trace      {path}: open it at https://ui.perfetto.dev")
    return table


def _table(profiler: profile, device: torch.device, seconds_per_step: float, num_steps: int) -> str:
    """Lay out what took most of a step: kernels of a GPU, operators of a CPU, without what they call."""
    rows: list[tuple[float, int, str]] = []
    is_gpu = device.type == "cuda"
    for event in profiler.key_averages():
        if is_gpu != (event.device_type == DeviceType.CUDA):
            continue
        microseconds = event.self_device_time_total if is_gpu else event.self_cpu_time_total
        rows.append((microseconds / 1e6 / num_steps, event.count // num_steps, event.key))
    rows.sort(reverse=True)
    busy = sum(seconds for seconds, _, _ in rows)
    what = "kernel" if is_gpu else "operator"
    lines = [f"| {what} | ms a step | share | calls a step |", "|---|---|---|---|"]
    lines += [
        f"| `{name[:NAME_LENGTH].replace('|', '/')}` | {1e3 * seconds:.2f} | "
        f"{seconds / seconds_per_step:.1%} | {count:,} |"
        for seconds, count, name in rows[:NUM_ROWS]
    ]
    lines.append(
        f"| all {len(rows)}, of {1e3 * seconds_per_step:,.1f} ms under the profiler | {1e3 * busy:,.2f} | "
        f"{busy / seconds_per_step:.1%} | {sum(count for _, count, _ in rows):,} |"
    )
    return "\n".join(lines)
