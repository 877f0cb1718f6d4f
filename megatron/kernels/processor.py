"""Which processor computes, by what decides the bits of a result: libraries and our C++ choose their loops by it."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def cpu_kind(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name the CPU's maker and the widest instructions that torch uses, as in GenuineIntel AVX2; empty if unknown."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:  # not Linux
        return ""
    vendors = [line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")]
    return f"{vendors[0]} {torch.backends.cpu.get_cpu_capability()}" if vendors else ""


def processor_name(device: torch.device) -> str:
    """Name a GPU by its model, a CPU by its kind and what multiplies bf16 there, as in AuthenticAMD AVX512 bf16."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    units = {
        "bf16": torch.cpu._is_avx512_bf16_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    kind = cpu_kind() or f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return " ".join([kind, *(name for name, is_there in units.items() if is_there)])
