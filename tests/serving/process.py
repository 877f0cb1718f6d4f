"""A server of its own process, for tests to ask."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.world import launcher_environment

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60


class ServerProcess:
    """tools/serve.py at a free port."""

    def __init__(self, run: Path, *flags: str, launch: tuple[str, ...] = ()) -> None:
        """launch: tools/launch.py and its options, if it is to start the server."""
        command = [sys.executable, *launch, "tools/serve.py", "--load", str(run), "--port", "0"]
        environment = launcher_environment() | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*command, *flags], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )
        self.log: list[str] = []
        self.url = self._read_url()
        self.port = int(self.url.split(":")[-1].split("/")[0])

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def _read_url(self) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            found = re.match("serving .* at (http.*)", line)
            if found:
                return found[1]
        raise AssertionError("".join(self.log))

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
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
