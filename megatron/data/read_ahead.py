"""Samples read by processes of their own, while the caller does something else.

A worker is a fresh process, not a copy of the caller: it holds none of its locks, sockets or devices. It gets the
dataset once, then lists of numbers, and ends when its pipe does, so it outlives its parent by one list at most.
This file does without torch, which would cost each worker seconds to start. Knows nothing of batches.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize

import numpy as np
import numpy.typing as npt

from megatron.data.gpt_dataset import Dataset
from megatron.errors import DataError, MegatronError

CLOSE_SECONDS = 10.0
# Before multiprocessing waits for its processes, which do not heed its signal.
FINALIZE_PRIORITY = 100

CARRIES_LOSS, GOES_ON = 1, 2  # marks: of a label; of a token, as `Sample.goes_on`

# ids [n, s + 1], of which the first s are tokens and the last s their labels; the sums of their marks [n, s]
Arrays = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]
# the same in a pipe, where each byte costs time: uint16 where all ids fit
PackedArrays = tuple[npt.NDArray[np.int32 | np.uint16], npt.NDArray[np.uint8]]


def read_samples(dataset: Dataset, numbers: Sequence[int]) -> Arrays:
    """Read samples by number, one a row."""
    samples = [dataset[number] for number in numbers]
    seq_length = len(samples[0]["tokens"])
    ids = np.empty((len(samples), seq_length + 1), np.int32)
    marks = np.empty((len(samples), seq_length), np.uint8)
    for row, sample in enumerate(samples):
        tokens, labels = sample["tokens"], sample["labels"]
        assert np.array_equal(tokens[1:], labels[:-1])
        ids[row, 0], ids[row, 1:] = tokens[0], labels
        marks[row] = sample["loss_mask"] * CARRIES_LOSS
        if "goes_on" in sample:
            marks[row] += sample["goes_on"] * np.uint8(GOES_ON)
    return ids, marks


def _pack(arrays: Arrays) -> PackedArrays:
    ids, marks = arrays
    return (ids.astype(np.uint16) if ids.max() <= np.iinfo(np.uint16).max else ids), marks


class ReadAhead:
    """Workers that read one list of samples at a time, each its part of it."""

    def __init__(self, dataset: Dataset, num_workers: int) -> None:
        """Start num_workers processes; they end with `close`, with this object, or with this process."""
        self._workers = [_Worker(dataset) for _ in range(num_workers)]
        self._asked: list[_Worker] = []
        self.close = Finalize(self, _close, (self._workers,), exitpriority=FINALIZE_PRIORITY)

    def ask(self, numbers: Sequence[int]) -> None:
        """Have samples read; `take` gives them. What was asked for before and not taken is dropped."""
        self._replies()
        parts = np.array_split(np.asarray(numbers), min(len(self._workers), len(numbers)))
        for worker, part in zip(self._workers, parts, strict=False):
            worker.ask(part.tolist())
            self._asked.append(worker)

    def take(self) -> Arrays:
        """Give the samples that were asked for, in order.

        Raises a MegatronError that reading raised, and DataError if a worker died.
        """
        parts: list[PackedArrays] = []
        for reply in self._replies():
            if isinstance(reply, MegatronError):
                raise reply
            parts.append(reply)
        ids, marks = zip(*parts, strict=True)
        return np.concatenate(ids, dtype=np.int32), np.concatenate(marks)

    def _replies(self) -> list[PackedArrays | MegatronError]:
        """Wait for every worker that was asked, so that none is a list behind."""
        asked, self._asked = self._asked, []
        return [worker.reply() for worker in asked]


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, dataset: Dataset) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, dataset), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, numbers: list[int]) -> None:
        with contextlib.suppress(ConnectionError):  # it died: `reply` says so
            self.connection.send(numbers)

    def reply(self) -> PackedArrays | MegatronError:
        try:
            reply: PackedArrays | MegatronError = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return DataError(
                f"a loader process died (exit code {self.process.exitcode}); what it said stands above. -9 is often "
                "a lack of memory: try a smaller --num-workers, or 0 to read in the main process"
            )
        return reply


def _serve(connection: Connection, dataset: Dataset) -> None:
    """Read what the parent asks for until the pipe ends."""
    # Ctrl-C and a scheduler's warning reach every process of the job; when to leave is the parent's to say.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    try:
        while True:
            numbers = connection.recv()
            try:
                reply: PackedArrays | MegatronError = _pack(read_samples(dataset, numbers))
            except MegatronError as error:
                reply = error
            connection.send(reply)
    except (EOFError, ConnectionError):
        return  # the parent is gone


def _close(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()
    for worker in workers:
        worker.process.join(CLOSE_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
