"""The watch of a process: ends a run that hangs or has lost a process, and says who is to blame.

A thread observes the main one, counts how long nothing moves, and decides; another one (`Exchange`) talks to the other
processes. The observer waits for nothing without a limit: what may hang with the disk or the network runs beside it.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import NoReturn

import torch.distributed as dist

from megatron.cli import EXIT_HUNG, EXIT_LOST_PEER, leave_at_once
from megatron.config import Config
from megatron.errors import ConfigError, LostPeer, MegatronError
from megatron.logging import get_logger
from megatron.parallel.context import ParallelContext
from megatron.parallel.launch import Launch
from megatron.parallel.lost_peer import is_lost_peer, shortened
from megatron.training.marks import Marks
from megatron.training.signals import STOP_SIGNALS
from megatron.training.watchdog.board import Alarm, Board, Report
from megatron.training.watchdog.exchange import Exchange, Survey, beat_seconds
from megatron.training.watchdog.flight_recorder import write_flight_record
from megatron.training.watchdog.heartbeat import Heartbeat, State
from megatron.training.watchdog.patience import Patience
from megatron.training.watchdog.stack import collective, is_waiting, main_frame, place, write_stacks
from megatron.training.watchdog.straggler import Stragglers
from megatron.training.watchdog.verdict import verdict

logger = get_logger(__name__)

SAMPLE_SECONDS = 0.025
# A process that was stopped as a whole, or its machine, did not hang meanwhile.
MOST_ELAPSED = 1.0
CHECK_SECONDS = 0.25
WRITE_SECONDS = 10.0  # for stacks on a disk that may hang
PEER_SECONDS = 3.0  # that a failing process has for its own message
LAST_SECONDS = 30.0  # for a failing process to end


class Watch:
    """A context manager around all that a process does; `connect` once there is a group."""

    def __init__(self, config: Config, launch: Launch, marks: Marks) -> None:
        timeout = config.training.watchdog_timeout_in_secs
        self.outcome: State = "failed"
        self._launch = launch
        self._marks = marks
        self._save = Path(config.checkpoint.save) if config.checkpoint.save else None
        self._is_off = timeout == 0
        self._beat_seconds = beat_seconds(timeout or None, launch.world_size)
        self._patience = Patience(timeout or None)
        self._stragglers = Stragglers()
        self._stage = 0
        self._host = socket.gethostname()
        self._own_seconds = self._step_seconds = 0.0
        self._num_steps = 0
        self._sampled = 0  # number of the mark that was sampled last
        self._warned = -1
        self._exchange: Exchange | None = None
        self._heartbeat: Heartbeat | None = None
        self._own_alarm: Alarm | None = None
        self._is_closed = Event()
        self._thread = Thread(target=self._observe, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def begin_heartbeat(self) -> None:
        """Say in --save where this run stands. Not before --save is known to be no other run's."""
        if self._launch.rank == 0 and self._save is not None:
            self._heartbeat = Heartbeat(self._save, self._marks)

    def connect(self, context: ParallelContext) -> None:
        """Join the other processes' watches. To be called on all of them, before a collective over the world."""
        self._stage = context.pp_rank
        if context.world_size > 1:
            store = dist.distributed_c10d._get_default_store()
            board = Board(store, context.rank, context.world_size)
            self._exchange = Exchange(board, self._report, context.rank, self._beat_seconds)

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if error is not None and not _is_agreed(error):
            self._give_up(error)
        self._is_closed.set()
        self._thread.join(WRITE_SECONDS)
        if self._exchange is not None:
            self._exchange.close()
        if self._heartbeat is not None:
            self._heartbeat.close("failed" if error is not None else self.outcome)

    def _give_up(self, error: BaseException) -> None:
        """Tell the other processes of an error that only this one may have; do not return if theirs caused it."""
        launch, phase = self._launch, self._marks.current.described
        if self._exchange is not None and is_lost_peer(error):
            for number in STOP_SIGNALS:  # the launcher wants to end what is about to end
                signal.signal(number, signal.SIG_IGN)
            what = shortened(error)
            if not isinstance(error, LostPeer):
                what = f"a connection broke ({what})"
            self._own_alarm = Alarm("lost", launch.rank, f"in {phase} {what}")
            while self._thread.is_alive():
                time.sleep(1.0)  # the observer ends this process
        self._is_closed.set()
        name = f"rank {launch.rank} ({self._host}, pid {os.getpid()})"
        text = f"{name} failed in {phase}: {type(error).__name__}: {error}"
        if self._exchange is not None:
            logger.warning(f"{text}; the other processes end with it")
            self._exchange.raise_alarm(Alarm("failed", launch.rank, text))
            self._exchange.wait_until_heard()
        # Other threads and devices may keep an interpreter from ending.
        faulthandler.dump_traceback_later(LAST_SECONDS, exit=True)

    def _observe(self) -> None:
        try:
            self._observe_until_closed()
        finally:
            if not self._is_closed.is_set():
                logger.warning(
                    "the watchdog of this process died by a bug; the run goes on unwatched"
                )

    def _observe_until_closed(self) -> None:
        last = checked = time.monotonic()
        while not self._is_closed.wait(SAMPLE_SECONDS):
            now = time.monotonic()
            self._sample(min(now - last, MOST_ELAPSED))
            last = now
            if now - checked >= CHECK_SECONDS:
                checked = now
                self._check()

    def _sample(self, elapsed: float) -> None:
        mark = self._marks.current
        self._patience.observe(mark, elapsed)
        if mark.phase != "step":
            return
        if mark.number != self._sampled:
            self._sampled, self._num_steps = mark.number, self._num_steps + 1
        self._step_seconds += elapsed
        if not is_waiting(main_frame()):
            self._own_seconds += elapsed

    def _check(self) -> None:
        if self._launch.parent_pid not in (None, os.getppid()):
            if self._launch.local_rank == 0:
                logger.warning("the launcher of these processes is gone: left at once")
            self._leave("failed", EXIT_LOST_PEER)
        alarm = self._own_alarm or (self._exchange.alarm if self._exchange else None)
        age, limit = self._patience.age, self._patience.limit
        if alarm is None and not self._is_off and age > limit:
            phase = self._marks.current.described
            alarm = Alarm(
                "hung", self._launch.rank, f"in {phase} nothing has moved for {age:.0f} s"
            )
        if alarm is not None:
            self._end(alarm)
        if self._launch.rank > 0:
            return
        if not self._is_off and age > limit / 2 and self._warned != self._marks.current.number:
            self._warned = self._marks.current.number
            logger.warning(
                f"watchdog: nothing has moved for {age:.0f} s, and at {limit:.0f} s the run ends: {self._blame()}"
            )
        if self._exchange is not None and self._exchange.reports:
            self._name_stragglers(self._exchange.reports)

    def _name_stragglers(self, reports: list[Report]) -> None:
        for one in self._stragglers.judge(reports):
            if one.is_new:
                logger.warning(one.described)
            self._marks.remarks.append(
                {
                    "straggler": one.report.rank,
                    "host": one.report.host,
                    "own_time_s": one.own_seconds,
                    "median_own_time_s": one.median_seconds,
                }
            )

    def _blame(self) -> str:
        """Say who holds up the others, as far as is known now."""
        if self._exchange is None or not self._exchange.reports:
            return f"at {place(main_frame())}"
        survey = self._exchange.survey_now()
        return verdict(survey.reports, survey.silent)

    def _end(self, alarm: Alarm) -> None:
        """End this process; one of all says why."""
        survey, code = None, EXIT_LOST_PEER
        if alarm.kind == "hung":
            within(WRITE_SECONDS, self._write_stacks)
        if self._exchange is not None and alarm.kind != "failed":
            self._exchange.raise_alarm(alarm)
            survey = self._exchange.survey()
            alarm = self._exchange.alarm or alarm  # somebody may have been first
        if alarm.kind == "failed":
            time.sleep(PEER_SECONDS)
        else:
            code = EXIT_HUNG if alarm.kind == "hung" else EXIT_LOST_PEER
            within(WRITE_SECONDS, lambda: self._speak(alarm, survey, code))
        self._leave("hung" if alarm.kind == "hung" else "failed", code)

    def _leave(self, state: State, code: int) -> NoReturn:
        if self._heartbeat is not None:
            self._heartbeat.close(state)
        leave_at_once(code)

    def _speak(self, alarm: Alarm, survey: Survey | None, code: int) -> None:
        """Say what happened, if no other process does: the first one that is alive speaks."""
        if survey is None or self._exchange is None:
            if self._launch.local_rank == 0 or self._launch.rank == 1:  # rank 0 may be the one
                logger.warning(self._last_words(alarm, self._alone(alarm), code))
            return
        if survey.first_alive != self._launch.rank and self._exchange.wait_until_spoken():
            return
        blame = verdict(survey.reports, survey.silent, names_waiting=alarm.kind == "hung")
        logger.warning(self._last_words(alarm, blame, code))
        self._exchange.say_spoken()

    def _alone(self, alarm: Alarm) -> str:
        """Say where this process stands, the others being out of reach."""
        frame = main_frame()
        text = f"said by rank {self._launch.rank} ({self._host}, pid {os.getpid()})"
        if alarm.kind == "hung":
            waits_in = collective(frame)
            text += f" at {place(frame)}" + (f", waiting in {waits_in}" if waits_in else "")
        if self._launch.world_size > 1:
            text += (
                "; the other processes cannot be asked: the one that holds the rendezvous (the launcher of the first "
                "node, or rank 0) is stopped, gone or was not reached yet"
            )
        return text

    def _last_words(self, alarm: Alarm, blame: str, code: int) -> str:
        stacks = ""
        if alarm.kind == "hung" and self._save is not None:
            stacks = f". Stacks: {self._save / 'logs' / 'stacks_rank_*.txt'}"
        return f"watchdog: {alarm.text}: {blame}{stacks}. Every process ends with exit code {code}"

    def _write_stacks(self) -> None:
        rank, mark = self._launch.rank, self._marks.current
        title = f"rank {rank} ({self._host}, pid {os.getpid()}) in {mark.described}"
        if self._save is None:
            write_stacks(sys.stderr, title)
            return
        folder = self._save / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"stacks_rank_{rank:05d}.txt").open("w", encoding="utf-8") as file:
            write_stacks(file, title)
        write_flight_record(folder / f"nccl_rank_{rank:05d}.json")

    def _report(self, beat: int) -> Report:
        mark, frame = self._marks.current, main_frame()
        return Report(
            self._launch.rank,
            self._host,
            os.getpid(),
            self._stage,
            beat,
            mark.described,
            mark.iteration,
            self._patience.age,
            place(frame),
            collective(frame),
            self._own_seconds,
            self._step_seconds,
            self._num_steps,
        )


def _is_agreed(error: BaseException) -> bool:
    """Say whether every process raises it; of a ConfigError those of a node do, and its launcher ends the others."""
    return isinstance(error, ConfigError) or (isinstance(error, MegatronError) and error.is_shared)


def within(seconds: float, action: Callable[[], None]) -> None:
    """Run action in a thread, and wait for it so long at most."""
    thread = Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)
