"""What others' code is timed with: libraries if they are installed, checkouts if they are named.

megatron-core has a package of our name, so it runs in a process of its own, which times itself and prints seconds.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from typing import Any

from megatron.errors import DataError

# Puts the installed package in place of ours.
_AS_MEGATRON = """
import importlib.metadata, sys, types
megatron = types.ModuleType("megatron")
megatron.__path__ = [str(importlib.metadata.distribution("megatron-core").locate_file("megatron"))]
sys.modules["megatron"] = megatron
"""


def is_installed(module: str) -> bool:
    """Say whether a module of this name can be imported."""
    return find_spec(module) is not None


def version(package: str) -> str | None:
    """Give the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run_megatron_core(script: str, *args: object) -> list[float]:
    """Run a script that may import megatron.core, and give the numbers on the last line that it prints."""
    command = [sys.executable, "-W", "ignore", "-c", _AS_MEGATRON + script, *map(str, args)]
    result = subprocess.run(
        command, cwd=tempfile.gettempdir(), capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise DataError(f"megatron-core failed: {result.stderr.strip()[-2000:]}")
    return [float(number) for number in result.stdout.strip().splitlines()[-1].split()]


def tiktoken_encoding(token_bytes: list[bytes], num_specials: int) -> Any:
    """Make tiktoken's encoder of a byte-level vocabulary whose ids after the sentinels are in the order of merges."""
    import tiktoken

    # Digits by themselves, then GPT-2's expression, as one expression.
    pattern = (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
    )
    ranks = {token: number for number, token in enumerate(token_bytes) if number >= num_specials}
    return tiktoken.Encoding("bench", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
