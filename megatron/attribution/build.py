"""Building the indexes of token files: what is to be done, whether there is memory for it, and doing it.

An index that is up to date is left as it is, so an interrupted build goes on with the token files that lack theirs,
and new token files are added without touching the others. Knows nothing of what kinds there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from megatron.attribution.corpus import TokenFile, open_token_files, require_tokenizer
from megatron.attribution.index_file import index_path
from megatron.attribution.kinds import KINDS
from megatron.attribution.options import BuildOptions
from megatron.attribution.spelling import Spelling
from megatron.errors import ConfigError, DataError
from megatron.tokenizer.interface import Tokenizer

# Shows a step that has a name and so many tokens: what it gives is told of tokens as they are done.
Show = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


@dataclass(frozen=True)
class Task:
    """One index that is to be built."""

    file: TokenFile
    kind: str

    @property
    def path(self) -> Path:
        """Where it will lie."""
        return index_path(self.file.prefix, self.kind)


def plan(
    prefixes: Sequence[str], kinds: Sequence[str], options: BuildOptions, *, again: bool = False
) -> list[Task]:
    """Give what is to be built: all that is missing, stale or made otherwise; with `again` everything.

    Raises DataError for token files that cannot be used, ConfigError if building takes more memory than there is.
    """
    options.check()
    tasks = [
        Task(file, kind)
        for file in open_token_files(prefixes)
        for kind in kinds
        if again or not _is_current(file.prefix, kind, options)
    ]
    for task in tasks:
        if not task.file.dataset.num_tokens:
            raise DataError(f"{task.file.prefix} holds no token; leave it out")
    needed = max((KINDS[task.kind].memory(task.file, options) for task in tasks), default=0)
    free = free_memory()
    if free is not None and needed > free:
        raise ConfigError(
            f"building takes {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} are free; give a smaller --memory "
            f"than {options.memory:g}"
        )
    return tasks


def build(tasks: Sequence[Task], tokenizer: Tokenizer, options: BuildOptions, show: Show) -> None:
    """Build indexes. Raises DataError for a token file of another tokenizer and where the disk is full."""
    spelling = Spelling(tokenizer)
    checked: set[str] = set()
    for task in tasks:
        if task.file.prefix not in checked:
            require_tokenizer(task.file, tokenizer)
            checked.add(task.file.prefix)
        kind = KINDS[task.kind]
        total = task.file.dataset.num_tokens * kind.num_passes(task.file, options)
        try:
            with show(str(task.path), total) as on_tokens:
                kind.build(task.file, spelling, options, on_tokens)
        except OSError as error:
            raise DataError(
                f"{task.path} cannot be written: {error.strerror or error}; nothing of it was kept"
            ) from error


def _is_current(prefix: str, kind: str, options: BuildOptions) -> bool:
    """Say whether an index is there, whole at its ends, of the token file as it is now, and made as wanted."""
    try:
        facts = KINDS[kind].open(prefix).facts
    except (DataError, ConfigError):  # ConfigError: of an engine that is not installed
        return False
    return all(facts.get(name) == value for name, value in KINDS[kind].wanted(options).items())


def free_memory() -> int | None:
    """Give the bytes that programs may still take on this machine; None where that is not told."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
