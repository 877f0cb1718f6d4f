"""Worlds of processes for tests: started once a size and test file, then handed one function after another.

A test writes a top-level function `check(rank, *args)` in its own file and calls `world(4).run(check, …)`.
Every rank runs it in a process of its own that has already joined a group, of gloo or in shared memory (rendezvous
through a file: no ports). The ranks' return values come back in order; an exception in any rank fails the test with
its traceback.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

from tests import shared_memory

TIMEOUT_SECONDS = 300
PRELOADED = ("tests.training.matrix", "tests.model.tiny")


def preloaded() -> list[str]:
    """Name what the server that processes are forked off imports: transformers only if a test of this session does."""
    return [*PRELOADED, *({"transformers"} & set(sys.modules))]


def _serve(rank: int, size: int, backend: str, rendezvous: str, connection: Connection) -> None:
    shared_memory.register()
    dist.init_process_group(
        backend,
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    while True:
        try:
            message = connection.recv()
        except EOFError:  # the test session died
            break
        if message is None:
            break
        function, args = message
        try:
            connection.send((True, function(rank, *args)))
        except BaseException:
            connection.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class World:
    """`size` processes that stay alive between calls of `run`."""

    def __init__(self, size: int, backend: str = "gloo") -> None:
        self.size = size
        # Processes are forked off a server that has imported what they need: it takes seconds for each otherwise.
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(preloaded())
        self._folder = tempfile.TemporaryDirectory(prefix="world_")
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(rank, size, backend, str(Path(self._folder.name) / "store"), theirs),
                daemon=False,  # a daemon may not have loader processes of its own
            )
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)
        self.is_alive = True

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call function(rank, *args) on every rank and give the results in rank order."""
        for connection in self._connections:
            connection.send((function, args))
        results, failures = [], []
        for rank, connection in enumerate(self._connections):
            if failures and not connection.poll(10):
                continue  # its peer died: it may wait in a collective for ever
            if not connection.poll(TIMEOUT_SECONDS + 30):
                failures.append(f"rank {rank} gave no answer in {TIMEOUT_SECONDS + 30} s")
                continue
            try:
                ok, value = connection.recv()
            except EOFError:
                failures.append(f"rank {rank} died")
                continue
            (results if ok else failures).append(value if ok else f"rank {rank}:\n{value}")
        if failures:
            self.close(kill=True)  # the ranks may be out of step: the next test gets a new world
            raise AssertionError("\n".join(failures))
        return results

    def close(self, *, kill: bool = False) -> None:
        if not self.is_alive:
            return
        self.is_alive = False
        for connection, process in zip(self._connections, self._processes, strict=True):
            if kill:
                process.kill()
            else:
                connection.send(None)
        for process in self._processes:
            process.join(timeout=30)
        self._folder.cleanup()


class Worlds:
    """One World a size, made when first asked for."""

    def __init__(self, backend: str = "gloo") -> None:
        self._backend = backend
        self._worlds: dict[int, World] = {}

    def __call__(self, size: int) -> World:
        if size not in self._worlds or not self._worlds[size].is_alive:
            self._worlds[size] = World(size, self._backend)
        return self._worlds[size]

    def close(self) -> None:
        for world in self._worlds.values():
            world.close()


def launcher_environment() -> dict[str, str]:
    """The environment for a subprocess: ours without a launcher's variables."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in names}


def topology(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process on one machine, with the port of the store in which all meet."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
