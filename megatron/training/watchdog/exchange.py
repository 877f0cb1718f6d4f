"""The thread of a process that talks to the others beside their collectives: posts where this one stands, hears alarms.

Apart from the thread that decides: the store may not answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Thread

from megatron.training.watchdog.board import Alarm, Board, Report

MOST_PROCESSES = 1000  # that may talk once a second: about what a store does without effort
SURVEY_BEATS = 4  # reads of the board after an alarm: who posted nothing meanwhile is silent
CALM_BEATS = 5  # between the first rank's looks at a run that moves: decoding hundreds of reports takes its GIL
STORE_SECONDS = 20.0  # until a store that does not answer is given up


@dataclass(frozen=True)
class Survey:
    """What the board says of all processes."""

    reports: list[Report]
    silent: set[int]

    @property
    def first_alive(self) -> int | None:
        return next((one.rank for one in self.reports if one.rank not in self.silent), None)


class Exchange:
    """Posts a report every beat and reads the alarm; the first rank, and all under an alarm, read all reports."""

    def __init__(
        self, board: Board, report: Callable[[int], Report], rank: int, beat_seconds: float
    ) -> None:
        """report: makes this process's, with the number of the beat."""
        self.alarm: Alarm | None = None
        self._board = board
        self._make_report = report
        self._rank = rank
        self._beat_seconds = beat_seconds
        self._beat = 0
        self._own_alarm: Alarm | None = None
        self._reports: list[Report] = []
        self._last_beats: dict[int, int] = {}
        self._num_quiet: dict[int, int] = {}  # reads since a rank's beat changed
        self._num_reads_alarmed = 0
        self._is_surveyed = Event()
        self._is_spoken = Event()
        self._wakes = Event()
        self._is_closed = self._is_lost = False
        board.post(report(0))  # before anybody reads: all take part in a collective after this
        self._thread = Thread(target=self._run, name="exchange", daemon=True)
        self._thread.start()

    @property
    def reports(self) -> list[Report]:
        """What rank 0 read last."""
        return self._reports

    def survey_now(self) -> Survey:
        """Give what is known without waiting, on rank 0."""
        return Survey(self._reports, self._silent())

    def raise_alarm(self, alarm: Alarm) -> None:
        """Tell all processes to end; of several alarms the first one stands."""
        self._own_alarm = alarm
        self._wakes.set()

    def survey(self) -> Survey | None:
        """Wait until it is known who still answers after an alarm; None if the store does not."""
        self._wakes.set()
        is_answered = self._is_surveyed.wait(self._patience) and not self._is_lost
        return self.survey_now() if is_answered else None

    def say_spoken(self) -> None:
        """Let the others know that the alarm was explained."""
        sayer = Thread(target=self._board.say_spoken, daemon=True)
        sayer.start()
        sayer.join(self._patience)

    def wait_until_spoken(self) -> bool:
        """Wait for another process to explain the alarm; False if none did in time."""
        return self._is_spoken.wait(2 * SURVEY_BEATS * self._beat_seconds)

    def wait_until_heard(self) -> None:
        """Give all processes time to hear an alarm."""
        threading.Event().wait(2 * self._beat_seconds)

    def close(self) -> None:
        self._is_closed = True
        self._wakes.set()
        self._thread.join(self._patience)

    @property
    def _patience(self) -> float:
        return min(STORE_SECONDS, 20 * self._beat_seconds)

    def _run(self) -> None:
        while not self._is_closed:
            try:
                self._talk()
            except (RuntimeError, OSError):
                self._is_lost = True  # with the store: whoever asks is told that it does not answer
                self._is_surveyed.set()
                return
            self._wakes.wait(self._beat_seconds)
            self._wakes.clear()

    def _talk(self) -> None:
        self._beat += 1
        report = self._make_report(self._beat)
        self._board.post(report)
        if self._own_alarm is not None and self.alarm is None:
            self._board.raise_alarm(self._own_alarm)
        self.alarm = self.alarm or self._board.alarm()
        is_calm = self.alarm is None and report.age < CALM_BEATS * self._beat_seconds
        if self.alarm is not None or (
            self._rank == 0 and (not is_calm or self._beat % CALM_BEATS == 0)
        ):
            self._read()
        if self.alarm is not None:
            self._num_reads_alarmed += 1
            if self._num_reads_alarmed > SURVEY_BEATS:
                self._is_surveyed.set()
            if self._board.is_spoken:
                self._is_spoken.set()

    def _read(self) -> None:
        reports = self._board.reports()
        for one in reports:
            is_quiet = self._last_beats.get(one.rank) == one.beat
            self._num_quiet[one.rank] = self._num_quiet.get(one.rank, 0) + 1 if is_quiet else 0
            self._last_beats[one.rank] = one.beat
        self._reports = reports

    def _silent(self) -> set[int]:
        return {rank for rank, quiet in self._num_quiet.items() if quiet >= SURVEY_BEATS - 1}


def beat_seconds(timeout: float | None, world_size: int) -> float:
    """Choose how often processes talk: once a second, or often enough for a short timeout."""
    wanted = 1.0 if timeout is None else min(1.0, timeout / 20)
    return max(wanted, world_size / MOST_PROCESSES)
