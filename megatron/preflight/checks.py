"""The checks of a preflight, in order: each gathers what the nodes tell and gives findings on rank 0. Collective."""

from __future__ import annotations

import functools
import statistics
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TypeVar

from megatron.config import Config
from megatron.data.checksum import checksum_path
from megatron.errors import CheckpointError
from megatron.parallel.agreement import gather_on_first, on_first_rank
from megatron.parallel.context import ParallelContext
from megatron.parallel.launch import Launch
from megatron.planning.goodput import checkpoint_bytes
from megatron.preflight import network, node, tiny_run
from megatron.preflight.finding import Finding, Level, same_everywhere
from megatron.preflight.network import Link
from megatron.training.inputs import Inputs

KEPT_CHECKPOINTS = 3
BUSY_BYTES = 1 << 30  # what an idle GPU may hold
SLOW_LINK, SLOW_DISK = 0.5, 100e6  # of the median; bytes a second
CLOCK_SECONDS = 1.0
PATIENCE_SECONDS = 120.0
T = TypeVar("T")


@dataclass(frozen=True)
class Preflight:
    """What the checks look at."""

    inputs: Inputs
    launch: Launch
    context: ParallelContext
    host: str

    @property
    def config(self) -> Config:
        return self.inputs.config

    def by_host(self, look: Callable[[], T]) -> dict[str, T]:
        """Look once on each node; give {host: what was seen} to rank 0. Collective over the world."""
        is_speaker = self.launch.local_rank == 0
        told: list[tuple[str, T] | None] = gather_on_first(
            lambda: (self.host, look()) if is_speaker else None
        )
        return dict(item for item in told if item is not None)


def all_checks(preflight: Preflight) -> Iterator[list[Finding]]:
    """Run the checks one after the other; findings are rank 0's."""
    yield check_versions(preflight)
    yield check_gpus(preflight)
    yield check_clocks(preflight)
    yield check_files(preflight)
    yield check_disks(preflight)
    yield check_links(preflight)
    yield check_tiny_run(preflight)


def check_versions(preflight: Preflight) -> list[Finding]:
    seen = preflight.by_host(node.versions)
    what = "make the environment on a disk that all nodes see, or the same on each"
    names = node.versions() if seen else {}
    return [
        same_everywhere(name, {host: value[name] for host, value in seen.items()}, what)
        for name in names
    ]


def check_gpus(preflight: Preflight) -> list[Finding]:
    seen = preflight.by_host(node.gpus)
    if not seen:
        return []
    if preflight.context.device.type == "cpu":
        return [Finding("PASS", "gpus", "none in use: the processes are on the CPU")]
    mute = {host: gpus[0]["error"] for host, gpus in seen.items() if gpus and "error" in gpus[0]}
    findings = [
        Finding("FAIL", "gpus", error, "drain the node, or mend its driver", (host,))
        for host, error in mute.items()
    ]
    seen = {host: gpus for host, gpus in seen.items() if host not in mute}
    if not seen:
        return findings
    names = {
        host: ", ".join(sorted({gpu.get("name", "?") for gpu in gpus}))
        for host, gpus in seen.items()
    }
    counts = {host: f"{len(gpus)} x {names[host]}" for host, gpus in seen.items()}
    findings.append(same_everywhere("gpus", counts, "take the nodes out that differ"))
    drivers = {host: gpus[0].get("driver_version", "?") for host, gpus in seen.items() if gpus}
    findings.append(same_everywhere("driver", drivers, "update the nodes that differ", "WARN"))
    conditions: tuple[tuple[str, Callable[[dict[str, str]], bool], Level, str], ...] = (
        ("gpu memory", _is_busy, "FAIL", "end what else runs there: nvidia-smi shows it"),
        (
            "gpu errors",
            _has_errors,
            "FAIL",
            "drain the node: such ECC errors need a reset or a repair",
        ),
        ("gpu clocks", _is_slowed, "WARN", "look after cooling and power of that node"),
    )
    for check, is_bad, level, what in conditions:
        bad = tuple(
            f"{host} gpu {number}"
            for host, devices in seen.items()
            for number, device in enumerate(devices)
            if is_bad(device)
        )
        findings.append(
            Finding(level, check, f"{len(bad)} GPU(s)", what, bad)
            if bad
            else Finding("PASS", check, "nothing to see")
        )
    return findings


def _is_busy(gpu: dict[str, str]) -> bool:
    # this preflight's own process holds some hundred MB there
    used = gpu.get("memory.used", "")
    return used.isdecimal() and int(used) * 2**20 > 2 * BUSY_BYTES  # "[N/A]" with shared memory


