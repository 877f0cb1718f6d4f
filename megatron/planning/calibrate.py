"""Measure the machine at hand and write what a plan needs to know of it.

What is measured takes the place of what a shipped file assumes; what cannot be (a data sheet's peaks, links of a lone
process) comes from the shipped file of the same device if there is one, and is left unknown if not. Shares are of the
peaks, so that MFU keeps its meaning.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron.config import Config
from megatron.errors import ConfigError
from megatron.logging import get_logger
from megatron.parallel.launch import Launch
from megatron.planning.gpu_monitor import GpuMonitor
from megatron.planning.hardware import (
    FOLDER,
    Efficiency,
    Hardware,
    known_hardware,
    read_hardware,
    write_hardware,
)
from megatron.planning.links import Link, measure_links
from megatron.planning.rates import (
    AttentionRates,
    Bench,
    Rate,
    free_bytes,
    measure_attention,
    measure_copy,
    measure_memory,
    measure_products,
)
from megatron.planning.stage import hidden_bytes
from megatron.planning.stopwatch import Stopwatch

logger = get_logger(__name__)

# Of the time: products decide a plan, and have the most shapes.
SHARES = {"products": 0.4, "attention": 0.25, "copy": 0.05, "memory": 0.15, "links": 0.15}
SAME_DEVICE = 0.1  # data sheets round memory, and count it in GB or in GiB


@dataclass(frozen=True)
class Device:
    """What a device says of itself."""

    name: str
    kind: str  # cuda or cpu
    capability: tuple[int, int] | None
    memory_bytes: float


@dataclass(frozen=True)
class Measured:
    """All that was timed."""

    products: Rate
    num_rows: int
    attention: AttentionRates
    copy: float  # bytes a second
    memory: Rate
    links: dict[Link, tuple[Rate, Rate]]
    watts: list[float]
    reserved_bytes: float


def check_target(path: Path, *, may_replace: bool) -> None:
    """Raise ConfigError, before anything is measured, unless a file can be written there."""
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--calibrate {path}: give the path of a file that ends in .yaml")
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"--calibrate {path}: there is no folder {path.resolve().parent}")
    if path.exists() and not may_replace:
        ours = path.resolve().parent == Path(str(FOLDER)).resolve()
        what = "is one of the files that come with the planner" if ours else "is there already"
        raise ConfigError(
            f"--calibrate {path} {what}; give another path, or --overwrite to replace it"
        )


def calibrate(
    config: Config,
    launch: Launch,
    device: torch.device,
    *,
    document_length: int | None,
    budget: float,
    peak_flops: Callable[[str, str], float | None],
) -> Hardware:
    """Measure for about budget seconds and describe the machine. Collective over the world, synchronises the device.

    peak_flops: a data sheet's, by device name and dtype.
    """
    start = time.monotonic()
    about = describe_device(device)
    used_before = about.memory_bytes - free_bytes(device)
    logger.info(f"measuring {about.name} for about {budget:.0f} s")
    bench = Bench(config, device, Stopwatch(device))
    measured = _measure(bench, launch, used_before, document_length, budget)
    base = shipped_file_of(about)
    hardware = _fill(config, launch, about, measured, base, peak_flops)
    logger.info(f"measured in {time.monotonic() - start:.0f} s")
    return hardware


def describe_device(device: torch.device) -> Device:
    """Ask a device for its name and its memory."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        capability = (properties.major, properties.minor)
        return Device(properties.name, "cuda", capability, float(properties.total_memory))
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return Device(f"CPU, {torch.get_num_threads()} threads", "cpu", None, memory)


def shipped_file_of(device: Device) -> Hardware | None:
    """Find the file of this package for the same kind of device: the first word of its name, and as much memory."""
    if device.kind != "cuda" or re.search(r"PCIe|NVL", device.name, re.IGNORECASE):
        return None  # other bandwidths and links than those of the files
    for name in known_hardware():
        known = read_hardware(name)
        model = re.escape(known.name.split("-")[0])
        is_near = abs(device.memory_bytes / known.memory_bytes - 1) <= SAME_DEVICE
        if re.search(rf"\b{model}\b", device.name) and is_near:
            return known
    return None


