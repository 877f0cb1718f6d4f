"""What NCCL did last, as torch's flight recorder remembers it. Not run on more than one GPU."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron.logging import get_logger

logger = get_logger(__name__)


def write_flight_record(path: Path) -> None:
    """Write the last collectives of this process as JSON, if it uses GPUs and torch recorded any."""
    if not torch.cuda.is_available():
        return
    dump = getattr(torch._C._distributed_c10d, "_dump_nccl_trace_json", None)
    if dump is None:
        logger.info(f"this torch says nothing of what NCCL did last: there is no {path.name}")
        return
    record = dump(includeCollectives=True, onlyActive=False)
    if record:
        path.write_bytes(record)