def _has_errors(gpu: dict[str, str]) -> bool:
    return gpu.get("ecc.errors.uncorrected.volatile.total", "0") not in ("0", "[N/A]")


def _is_slowed(gpu: dict[str, str]) -> bool:
    return gpu.get("clocks_throttle_reasons.hw_slowdown") == "Active"


def check_clocks(preflight: Preflight) -> list[Finding]:
    offset = network.clock_offset()
    seen = preflight.by_host(lambda: offset)
    late = {host: value for host, value in seen.items() if abs(value) > CLOCK_SECONDS}
    if not late:
        return (
            [Finding("PASS", "clocks", f"within {CLOCK_SECONDS:.0f} s of rank 0's")] if seen else []
        )
    shown = ", ".join(f"{host} {value:+.1f} s" for host, value in late.items())
    what = "start chrony or ntpd there: logs of nodes cannot be compared"
    return [Finding("WARN", "clocks", shown, what, tuple(late))]


def check_files(preflight: Preflight) -> list[Finding]:
    """Compare data and tokenizer by hash: whole where it is written beside them, of samples where not."""
    config = preflight.config
    paths = [Path(config.tokenizer.tokenizer_file)] if config.tokenizer.tokenizer_file else []
    for prefix in sorted(_prefixes(config)):
        paths += [checksum_path(prefix), Path(f"{prefix}.idx"), Path(f"{prefix}.bin")]
    findings = []
    for path in paths:
        seen = preflight.by_host(functools.partial(_hash_or_missing, path))
        if seen and set(seen.values()) != {"missing"}:
            what = "copy the file again to the nodes that differ, or let all read the same one"
            findings.append(same_everywhere(path.name, seen, what))
    return findings


def _hash_or_missing(path: Path) -> str:
    return node.sampled_hash(path) if path.exists() else "missing"


def _prefixes(config: Config) -> set[str]:
    """Give the prefixes of token files that the options name: words that are files when .bin is added."""
    data = config.data
    words = [*(data.data_path or ()), *(data.train_data_path or ()), *(data.valid_data_path or ())]
    for group in data.valid_weighted_split_paths or ():
        words += group.split()
    return {word for word in words if Path(f"{word}.bin").exists()}


def check_disks(preflight: Preflight) -> list[Finding]:
    save = preflight.config.checkpoint.save
    if save is None:
        return [Finding("WARN", "disk", "there is no --save", "give one: a crash loses everything")]
    folder = Path(save)
    on_first_rank(lambda: folder.mkdir(parents=True, exist_ok=True))
    mark = on_first_rank(lambda: _leave_mark(folder))
    try:
        sees = preflight.by_host(lambda: (folder / mark).exists())
        free = preflight.by_host(lambda: node.free_bytes(folder))
        speed = preflight.by_host(lambda: node.write_speed(folder))
    except CheckpointError as error:
        what = "every node must be able to write to --save"
        return [Finding("FAIL", "disk", str(error), what)]
    finally:
        on_first_rank(lambda: (folder / mark).unlink(missing_ok=True))
    if not sees:
        return []
    findings = []
    blind = tuple(host for host, value in sees.items() if not value)
    shared = f"{save} is one folder on {len(sees)} node(s)"
    what = "put --save on a disk that all nodes share"
    findings.append(
        Finding("FAIL", "shared folder", f"{save} is another folder", what, blind)
        if blind
        else Finding("PASS", "shared folder", shared)
    )
    needed = KEPT_CHECKPOINTS * checkpoint_bytes(preflight.config)
    least = min(value for value in free.values())
    seen = f"{least / 1e9:.1f} GB free, {KEPT_CHECKPOINTS} checkpoints take {needed / 1e9:.1f} GB"
    findings.append(
        Finding("PASS", "disk space", seen)
        if least > needed
        else Finding("FAIL", "disk space", seen, "make room, or give another --save", tuple(free))
    )
    slow = {host: value for host, value in speed.items() if value < SLOW_DISK}
    slowest = min(speed, key=lambda host: speed[host])
    seen = f"{speed[slowest] / 1e6:.0f} MB/s with fsync at the least, on {slowest}"
    what = "checkpoints will take long: give a faster disk, or look at that node's mount"
    findings.append(
        Finding("WARN", "disk speed", seen, what, tuple(slow))
        if slow
        else Finding("PASS", "disk speed", seen)
    )
    return findings


