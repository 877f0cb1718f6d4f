"""What a process knows of another one that is gone: a collective that broke, told apart from errors of its own."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import torch.distributed as dist

from megatron.errors import LostPeer
from megatron.parallel.launch import Launch

# Of NCCL's errors those that are this process's own: a GPU that fails, no memory, two processes on one GPU.
OWN_NCCL_ERRORS = re.compile("ncclUnhandledCudaError|ncclInvalidArgument|ncclInvalidUsage")


@contextlib.contextmanager
def losses_named() -> Iterator[None]:
    """Raise LostPeer in place of what torch says of a collective that another process broke."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise LostPeer(
            f"another process of this model is gone or stands still, and this one ends with it ({shortened(error)})"
        ) from error


def check_launcher(launch: Launch) -> None:
    """Raise LostPeer if the launcher is gone: nobody would end these processes."""
    if launch.parent_pid not in (None, os.getppid()):
        raise LostPeer("the launcher of these processes is gone, and they end with it")


def shortened(error: BaseException) -> str:
    """Give what an error of a collective says, without the file of the library and its advice."""
    line = str(error).partition("\n")[0].partition(". This is typically")[0]
    return re.sub(r"^\[\S+\] ", "", line)


def is_lost_peer(error: BaseException | None) -> bool:
    """Say whether an error, or what it came from, is a collective that another process broke."""
    while error is not None:
        if isinstance(error, LostPeer):
            return True
        is_gloo = isinstance(error, RuntimeError) and "gloo/" in str(error)
        if is_gloo or isinstance(error, dist.DistError):
            return OWN_NCCL_ERRORS.search(str(error)) is None
        error = error.__cause__ or error.__context__
    return False
