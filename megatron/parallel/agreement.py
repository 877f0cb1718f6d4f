"""How processes agree that something worked or failed: all of them raise, or none does.

The collectives carry Python objects over the CPU backend of the default process group. Without one, this
process is alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
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


def gather_on_first(action: Callable[[], T]) -> list[T]:
    """Run action on every rank; give all results, by rank, to rank 0 and none to the others. Collective over the world.

    Where it fails on any with an error that a user can cause or an OSError, every rank raises the same CheckpointError.
    """
    if not dist.is_initialized():
        return [_run(action)]
    is_first, size = dist.get_rank() == 0, dist.get_world_size()
    outcome: tuple[list[T], str | None] = ([], "another rank failed; its own message says how")
    outcomes: list[tuple[list[T], str | None]] = [outcome] * size
    failure: list[str | None] = [None]
    try:
        outcome = ([_run(action)], None)
    except MegatronError as error:
        outcome = ([], str(error))
    finally:
        # After any other exception too: the other ranks are already waiting.
        dist.gather_object(outcome, outcomes if is_first else None, dst=0)
        if is_first:
            failure = [_first_failure([message for _, message in outcomes])]
        dist.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise CheckpointError(failure[0])
    return [result[0] for result, _ in outcomes] if is_first else []


def gather_everywhere(value: T) -> list[T]:
    """Give every rank the values of all, by rank. Collective over the world, of which there must be one."""
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def scatter_from_first(action: Callable[[], list[T]]) -> T:
    """Run action on rank 0 and give each rank its item of the result. Collective over the world."""
    if not dist.is_initialized():
        return _run(action)[0]
    items: list[T | None] = [None] * dist.get_world_size()
    mine: list[T | None] = [None]
    if dist.get_rank() > 0:
        dist.scatter_object_list(mine, None, src=0)
    else:
        try:
            items = [*action()]
        finally:
            # After an exception too: the other ranks are already waiting.
            dist.scatter_object_list(mine, items, src=0)
    if mine[0] is None:
        raise CheckpointError("rank 0 failed; its own message says how")
    return mine[0]


def agreed(collective: Callable[[], object]) -> None:
    """Run a load of torch.distributed.checkpoint, which tells every rank the failures of all.

    A CheckpointError or OSError of any rank becomes a CheckpointError on every rank; what else was raised
    comes out as it is.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            collective()
    except CheckpointException as error:
        failures = {rank: failure for rank, (failure, _) in sorted(error.failures.items())}
        size = max(failures) + 1
        for failure in failures.values():
            if not isinstance(failure, (CheckpointError, OSError)):
                raise failure from error
        by_rank = [_describe(failures[rank]) if rank in failures else None for rank in range(size)]
        raise CheckpointError(_first_failure(by_rank)) from None


def _first_failure(by_rank: Sequence[str | None]) -> str | None:
    """Name the first failure and say how many there are; None if there is none."""
    failed = [rank for rank, message in enumerate(by_rank) if message is not None]
    if not failed:
        return None
    where = f" (on rank {failed[0]}, and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return f"{by_rank[failed[0]]}{where}"


def _run(action: Callable[[], T]) -> T:
    try:
        return action()
    except OSError as error:
        raise CheckpointError(_describe(error)) from error


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
