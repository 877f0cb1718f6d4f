"""What a measurement prints and writes: a table, the machine it ran on, a file of all figures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from megatron.errors import ConfigError


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lay out a table that is also read easily as text."""
    widths = [max(len(line[n]) for line in (columns, *lines)) for n in range(len(columns))]
    laid_out = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in (columns, *lines)
    ]
    laid_out.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(laid_out)


def machine() -> str:
    """Say on what is measured."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def write_json(option: str, path: Path | None, report: dict[str, object]) -> None:
    """Write all figures to the file that an option names, if it does. Raises ConfigError if that fails."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be written: {error.strerror}") from None
