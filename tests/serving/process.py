"""A server of its own process or of several, for tests to ask."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import queue
import re
import runpy
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Literal

import torch
import torch.distributed as dist

from tests.world import preloaded, topology

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 300
SERVE = "tools/serve.py"


def _run_script(arguments: list[str], environment: dict[str, str], log: Connection) -> None:
    """Be `python <arguments>`, but for the start of the interpreter."""
    os.dup2(log.fileno(), sys.stderr.fileno())
    os.chdir(ROOT)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


class ServerProcess:
    """tools/serve.py at a free port."""

    def __init__(
        self,
        run: Path,
        *flags: str,
        num_processes: int = 1,
        launcher: tuple[str, ...] = (),
        method: Literal["forkserver", "spawn"] = "forkserver",
    ) -> None:
        """num_processes: that share the model, without a launcher. launcher: tools/launch.py and its options.

        method: forked off a process that has torch already, as those of tests/world.py, or from nothing, in seconds.
        """
        context = mp.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(preloaded())
        arguments = [*launcher, SERVE, "--load", str(run), "--port", "0", *flags]
        log, theirs = context.Pipe(duplex=False)
        self._store = None  # that several processes meet in, as a launcher has one
        if num_processes > 1:
            self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.processes = []
        for rank in range(num_processes):
            environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            if self._store is not None:
                environment |= topology(rank, num_processes, self._store.port)
            process = context.Process(target=_run_script, args=(arguments, environment, theirs))
            process.start()
            self.processes.append(process)
        theirs.close()
        self.log: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # nobody has waited for
        self._reader = Thread(target=self._read_log, args=(log,), daemon=True)
        self._reader.start()
        self.url = self.wait_for_line("serving .* at (http.*/v1)")[1]
        self.port = int(self.url.split(":")[-1].split("/")[0])

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()
        self.wait()

    def terminate(self) -> None:
        """Send SIGTERM to all, as a launcher does."""
        for process in self.processes:
            process.terminate()

    def wait(self) -> list[int | None]:
        """Wait until all have ended; their exit codes."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        assert None not in codes, (codes, self.log)
        self._reader.join()
        return codes

    def _read_log(self, log: Connection) -> None:
        """Take lines to the end, so that nobody waits for room in the pipe."""
        with open(log.fileno(), closefd=False, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                self.log.append(line)
                self._lines.put(line)
        log.close()
        self._lines.put(None)

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        """Wait until the log has a line, of those behind the one that was waited for last."""
        while (line := self._lines.get(timeout=PATIENCE_SECONDS)) is not None:
            if found := re.search(pattern, line):
                return found
        for process in self.processes:
            process.kill()
        raise AssertionError("".join(self.log))

    def metrics(self, **headers: str) -> dict[str, float]:
        url = f"http://127.0.0.1:{self.port}/metrics"
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            lines = answer.read().decode().splitlines()
        return {
            name: float(number)
            for name, number in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        }

    def wait_for(self, name: str, holds: Callable[[float], bool]) -> None:
        """Wait until a number of /metrics is as it should be."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds(self.metrics()[f"megatron_serving_{name}"]):
            assert time.monotonic() < deadline, self.metrics()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)

    def ask(self, **values: object) -> tuple[int, dict]:
        """Ask for a completion; the status and the body of the answer."""
        return self.send(json.dumps(values).encode())

    def send(self, body: bytes, **headers: str) -> tuple[int, dict]:
        request = urllib.request.Request(f"{self.url}/completions", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"{}")
