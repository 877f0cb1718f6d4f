"""What a plan knows of a machine: the numbers of its data sheet, and which share of them operations reach.

One YAML file a machine, in this package or the user's own, or made by `calibrate`. Knows nothing of models.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from megatron.errors import ConfigError
from megatron.presets import parse_yaml
from megatron.whole_file import replacing


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


SMALLEST, LARGEST = 1e-12, 1e24  # of all numbers: what is made of them stays finite
NUMBERS = ("float", "float | None")
FOLDER = files("megatron.planning") / "hardware"


def known_hardware() -> list[str]:
    """Name the machines of this package."""
    return sorted(Path(one.name).stem for one in FOLDER.iterdir() if one.name.endswith(".yaml"))


def read_hardware(name: str) -> Hardware:
    """Read a machine by its name in this package, or a YAML file. ConfigError if it cannot be read."""
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
    return _hardware_of(name, parse_yaml(f"--hardware {name}", text))


def _hardware_of(name: str, values: Any) -> Hardware:
    """Check the fields of a file and build from them."""
    where = f"--hardware {name}"
    if not isinstance(values, dict):
        raise ConfigError(f"{where} holds no fields; start from one of this package's")
    given = _read_fields(where, values, Hardware)
    efficiency = _read_fields(f"{where}: efficiency", values.get("efficiency"), Efficiency)
    given["efficiency"] = Efficiency(**efficiency)
    peaks = values["peak_flops"]
    if not isinstance(peaks, dict) or not peaks:
        raise ConfigError(f"{where}: peak_flops holds no numbers by dtype")
    given["peak_flops"] = {str(dtype): _number(where, dtype, peak) for dtype, peak in peaks.items()}
    capability = given.get("capability")
    if capability is not None:
        is_pair = isinstance(capability, list) and [type(one) for one in capability] == [int, int]
        if not is_pair:
            raise ConfigError(f"{where}: capability is two whole numbers, such as [9, 0]")
        given["capability"] = tuple(capability)
    return Hardware(**given)


def _read_fields(where: str, values: Any, kind: type) -> dict[str, Any]:
    """Take the fields of a class and no other; texts and numbers are checked, what else there is comes as it is."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is missing; start from one of this package's files")
    optional = {"capability", "sources", "measured", "flash"}
    names = {one.name for one in fields(kind)}
    missing = names - optional - set(values)
    unknown = set(values) - names
    if missing or unknown:
        word, which = ("lacks", missing) if missing else ("has the unknown fields", unknown)
        raise ConfigError(f"{where} {word} {', '.join(sorted(map(str, which)))}")
    given = dict(values)
    for one in fields(kind):
        value = values.get(one.name)
        if one.name not in values or (value is None and one.type == "float | None"):
            continue
        if one.type in NUMBERS:
            lowest = 0.0 if one.name == "reserved_bytes" else SMALLEST
            given[one.name] = _number(where, one.name, value, lowest)
        elif one.type == "int":
            given[one.name] = _whole(where, one.name, value)
        elif one.type == "str" and not isinstance(value, str):
            raise ConfigError(f"{where}: {one.name} is no text")
    return given


def _number(where: str, name: object, value: Any, lowest: float = SMALLEST) -> float:
    """Give a number that can be reckoned with. YAML takes some for text, such as 1e9."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not lowest <= number <= LARGEST:
        raise ConfigError(f"{where}: {name} is {reprlib.repr(value)}; a number above 0")
    return number


def _whole(where: str, name: str, value: Any) -> int:
    number = _number(where, name, value)
    if number != int(number):
        raise ConfigError(f"{where}: {name} is {value!r}; a whole number above 0")
    return int(number)


def write_hardware(hardware: Hardware, path: Path) -> None:
    """Write a file that `read_hardware` reads, in one step. ConfigError if it cannot be written."""
    import yaml

    values = {**asdict(hardware), "capability": hardware.capability and [*hardware.capability]}
    text = yaml.safe_dump(_rounded(values), sort_keys=False, allow_unicode=True, width=100)
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _rounded(value: Any) -> Any:
    """Keep four digits of every number: no measurement has more."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
