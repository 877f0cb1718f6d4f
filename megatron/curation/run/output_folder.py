"""An output folder belongs to one run: of these steps, this input and these options. run.json says which.

Knows nothing of what a run does.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import orjson

from megatron.curation.run.options import RunOptions
from megatron.curation.run.record_io import Source
from megatron.data.publish import open_locked, publish, sync
from megatron.errors import DataError
from megatron.whole_file import remove

LOCK = ".lock"
Counts = TypeVar("Counts")


class Described(Protocol):
    """A step, as far as it is told from others."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...


def fingerprint_of(
    steps: Sequence[Described], sources: Sequence[Source], options: RunOptions
) -> str:
    """Name a run by all that its output depends on."""
    described = [[step.name, dict(step.settings)] for step in steps]
    inputs = [source.fingerprint() for source in sources]
    return digest([described, inputs, options.format, options.max_document_bytes])


def digest(content: Any) -> str:
    """Give the SHA-256, in hex, of what JSON can hold."""
    dumped = orjson.dumps(content, option=orjson.OPT_SORT_KEYS, default=list)
    return hashlib.sha256(dumped).hexdigest()


def read_counts(
    path: Path, fingerprint: str, read: Callable[[dict[str, Any]], Counts]
) -> Counts | None:
    """Read what was counted under a fingerprint; None if there is nothing, or of something else."""
    try:
        content = orjson.loads(path.read_bytes())
        return read(content) if content["fingerprint"] == fingerprint else None
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return None


def claim(
    output: Path,
    fingerprint: str,
    steps: Sequence[Described],
    options: RunOptions,
    command: Sequence[str],
) -> None:
    """Make the folder this run's, or find that it is. Raises DataError if it holds anything else."""
    path = output / "run.json"
    for leftover in output.glob(f".{path.name}.*.tmp"):  # of a run that was stopped as it came here
        leftover.unlink(missing_ok=True)
    others = [entry.name for entry in output.iterdir() if entry.name != LOCK]
    try:
        older = orjson.loads(path.read_bytes())["fingerprint"]
    except FileNotFoundError:
        older = None
        if others:
            raise DataError(
                f"--output {output} holds {sorted(others)[0]}, which no run of curate.py wrote; name another folder"
            ) from None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        older = "damaged"
    if older not in (None, fingerprint):
        if not options.overwrite:
            raise DataError(
                f"--output {output} holds what another command, other settings or other input wrote; name another "
                "folder, or add --overwrite"
            )
        for name in others:
            remove(output / name)
    run = {
        "fingerprint": fingerprint,
        "command": list(command),
        "inputs": [str(Path(path).resolve()) for path in options.input],
        "steps": [{"stage": step.name, "settings": dict(step.settings)} for step in steps],
    }
    write_json(path, run)


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Make an output folder and keep other runs from it. Raises DataError if one writes to it."""
    output.mkdir(parents=True, exist_ok=True)
    with open_locked(output / LOCK):
        yield
    (output / LOCK).unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise DataError for what a disk refuses while a run writes below a folder."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise DataError(
            f"{error.filename or folder}: {error.strerror or error}; finished shards are kept: "
            f"{'make room' if is_full else 'put that right'}, and run the same command again"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write a file of JSON that appears whole."""
    dumped = orjson.dumps(content, option=orjson.OPT_INDENT_2, default=list)
    write_whole(path, dumped)


def aside(path: Path) -> Path:
    """Name a file to be written before it becomes `path`: two that write the same one do not meet."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted writers left aside in a folder."""
    for path in folder.glob(".*.tmp"):
        remove(path)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole."""
    temporary = aside(path)
    with temporary.open("wb") as file:
        file.write(content)
        sync(file)
    publish([(temporary, path)])