def _leave_mark(folder: Path) -> str:
    name = f".preflight-{uuid.uuid4().hex}"
    (folder / name).touch()
    return name


def check_links(preflight: Preflight) -> list[Finding]:
    """Time collectives by axis, and name the groups far below the others of their axis."""
    own = network.measure_axes(preflight.context)
    told = gather_on_first(lambda: (preflight.host, own))
    hosts = [host for host, _ in told]
    by_axis: dict[str, dict[tuple[int, ...], Link]] = {}
    for _, links in told:
        for link in links:
            groups = by_axis.setdefault(link.axis, {})
            known = groups.get(link.ranks)
            if known is None or known.bytes_per_second > link.bytes_per_second:
                groups[link.ranks] = link
    return [_judge_axis(axis, list(groups.values()), hosts) for axis, groups in by_axis.items()]


def _judge_axis(axis: str, links: list[Link], hosts: list[str]) -> Finding:
    speeds = [link.bytes_per_second for link in links]
    median, slowest = statistics.median(speeds), min(links, key=lambda link: link.bytes_per_second)
    delay = statistics.median(link.latency_seconds for link in links)
    seen = (
        f"all-reduce of {len(links[0].ranks)}: {median / 1e9:.2f} GB/s, {delay * 1e6:.0f} us; slowest "
        f"{slowest.bytes_per_second / 1e9:.2f} GB/s: {_name(slowest, hosts)}"
    )
    slow = [link for link in links if link.bytes_per_second < SLOW_LINK * median]
    if not slow:
        return Finding("PASS", f"network {axis}", seen)
    what = "look at cable, switch port and NCCL_DEBUG=INFO of these nodes, or leave them out"
    where = tuple(_name(link, hosts) for link in slow)
    return Finding("WARN", f"network {axis}", seen, what, where)


def _name(link: Link, hosts: list[str]) -> str:
    shown = dict.fromkeys(hosts[rank] for rank in link.ranks)
    return f"ranks {', '.join(map(str, link.ranks))} on {', '.join(shown)}"


def check_tiny_run(preflight: Preflight) -> list[Finding]:
    """Train two steps here, in one process, and with a resume in between, and compare."""
    config, context = preflight.config, preflight.context
    if config.checkpoint.save is None:
        return [Finding("WARN", "two steps", "not tried: there is no --save", "give one")]
    name = on_first_rank(lambda: f".preflight-{uuid.uuid4().hex}")
    folder = Path(config.checkpoint.save) / name
    on_first_rank(folder.mkdir)
    try:
        whole = tiny_run.tiny(config, context.world_size, folder / "whole")
        parts = tiny_run.tiny(config, context.world_size, folder / "parts")
        tiny_run.train_here(whole, context)
        tiny_run.train_here(parts, context, last=1)
        tiny_run.train_here(parts, context)
        found = on_first_rank(lambda: _compare(whole, folder))
        return found if context.rank == 0 else []
    finally:
        on_first_rank(lambda: rmtree(folder, ignore_errors=True))


def _compare(config: Config, folder: Path) -> list[Finding]:
    """Judge the runs; on rank 0."""
    here, resumed = tiny_run.losses(folder / "whole"), tiny_run.losses(folder / "parts")
    different = tiny_run.differing_tensors(folder / "whole", folder / "parts")
    what = (
        "a device or a disk of these nodes gives other bits when asked twice: test them one by one"
    )
    findings = [
        Finding("PASS", "resume", "two steps, and one resumed for the other: bitwise the same")
        if here == resumed and not different
        else Finding(
            "FAIL", "resume", f"losses {here} and {resumed}; {len(different)} tensors differ", what
        )
    ]
    try:
        alone = tiny_run.train_alone(config, folder / "alone", PATIENCE_SECONDS)
    except subprocess.SubprocessError as error:
        output = getattr(error, "stderr", None) or str(error)
        last = str(output).strip().splitlines()[-1]
        return [*findings, Finding("WARN", "one process", f"did not run: {last}", "see its log")]
    tolerance = tiny_run.TOLERANCE[config.precision.compute_dtype] * max(alone)
    worst = max(abs(a - b) for a, b in zip(here, alone, strict=True))
    seen = f"losses of two steps differ from one process's by {worst:.1e}, allowed {tolerance:.1e}"
    what = "a device computes wrong or a collective loses data: leave nodes out one by one until it passes"
    level: Level = "PASS" if worst <= tolerance else "FAIL"
    return [*findings, Finding(level, "one process", seen, "" if level == "PASS" else what)]
