"""Files that survive a crash: written, forced to disk, and only then given their name.

Knows nothing of tensors or of what the files mean.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron.errors import CheckpointError
from megatron.whole_file import replacing


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError, such as of a full disk, into a CheckpointError that names the file and what to do."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or path} cannot be written: {error.strerror}; make room on that disk or give a folder "
            f"on another. What was saved before is whole: the same command continues from it"
        ) from error


def write_durably(path: Path, data: bytes) -> None:
    """Create a file and force its content to disk. Its name is durable when its folder is forced to disk."""
    with writing(path), path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Give a file new content in one step: a crash leaves the old content or the new, never part of it.

    Raises CheckpointError where it cannot be written, and leaves nothing beside the old content.
    """
    with writing(path), replacing(path) as file:
        file.write(data)


def encode_json(value: Any) -> bytes:
    """Give a JSON value as text that people can read too."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def read_bytes(path: Path) -> bytes:
    """Read a file whole. Raises CheckpointError where it cannot be."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Say why a file of a checkpoint cannot be read."""
    if isinstance(error, FileNotFoundError):
        return incomplete(path)
    return CheckpointError(f"{path} cannot be read: {error.strerror}")


def incomplete(path: Path) -> CheckpointError:
    """Say that a file of a checkpoint is not there."""
    return CheckpointError(
        f"{path} is missing: the checkpoint is incomplete; copy it again or load an older one"
    )


def damaged(path: Path, problem: str) -> CheckpointError:
    """Say why a file of a checkpoint is not what was written."""
    return CheckpointError(
        f"{path} is damaged: {problem}; copy it again or load an older checkpoint"
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object. Raises CheckpointError when it is missing or holds anything else."""
    return parse_json_object(path, read_bytes(path))


def parse_json_object(path: Path, data: bytes) -> dict[str, Any]:
    """Parse the content of a file that holds one JSON object. Raises CheckpointError when it holds anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise damaged(path, f"it holds {type(value).__name__}, not an object")
    return value
