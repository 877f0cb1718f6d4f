"""The SHA-256 of every file of a checkpoint, in a list of megatron/checksum.py beside them. No torch.

A flipped bit in SHA256SUMS itself makes it name another hash or file, or no longer be such a list: all are noticed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron.checkpoint.files import damaged, parse_json_object, read_bytes, unreadable
from megatron.checkpoint.layout import CONFIG_FILE, METADATA_FILE, STATE_FILE
from megatron.checksum import (
    ChecksumListError,
    format_checksums,
    hash_file,
    parse_checksums,
)

SUMS_FILE = "SHA256SUMS"


def sha256_of(data: bytes) -> str:
    """Give the hash of bytes as SHA256SUMS spells it."""
    return hashlib.sha256(data).hexdigest()


def encode_sums(sums: Mapping[str, str]) -> bytes:
    """Give the content of SHA256SUMS: {name: hash}."""
    return format_checksums(dict(sorted(sums.items()))).encode()


def read_sums(folder: Path) -> dict[str, str]:
    """Read SHA256SUMS: {name: hash}. Raises CheckpointError when it is missing or no such list."""
    path = folder / SUMS_FILE
    try:
        sums = parse_checksums(read_bytes(path).decode("latin-1"))
    except ChecksumListError:
        sums = {}
    needed = {METADATA_FILE, STATE_FILE, CONFIG_FILE}
    if not needed <= set(sums):
        raise damaged(path, "it is not the list of hashes that was written")
    return sums


def read_checked(folder: Path, name: str) -> bytes:
    """Read a file whole. Raises CheckpointError unless it is what was written."""
    data = read_bytes(folder / name)
    _require_same(folder / name, sha256_of(data), read_sums(folder)[name])
    return data


def check_content(path: Path, digest: str, on_bytes: Callable[[int], object] | None = None) -> None:
    """Read a file and raise CheckpointError unless its hash is digest. on_bytes is told of the bytes as they are read."""
    try:
        found = hash_file(path, on_bytes)
    except OSError as error:
        raise unreadable(path, error) from None
    _require_same(path, found, digest)


def forget_cached(path: Path) -> None:
    """Have the system read a file that is on disk from there the next time, where it can."""
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_state(folder: Path) -> dict[str, Any]:
    """Read the state that a checkpoint's writer gave. Raises CheckpointError when it is missing or damaged."""
    return parse_json_object(folder / STATE_FILE, read_checked(folder, STATE_FILE))


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration that a checkpoint's writer gave. Raises CheckpointError as `read_state`."""
    return parse_json_object(folder / CONFIG_FILE, read_checked(folder, CONFIG_FILE))


def _require_same(path: Path, actual: str, written: str) -> None:
    if actual != written:
        difference = f"(SHA-256 {actual[:12]}…, not {written[:12]}…)"
        raise damaged(path, f"its content is not what was written {difference}")
