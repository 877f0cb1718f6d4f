"""Messages to people: rank 0 speaks, the others only when all must be heard.

A logger is an ordinary `logging.Logger` under "megatron"; `configure` is called once by a command line.
Knows nothing of torch: the caller says which rank it is.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path


class _JsonLines(logging.Formatter):
    """One JSON object a line, for machines."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)),
            "rank": self._rank,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def get_logger(name: str) -> logging.Logger:
    """Give the logger of a module: `logger = get_logger(__name__)`."""
    return logging.getLogger(name)


def configure(rank: int = 0, *, json_dir: Path | None = None) -> None:
    """Send rank 0's messages to stderr, others' warnings too; with json_dir, everything to a file a rank."""
    root = logging.getLogger("megatron")
    root.handlers.clear()
    root.setLevel(logging.INFO)
    root.propagate = False
    stream = logging.StreamHandler(sys.stderr)
    stream.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    prefix = "" if rank == 0 else f"[rank {rank}] "
    stream.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S"))
    root.addHandler(stream)
    if json_dir is not None:
        json_dir.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(json_dir / f"rank_{rank:05d}.jsonl")
        file.setFormatter(_JsonLines(rank))
        root.addHandler(file)