def _measure(
    bench: Bench, launch: Launch, used_before: float, document_length: int | None, budget: float
) -> Measured:
    """Time one kind of work after another."""
    seconds = {name: share * budget for name, share in SHARES.items()}
    with GpuMonitor(bench.device) as monitor:
        products, rows = measure_products(bench, seconds["products"])
        logger.info(f"products of {rows:,} rows: {products.value / 1e12:,.4g} TFLOP/s")
        attention = measure_attention(bench, document_length, seconds["attention"])
        logger.info(
            f"attention by {attention.kernel}, {attention.batch_size} x {attention.seq_length:,} tokens: "
            f"{attention.forward.value / 1e12:,.4g} TFLOP/s forward, "
            f"{attention.backward.value / 1e12:,.4g} backward"
        )
        memory = measure_memory(bench, rows, seconds["memory"])
        copy = measure_copy(bench, seconds["copy"])
        logger.info(
            f"memory: copy {copy / 1e9:,.4g} GB/s, what a layer does besides {memory.value / 1e9:,.4g}"
        )
    reserved = used_before
    if bench.device.type == "cuda":  # the driver's context is there only now
        total = torch.cuda.get_device_properties(bench.device).total_memory
        in_use = total - free_bytes(bench.device)
        reserved = in_use - torch.cuda.memory_allocated(bench.device)
        torch.cuda.empty_cache()
    message = hidden_bytes(bench.config)
    links = measure_links(launch, bench.stopwatch, message, seconds["links"])
    for link, (collectives, neighbour) in links.items():
        logger.info(
            f"{link}: collectives {collectives.value / 1e9:,.4g} GB/s, to a neighbour {neighbour.value / 1e9:,.4g}"
        )
    watts = monitor.readings("power_w")
    return Measured(products, rows, attention, copy, memory, links, watts, reserved)


def _fill(
    config: Config,
    launch: Launch,
    about: Device,
    measured: Measured,
    base: Hardware | None,
    peak_flops: Callable[[str, str], float | None],
) -> Hardware:
    """Put numbers measured and known together, each with where it is from."""
    dtype = config.precision.compute_dtype
    from_base = f"the file of {base.name}" if base is not None else "not known"
    sources = {
        "measured": f"tools/plan.py --calibrate, torch {torch.__version__}, {dtype}, "
        f"{measured.num_rows} rows, attention by {measured.attention.kernel} over "
        f"{measured.attention.seq_length} tokens",
        "memory_bytes": "the device",
        "reserved_bytes": "in use beside tensors while measuring",
    }
    peak = base.peak_flops.get(dtype) if base is not None else None
    peak = peak or peak_flops(about.name, dtype)
    sources["peak_flops"] = "data sheet"
    if peak is None:
        peak = max(measured.products.parts.values())
        sources["peak_flops"] = "the fastest product measured: no data sheet is known"
    bandwidth = base.memory_bandwidth if base is not None else measured.copy
    sources["memory_bandwidth"] = from_base if base is not None else "a copy, measured"
    reserved = measured.reserved_bytes
    if base is not None and base.reserved_bytes > reserved:
        reserved, sources["reserved_bytes"] = base.reserved_bytes, from_base
    watts = base.power_watts if base is not None else None
    sources["power_watts"] = from_base
    if measured.watts:
        watts = sum(measured.watts) / len(measured.watts)
        sources["power_watts"] = "nvidia-smi, mean over what was timed"
    bandwidths: dict[Link, float | None] = {}
    for link in ("node", "network"):
        known = getattr(base, f"{link}_bandwidth") if base is not None else None
        share = base.efficiency.link if base is not None else 1.0
        bandwidths[link] = None if known is None else known * share
        sources[f"{link}_bandwidth"] = f"{from_base}, times its share" if known else "not measured"
        if link in measured.links:
            bandwidths[link] = measured.links[link][0].value
            sources[f"{link}_bandwidth"] = "collectives, measured"
    kernel = measured.attention.kernel
    count = launch.local_world_size
    if launch.world_size == 1 and base is not None:
        count = base.devices_per_node
    return Hardware(
        name=about.name,
        device_type=about.kind,
        capability=about.capability,
        memory_bytes=about.memory_bytes,
        reserved_bytes=reserved,
        peak_flops={**(base.peak_flops if base is not None else {}), dtype: peak},
        memory_bandwidth=bandwidth,
        node_bandwidth=bandwidths["node"],
        network_bandwidth=bandwidths["network"],
        devices_per_node=count,
        power_watts=watts,
        efficiency=Efficiency(
            product=measured.products.value / peak,
            attention_forward=measured.attention.forward.value / peak,
            attention_backward=measured.attention.backward.value / peak,
            memory=measured.memory.value / bandwidth,
            link=1.0,  # bandwidths above are what arrives
            flash=1.0 if base is None or kernel == "flash" else base.efficiency.flash,
        ),
        sources=sources,
        measured=_parts(measured),
    )


