"""How processes agree that something worked or failed: all of them raise, or none does.

The collectives carry Python objects over the CPU backend of the default process group. Without one, this
process is alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from megatron.errors import CheckpointError, MegatronError

T = TypeVar("T")


def on_first_rank(action: Callable[[], T]) -> T:
    """Run action on rank 0 and give its result on every rank. Collective over the world.

    Where it fails with an error that a user can cause or an OSError, every rank raises the same CheckpointError.
    """
    if not dist.is_initialized():
        return _run(action)
    outcome: list[T | str | None] = [None, "rank 0 failed; its own message says how"]
    if dist.get_rank() > 0:
        dist.broadcast_object_list(outcome, src=0)
    else:
        try:
            outcome = [_run(action), None]
        except MegatronError as error:
            outcome[1] = str(error)
        finally:
            # After any other exception too: the other ranks are already waiting.
            dist.broadcast_object_list(outcome, src=0)
    result, failure = outcome
    if failure is not None:
        raise CheckpointError(str(failure))
    return result  # type: ignore[return-value]


def agreed(collective: Callable[[], object]) -> None:
    """Run a save or load of torch.distributed.checkpoint, which tells every rank the failures of all.

    A CheckpointError or OSError of any rank becomes a CheckpointError on every rank; what else was raised
    comes out as it is.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            collective()
    except CheckpointException as error:
        failures = {rank: failure for rank, (failure, _) in sorted(error.failures.items())}
        for failure in failures.values():
            if not isinstance(failure, (CheckpointError, OSError)):
                raise failure from error
        rank, first = next(iter(failures.items()))
        where = f" (on rank {rank}, and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise CheckpointError(_describe(first) + where) from None


def _run(action: Callable[[], T]) -> T:
    try:
        return action()
    except OSError as error:
        raise CheckpointError(_describe(error)) from error


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
