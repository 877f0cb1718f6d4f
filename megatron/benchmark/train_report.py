"""What `bench.py train` found: one dictionary, which is the JSON, and the tables made of it."""

from __future__ import annotations

import os
import platform
import resource
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from megatron.benchmark.shape import SHAPES
from megatron.benchmark.steps import PARTS, TimedSteps
from megatron.model.flops import num_parameters
from megatron.training.inputs import Inputs
from megatron.training.kernel_choice import choose_run_kernels
from megatron.training.run import Run
from megatron.training.summary import summarize

Report = dict[str, Any]


class PeakMemory:
    """The most memory that was in use from here on: of the GPU, or of this process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> dict[str, int]:
        """Give bytes by kind."""
        if self._device.type == "cuda":
            return {
                "allocated": torch.cuda.max_memory_allocated(self._device),
                "reserved": torch.cuda.max_memory_reserved(self._device),
            }
        return {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def describe(model: str, inputs: Inputs, run: Run, world_size: int) -> Report:
    """Say what is measured, on what and with which settings."""
    config, device = run.config, run.parts.context.device
    is_gpu = device.type == "cuda"
    kernels = choose_run_kernels(config, device)
    _, layout, *_ = summarize(inputs, world_size)
    return {
        "model": model,
        "source": SHAPES[model].source,
        "parameters": num_parameters(config.model),
        "num_layers": config.model.num_layers,
        "hidden_size": config.model.hidden_size,
        "num_attention_heads": config.model.num_attention_heads,
        "vocab_size": config.model.vocab_size,
        "device": torch.cuda.get_device_name(device) if is_gpu else _cpu_name(),
        "threads": None if is_gpu else torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dtype": config.precision.compute_dtype,
        "layout": layout.split(maxsplit=1)[1],
        "world_size": world_size,
        "seq_length": config.data.seq_length,
        "micro_batch_size": config.training.micro_batch_size,
        "global_batch_size": run.batches.size(0),
        "documents": config.data.reset_attention_mask,
        "fim_rate": config.data.fim_rate,
        "hidden_dropout": config.model.hidden_dropout,
        "attention_dropout": config.model.attention_dropout,
        "recompute_granularity": config.model.recompute_granularity,
        "optimizer": run.parts.optimizer.describe(),
        "kernels": [
            {"operation": c.operation, "name": c.name, "reason": c.reason} for c in kernels.choices
        ],
    }


def _cpu_name() -> str:
    return f"CPU {platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def figures(run: Run, timed: TimedSteps) -> Report:
    """Give the raw figures of each step, and what follows from them; speeds of the whole world."""
    tokens = run.batches.size(0) * run.parts.seq_length
    median = statistics.median(timed.seconds)
    speeds = run.throughput.fields(tokens, median, timed.attention_share)
    return {
        "step_seconds": timed.seconds,
        "loader_seconds": timed.loader_seconds,
        "losses": timed.losses,
        "tokens_per_step": tokens,
        "tokens_per_second": _spread([tokens / seconds for seconds in timed.seconds]),
        "step_ms": _spread([1e3 * seconds for seconds in timed.seconds]),
        "loader_ms": _spread([1e3 * seconds for seconds in timed.loader_seconds]),
        "attention_share": timed.attention_share,
        "peak_tflops": run.throughput.peak_flops and run.throughput.peak_flops / 1e12,
        **{name: value for name, value in speeds.items() if "tokens_per_second" not in name},
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def settings_table(report: Report) -> str:
    """Lay out what was measured."""
    dropout = f"hidden {report['hidden_dropout']:g}, attention {report['attention_dropout']:g}"
    tokens = report["global_batch_size"] * report["seq_length"]
    rows = [
        (
            "model",
            f"{report['model']}: {report['parameters']:,} parameters, {report['num_layers']} layers of width "
            f"{report['hidden_size']}, {report['num_attention_heads']} heads, {report['vocab_size']:,} ids "
            f"({report['source']})",
        ),
        ("device", report["device"]),
        ("software", f"torch {report['torch']}, Python {report['python']}"),
        ("layout", report["layout"]),
        (
            "batch",
            f"{report['global_batch_size']} samples of {report['seq_length']:,} = {tokens:,} tokens, "
            f"{report['micro_batch_size']} samples at once",
        ),
        ("options", f"dropout: {dropout}; FIM {report['fim_rate']:g}; {_options(report)}"),
    ]
    if report["threads"] is not None:
        rows.append(("threads", str(report["threads"])))
    rows.append(("optimizer", report["optimizer"]))
    rows += [(f"kernel {c['operation']}", f"{c['name']}: {c['reason']}") for c in report["kernels"]]
    return _two_columns(rows)


def _options(report: Report) -> str:
    recompute = report["recompute_granularity"] or "nothing"
    documents = "apart" if report["documents"] else "see each other"
    return f"documents of a sample {documents}; recomputed: {recompute}"


def to_markdown(report: Report) -> str:
    """Lay out settings and figures as Markdown tables."""
    return "\n\n".join((settings_table(report), _figures_table(report), _parts_table(report)))


def in_one_line(report: Report) -> str:
    """Say the speed and the memory."""
    speed = _shown(report["tokens_per_second"], ",.0f", len(report["step_seconds"]))
    full = _mfu(report["mfu_full"], report["tflops_per_gpu_full"], report)
    losses = f"{report['losses'][0]:.4f} to {report['losses'][-1]:.4f}"
    memory = _memory(report["peak_memory_bytes"])
    return f"{report['model']}: {speed} tokens/s; MFU full {full}; {memory}; loss {losses}"


def _figures_table(report: Report) -> str:
    num_steps, losses = len(report["step_seconds"]), report["losses"]
    full, causal = report["tflops_per_gpu_full"], report["tflops_per_gpu_causal"]
    rows = [
        ("tokens/s", _shown(report["tokens_per_second"], ",.0f", num_steps)),
        ("ms a step", _shown(report["step_ms"], ",.1f", num_steps)),
        ("MFU, all pairs (full)", _mfu(report["mfu_full"], full, report)),
        ("MFU, pairs seen (causal)", _mfu(report["mfu_causal"], causal, report)),
        ("attention pairs", f"{report['attention_share']:.1%} of those of causal whole samples"),
        ("host waited for the loader", _shown(report["loader_ms"], ",.1f", num_steps) + " ms"),
        ("peak memory", _memory(report["peak_memory_bytes"])),
        ("loss", f"{losses[0]:.3f} at the first, {losses[-1]:.3f} at the last of these steps"),
    ]
    for name, (low, median, high) in report["gpu"].items():
        rows.append((name.replace("_", " "), f"{median:,.0f} ({low:,.0f} to {high:,.0f})"))
    return _two_columns(rows)


def _parts_table(report: Report) -> str:
    seconds = report["part_seconds"]
    total = sum(seconds.values())
    names = sorted(seconds, key=lambda name: PARTS.index(name) if name in PARTS else 1)
    lines = ["| part of a step | ms | share |", "|---|---|---|"]
    lines += [
        f"| {name} | {1e3 * seconds[name]:,.1f} | {seconds[name] / total:.1%} |" for name in names
    ]
    return "\n".join([*lines, f"| sum, of other steps than above | {1e3 * total:,.1f} | |"])


def _two_columns(rows: Sequence[tuple[str, str]]) -> str:
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)


def _shown(spread: dict[str, float], form: str, num_steps: int) -> str:
    low, high = format(spread["min"], form), format(spread["max"], form)
    return f"{spread['median']:{form}} (median of {num_steps} steps; {low} to {high})"


def _mfu(share: float | None, tflops: float, report: Report) -> str:
    if share is None:
        return f"{tflops:,.3g} TFLOP/s; no peak is known for this device and dtype"
    return f"{share:.1%} of {report['peak_tflops']:,.0f} TFLOP/s ({tflops:,.0f})"


def _memory(peak: dict[str, int]) -> str:
    return ", ".join(f"{size / 1e9:,.2f} GB {kind}" for kind, size in peak.items())