def _parts(measured: Measured) -> dict[str, float]:
    """Name every rate that was measured, FLOP/s or bytes a second."""
    rates = [measured.products, measured.attention.forward, measured.attention.backward]
    parts = {
        name: value for rate in [*rates, measured.memory] for name, value in rate.parts.items()
    }
    for link, pair in measured.links.items():
        parts |= {f"{link}_{name}": value for rate in pair for name, value in rate.parts.items()}
    return {**parts, "copy": measured.copy}


def known_before(path: Path, hardware: Hardware) -> Hardware | None:
    """Read the file that a measurement replaces, else the shipped one of the device; None if there is none."""
    if path.exists():
        return read_hardware(str(path))
    return shipped_file_of(
        Device(hardware.name, hardware.device_type, hardware.capability, hardware.memory_bytes)
    )


def compare(before: Hardware | None, after: Hardware) -> str:
    """Set the numbers of two files beside each other, one line each."""
    rows = [["", before.name if before is not None else "nothing", after.name, "ratio"]]
    old = _numbers(before) if before is not None else {}
    for name, value in _numbers(after).items():
        past = old.get(name)
        ratio = f"{value / past:.3f}" if value is not None and past else ""
        rows.append([name, _shown(past), _shown(value), ratio])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def _numbers(hardware: Hardware) -> dict[str, float | None]:
    """Give the numbers of a file by name, links as what arrives."""
    link = hardware.efficiency.link
    numbers: dict[str, float | None] = {
        "memory_bytes": hardware.memory_bytes,
        "reserved_bytes": hardware.reserved_bytes,
        **{f"peak_flops {dtype}": peak for dtype, peak in hardware.peak_flops.items()},
        "memory_bandwidth": hardware.memory_bandwidth,
        "power_watts": hardware.power_watts,
    }
    for name in ("node", "network"):
        bandwidth = getattr(hardware, f"{name}_bandwidth")
        numbers[f"{name} link, arriving"] = None if bandwidth is None else bandwidth * link
    shares = dataclasses.asdict(hardware.efficiency)
    return numbers | {f"share {name}": one for name, one in shares.items() if name != "link"}


def _shown(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"


def save(hardware: Hardware, path: Path) -> str:
    """Write the file in one step and say in a line what is in it."""
    write_hardware(hardware, path)
    shares = hardware.efficiency
    return (
        f"{path}: {hardware.name}, products at {shares.product:.0%} of the peak, attention at "
        f"{shares.attention_forward:.0%} forward and {shares.attention_backward:.0%} backward, memory at "
        f"{shares.memory:.0%} of {hardware.memory_bandwidth / 1e9:,.0f} GB/s; plan with --hardware {path}"
    )
