"""The errors a user can cause. Each message says what was given, what is allowed and what to do.

Command lines turn them into one line on stderr and exit code 2; anything else that escapes is a bug of ours.
"""

import re
from collections.abc import Sequence


class MegatronError(Exception):
    """Base of every error that a user's input can cause."""

    is_shared = False  # every process of a run raises it: one of them has to say it


class ConfigError(MegatronError):
    """A flag, a combination of flags, or a layout that cannot run."""


class DataError(MegatronError):
    """A dataset, tokenizer or input file that is missing, damaged or does not fit."""


class CheckpointError(MegatronError):
    """A checkpoint that is missing, damaged or belongs to another run."""

    is_shared = True


class LostPeer(MegatronError):
    """Another process of this model is gone, or the launcher of all. Exit code 76."""


class TrainingError(MegatronError):
    """A run that cannot go on though its input is right: its numbers went wrong. Exit code 1."""

    is_shared = True


def first_of(names: Sequence[str], most: int) -> str:
    """Name the first of many for a message: `a, b and 3 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def not_compiled(error: ImportError) -> str | None:
    """Say which module of csrc/ an import lacks, and what to do; None where it lacks something else."""
    found = re.search(r"'(_\w+)' from '(megatron\.\w+)'", str(error))
    name = f"{found[2]}.{found[1]}" if found else error.name or ""
    if not re.fullmatch(r"megatron\.\w+\._\w+", name):
        return None
    return f"{name} is not compiled; run `make env`, or `pip install -e .` in the repository"
