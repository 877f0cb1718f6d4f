"""What one node tells about itself: devices, versions, disks, files. Each function looks at this machine alone."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import torch

GPU_FIELDS = ("name", "memory.total", "memory.used", "driver_version")
# These are not known of every GPU: nvidia-smi answers "[N/A]". Drivers rename them: it then answers nothing.
GPU_HEALTH = ("ecc.errors.uncorrected.volatile.total", "clocks_throttle_reasons.hw_slowdown")
UNKNOWN_FIELD = "not a valid field"
GPU_SECONDS = 60  # a driver that hangs never answers
SAMPLE_BYTES = 1 << 20
NUM_SAMPLES = 64
WRITE_BYTES = 64 << 20


def versions() -> dict[str, str]:
    """Give what has to be alike on all nodes."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else "–",
    }


def gpus() -> list[dict[str, str]]:
    """Ask nvidia-smi about every GPU; none where there is no nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return []
    fields: tuple[str, ...] = (*GPU_FIELDS, *GPU_HEALTH)
    try:
        result = _ask_nvidia_smi(fields)
        if result.returncode != 0 and UNKNOWN_FIELD in result.stdout + result.stderr:
            fields = GPU_FIELDS
            result = _ask_nvidia_smi(fields)
    except subprocess.TimeoutExpired:
        return [{"error": f"nvidia-smi gave no answer in {GPU_SECONDS} s"}]
    if result.returncode != 0:
        said = (result.stdout + result.stderr).strip() or f"exit code {result.returncode}"
        return [{"error": f"nvidia-smi: {said.splitlines()[0]}"}]
    rows = (line.split(", ") for line in result.stdout.splitlines())
    return [dict(zip(fields, row, strict=False)) for row in rows]


def _ask_nvidia_smi(fields: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, timeout=GPU_SECONDS)


def existing(folder: Path) -> Path:
    """Give a folder, or the nearest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(existing(folder)).free


def write_speed(folder: Path) -> float:
    """Write a file, fsync it, remove it; give bytes a second."""
    path = folder / f".preflight-{platform.node()}-{os.getpid()}"
    piece = os.urandom(WRITE_BYTES)
    started = time.perf_counter()
    try:
        with path.open("wb") as file:
            file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        return WRITE_BYTES / (time.perf_counter() - started)
    finally:
        path.unlink(missing_ok=True)


def sampled_hash(path: Path) -> str:
    """Hash a file's size and pieces spread over it: what differs in a terabyte shows in a second, if not every byte."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(NUM_SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * number // max(1, NUM_SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
            if size <= SAMPLE_BYTES:
                break
    return digest.hexdigest()[:12]
