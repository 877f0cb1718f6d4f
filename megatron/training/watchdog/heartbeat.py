"""SAVE/heartbeat.json: where a run stands, for whoever watches from outside. Written by rank 0, in a thread."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from pathlib import Path
from threading import Event, Thread
from typing import Literal

from megatron.logging import get_logger
from megatron.training.marks import Marks

logger = get_logger(__name__)

HEARTBEAT_FILE = "heartbeat.json"
INTERVAL_SECONDS = 5.0
POLL_SECONDS = 0.5  # how late a log line shows in it
CLOSE_SECONDS = 5.0  # a disk that hangs holds nobody up
State = Literal["running", "finished", "stopped", "failed", "hung"]


class Heartbeat:
    """Writes the file every few seconds and at each log line, until `close` writes how the run ended."""

    def __init__(self, folder: Path, marks: Marks) -> None:
        self._path = folder / HEARTBEAT_FILE
        self._marks = marks
        self._started = time.monotonic()
        self._is_closed = Event()
        self._state: State = "running"
        self._is_failing = False
        self._thread = Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self, state: State) -> None:
        """Write the last one."""
        self._state = state
        self._is_closed.set()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        written, metrics = -math.inf, self._marks.metrics
        while not self._is_closed.is_set():
            now = time.monotonic()
            if now - written >= INTERVAL_SECONDS or metrics is not self._marks.metrics:
                written, metrics = now, self._marks.metrics
                self._write()
            self._is_closed.wait(POLL_SECONDS)
        self._write()

    def _write(self) -> None:
        """Replace the file; it is not forced to disk. One that cannot be written is said once, and no more."""
        mark, metrics = self._marks.current, self._marks.metrics
        loss = metrics.get("lm_loss")
        values = {
            "state": self._state,
            "time": time.time(),
            "uptime_s": round(time.monotonic() - self._started, 1),
            "phase": mark.phase,
            "iteration": mark.iteration,
            "consumed_samples": mark.consumed_samples,
            "lm_loss": loss if loss is not None and math.isfinite(loss) else None,
            "tokens_per_second": metrics.get("tokens_per_second"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        aside = self._path.with_suffix(".tmp")
        try:
            aside.write_text(json.dumps(values) + "\n", encoding="utf-8")
            aside.replace(self._path)
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                logger.warning("%s cannot be written (%s); the run goes on", self._path, error)
            self._is_failing = True
