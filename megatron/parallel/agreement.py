"""How processes agree that something worked or failed: all of them raise, or none does.

An error that a user can cause is raised by every process as what it is, an OSError as a CheckpointError: what processes
do together on a disk is checkpoints. Any other exception stays the one of its process, and the others raise LostPeer.
The collectives carry Python objects over the CPU backend of the default process group. Without one, this process is
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed as dist

from megatron.errors import CheckpointError, LostPeer, MegatronError

T = TypeVar("T")


def on_first_rank(action: Callable[[], T]) -> T:
    """Run action on rank 0 and give its result, or raise its error, on every rank. Collective over the world."""
    if not dist.is_initialized():
        return _run(action)
    outcome: list[T | MegatronError | None] = [None, _failed_elsewhere("rank 0")]
    if dist.get_rank() > 0:
        dist.broadcast_object_list(outcome, src=0)
    else:
        try:
            outcome = [_run(action), None]
        except MegatronError as error:
            outcome[1] = error
        finally:
            # After any other exception too: the other ranks are already waiting.
            dist.broadcast_object_list(outcome, src=0)
    result, failure = outcome
    if isinstance(failure, MegatronError):
        raise shared(failure)
    return result  # type: ignore[return-value]


def gather_on_first(action: Callable[[], T]) -> list[T]:
    """Run action on every rank; give all results, by rank, to rank 0 and none to the others. Collective over the world.

    Where it fails on any, every rank raises the first of these errors.
    """
    if not dist.is_initialized():
        return [_run(action)]
    is_first, size = dist.get_rank() == 0, dist.get_world_size()
    outcome: tuple[list[T], MegatronError | None] = ([], _failed_elsewhere("another rank"))
    outcomes: list[tuple[list[T], MegatronError | None]] = [outcome] * size
    failure: list[MegatronError | None] = [None]
    try:
        outcome = ([_run(action)], None)
    except MegatronError as error:
        outcome = ([], error)
    finally:
        # After any other exception too: the other ranks are already waiting.
        dist.gather_object(outcome, outcomes if is_first else None, dst=0)
        if is_first:
            failure = [first_failure([error for _, error in outcomes])]
        dist.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise shared(failure[0])
    return [result[0] for result, _ in outcomes] if is_first else []


def gather_everywhere(value: T) -> list[T]:
    """Give every rank the values of all, by rank. Collective over the world, of which there must be one."""
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def scatter_from_first(action: Callable[[], list[T]]) -> T:
    """Run action on rank 0 and give each rank its item of the result. Collective over the world."""
    if not dist.is_initialized():
        return action()[0]
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
        raise _failed_elsewhere("rank 0")
    return mine[0]


def first_failure(by_rank: Sequence[MegatronError | None]) -> MegatronError | None:
    """Give the first failure, which says how many there are; None if there is none."""
    failed = {rank: error for rank, error in enumerate(by_rank) if error is not None}
    if len(failed) < 2:
        return next(iter(failed.values()), None)
    rank, error = next(iter(failed.items()))
    return type(error)(f"{error} (on rank {rank}, and {len(failed) - 1} more)")


def of_user(error: OSError) -> CheckpointError:
    """Say what the system could not do, and with which file."""
    named = error.filename is not None
    return CheckpointError(f"{error.filename}: {error.strerror}" if named else str(error))


def shared(error: MegatronError) -> MegatronError:
    """Mark an error that every process raises, unless it says that another one fails by itself."""
    error.is_shared = not isinstance(error, LostPeer)
    return error


def _failed_elsewhere(who: str) -> LostPeer:
    return LostPeer(f"{who} failed; its own message says how")


def _run(action: Callable[[], T]) -> T:
    try:
        return action()
    except OSError as error:
        raise of_user(error) from error
