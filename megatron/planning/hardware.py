"""What a plan knows of a machine: the numbers of its data sheet, and which share of them operations reach.

One YAML file a machine, in this package or the user's own, or made by `calibrate`. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from megatron.errors import ConfigError


@dataclass(frozen=True)
class Efficiency:
    """The share of a peak that each kind of operation reaches: modelled unless a file says it was measured."""

    product: float  # matrix products, of the peak FLOP/s
    attention_forward: float  # fused attention, of the peak FLOP/s, causal pairs counted
    attention_backward: float
    memory: float  # what only reads and writes, of the memory's bandwidth
    link: float  # collectives, of a link's bandwidth
    # the rates of torch's FlashAttention over those of attention above, where they are another kernel's
    flash: float = 1.0


@dataclass(frozen=True)
class Hardware:
    """One kind of device and the node it is in; bandwidths in bytes a second, one direction, a device."""

    name: str
    device_type: str  # cuda or cpu
    memory_bytes: float
    reserved_bytes: (
        float  # not for tensors: the driver's context, NCCL's buffers, gaps of the allocator
    )
    peak_flops: dict[str, float]  # by dtype
    memory_bandwidth: float
    node_bandwidth: float | None  # to a device of the same node; None: not known
    network_bandwidth: float | None  # to one of another node
    devices_per_node: int
    power_watts: float | None  # drawn on average in training, a device
    efficiency: Efficiency
    capability: tuple[int, int] | None = None
    sources: dict[str, str] = field(default_factory=dict)  # where each number is from
    measured: dict[str, float] = field(default_factory=dict)  # what shares were made of, to look at


NUMBERS = ("float", "float | None")
FOLDER = files("megatron.planning") / "hardware"


def known_hardware() -> list[str]:
    """Name the machines of this package."""
    return sorted(Path(one.name).stem for one in FOLDER.iterdir() if one.name.endswith(".yaml"))


def read_hardware(name: str) -> Hardware:
    """Read a machine by its name in this package, or a YAML file. ConfigError if it cannot be read."""
    import yaml

    known = known_hardware()
    if name in known:
        text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ConfigError(
                f"--hardware {name} is neither a file that can be read nor one of {', '.join(known)}"
            ) from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--hardware {name} is not YAML: {str(error).splitlines()[0]}") from None
    return _hardware_of(name, values)


def _hardware_of(name: str, values: Any) -> Hardware:
    """Check the fields of a file and build from them."""
    if not isinstance(values, dict):
        raise ConfigError(f"--hardware {name} holds no fields; start from one of this package's")
    efficiency: Any = values.get("efficiency")
    _check_fields(f"--hardware {name}", values, Hardware)
    _check_fields(f"--hardware {name}: efficiency", efficiency, Efficiency)
    numbers = {key: float(value) for key, value in efficiency.items()}
    given = {**values, "efficiency": Efficiency(**numbers)}
    given["peak_flops"] = {dtype: float(peak) for dtype, peak in values["peak_flops"].items()}
    if given.get("capability") is not None:
        given["capability"] = tuple(given["capability"])
    for one in fields(Hardware):
        if one.type in NUMBERS and given[one.name] is not None:
            given[one.name] = float(given[one.name])
    return Hardware(**given)


def _check_fields(where: str, values: Any, kind: type) -> None:
    """Raise ConfigError unless values has the fields of a class and no other, its numbers above 0."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is missing; start from one of this package's files")
    optional = {"capability", "sources", "measured", "flash"}
    names = {one.name for one in fields(kind)}
    missing = names - optional - set(values)
    unknown = set(values) - names
    if missing or unknown:
        word, which = ("lacks", missing) if missing else ("has the unknown fields", unknown)
        raise ConfigError(f"{where} {word} {', '.join(sorted(map(str, which)))}")
    for one in fields(kind):
        if one.name not in values:
            continue
        value = values[one.name]
        if one.type not in (*NUMBERS, "int") or (value is None and one.type == "float | None"):
            continue
        try:
            is_good = float(str(value)) > 0
        except (TypeError, ValueError):
            is_good = False
        if not is_good and one.name != "reserved_bytes":
            raise ConfigError(f"{where}: {one.name} is {value!r}; a number above 0")


def write_hardware(hardware: Hardware, path: Path) -> None:
    """Write a file that `read_hardware` reads, in one step. ConfigError if it cannot be written."""
    import yaml

    values = {**asdict(hardware), "capability": hardware.capability and [*hardware.capability]}
    text = yaml.safe_dump(_rounded(values), sort_keys=False, allow_unicode=True, width=100)
    aside = path.with_name(path.name + ".tmp")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def _rounded(value: Any) -> Any:
    """Keep four digits of every number: no measurement has more."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
