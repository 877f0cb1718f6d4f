"""torchrun's agent of a node, which also knows what a restart is good for, agrees with the others, and leaves when asked.

torchrun restarts the processes of a node after any exit code but 0, those of other nodes when it notices that one waits
for them, and ends them in 30 s when it gets a signal. Here an end is judged: a crash restarts all nodes at once and
counts on each; a user's mistake, or having saved and left, ends all of them. What the nodes tell each other lies in the
store that they met in. Reads no environment: the launcher hands it in, for processes learn from it why they were
restarted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from threading import Thread
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException

from megatron.cli import EXIT_SIGNAL, EXIT_STOPPED
from megatron.launching.end import End, cause

ASKING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
RESTART_VARIABLE = "LAUNCH_RESTART"  # why processes are started again; parallel/launch.py reads it
# Keys in the store of a round. ENDED: some process failed. LEAVE: and no restart follows.
ENDED, LEAVE, LEFT, END = "ended", "leave", "left", "end/"
# One Ctrl-C reaches a launcher from the terminal and from the script above it; Slurm, too, signals both.
SAME_SIGNAL_SECONDS = 2.0
# Processes that leave for the same reason do so within a moment of each other.
TOGETHER_SECONDS = 10.0
SILENCE_SECONDS = 20.0  # of the store, after which it is lost
KILLED_SECONDS = 25  # torchrun waits 30 s for the others before it kills them


class Agent(LocalElasticAgent):
    """Runs the processes of this node. torchrun's launcher makes and runs it; afterwards it says how it ended."""

    def __init__(
        self,
        *,
        environment: MutableMapping[str, str],
        patience_seconds: float,
        abandon: Callable[[], None],
        **options: Any,
    ) -> None:
        """abandon: ends this launcher from any thread, whatever its main thread waits for."""
        super().__init__(**options)
        self.end: End | None = None  # the one that ended this launch
        self.asked: signal.Signals | None = None
        self.has_finished = False
        self._environment = environment
        self._patience_seconds = patience_seconds
        self._asked_at = 0.0
        self._is_hurried = False
        self._phase = "meeting"  # starting, running, stopping
        self.is_store_lost = False
        self._is_counted = False  # whether torchrun counts the restart to come
        self._told: dist.Store | None = None  # where the ends of the last round lie
        self._abandon = abandon
        self._asks_since: float | None = None  # a question to the store that has no answer yet
        Thread(target=self._watch_store, name="store", daemon=True).start()
        for number in ASKING_SIGNALS:
            signal.signal(number, self._on_signal)

    @property
    def exit_code_when_asked(self) -> int | None:
        """The code to leave with after a signal, or None if something went wrong besides.

        Processes that a signal met before they could have anything to save left as asked, too.
        """
        if self.asked is None or self._is_hurried:
            return None
        if self.end is None:
            return 0 if self.has_finished else EXIT_STOPPED
        number = self._number_handed_on
        has_left = self.end.code in (EXIT_STOPPED, -number, EXIT_SIGNAL + number)
        return EXIT_STOPPED if has_left else None

    # ------------------------------------------------------------------------------------- being asked to leave

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Hand the first signal on, so that the processes save and leave; end everything at the second."""
        if self.asked is None:
            self.asked, self._asked_at = signal.Signals(number), time.monotonic()
            if self._phase == "meeting":
                raise SignalException(f"{self.asked.name} before the start", self.asked)
            if self._phase == "running":
                self._hand_on()
        elif time.monotonic() - self._asked_at > SAME_SIGNAL_SECONDS and not self._is_hurried:
            self._is_hurried = True
            raise SignalException("a second signal", signal.Signals(number))

    @property
    def _number_handed_on(self) -> signal.Signals:
        if self.asked is None or self.asked == signal.SIGHUP:
            return signal.SIGTERM
        return self.asked

    def _hand_on(self) -> None:
        """Signal the processes themselves; their helpers are theirs to end."""
        if self._pcontext is None:
            return
        for pid in self._pcontext.pids().values():
            try:
                os.kill(pid, self._number_handed_on)
            except ProcessLookupError:
                continue

    def _shutdown(self, *args: Any, **options: Any) -> None:
        if self._is_hurried and self._pcontext is not None:
            self._pcontext.close(signal.SIGKILL, 5)
        super()._shutdown(*args, **options)

    # ---------------------------------------------------------------------------------------- rounds of torchrun

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        self._phase = "meeting"
        self._asks_since = None
        if self.asked is not None:
            raise SignalException(f"{self.asked.name} before the restart", self.asked)
        super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        """Start processes that know why they are started again. Signals wait until all are there."""
        self._phase = "starting"
        total = worker_group.spec.max_restarts
        number = total - self._remaining_restarts
        end = None if self._told is None else self._told_cause()
        if end is not None:
            self._environment[RESTART_VARIABLE] = f"restart {number} of {total}: {end}"
        # Nodes meet in a store of their own each time; without a meeting they keep the first one.
        is_static = worker_group.spec.rdzv_handler.get_backend() == "static"
        store: Any = worker_group.store  # torch does not say its type
        self._told = dist.PrefixStore(f"launch{number if is_static else ''}/", store)
        ids = super()._start_workers(worker_group)
        self._phase = "running"
        if self.asked is not None:
            self._hand_on()
        return ids

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        self._asks_since = None
        if (
            not self._is_counted and self._has_ended()
        ):  # torchrun saw that a node waits, and no more
            self._remaining_restarts = max(0, self._remaining_restarts - 1)
        self._is_counted = False
        super()._restart_workers(worker_group)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._phase = "stopping"
        self._asks_since = None
        super()._stop_workers(worker_group)
        if self.end is not None:
            self._asks_since = time.monotonic()  # torchrun leaves the meeting

    def _exit_barrier(self) -> None:
        self.has_finished = True
        self._phase = "meeting"
        self._asks_since = None  # it waits for the processes of other nodes
        super()._exit_barrier()
        self._asks_since = time.monotonic()

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """Look after the processes here, and after what other nodes tell."""
        self._asks_since = None
        is_late = self.asked and time.monotonic() - self._asked_at > self._patience_seconds
        if is_late and self._pcontext is not None:
            say(f"processes did not leave in {self._patience_seconds:.0f} s; killing them")
            self._pcontext.close(signal.SIGKILL, 5)
        result = super()._monitor_workers(worker_group)
        told = None
        if result.state == WorkerState.HEALTHY and self._has_ended():
            told = self._told_cause()
            result = self._end_here_too(worker_group)
        if result.state == WorkerState.FAILED:
            self._judge(worker_group, told or cause(self._own_ends(result)))
        self._asks_since = time.monotonic()  # torchrun asks the store next, and when it leaves
        return result

    def _end_here_too(self, worker_group: WorkerGroup) -> RunResult:
        """End the processes here after an end elsewhere; those that may have saved, too, leave by themselves."""
        deadline = time.monotonic() + TOGETHER_SECONDS
        leave = self._told_leave()
        while self.is_store_lost or (leave is not None and leave.code == EXIT_STOPPED):
            result = super()._monitor_workers(worker_group)
            if result.state != WorkerState.HEALTHY or time.monotonic() > deadline:
                break
            time.sleep(worker_group.spec.monitor_interval)
        self._stop_workers(worker_group)
        return super()._monitor_workers(worker_group)

    # -------------------------------------------------------------------------------- what the nodes tell each other

    def _own_ends(self, result: RunResult) -> list[End]:
        """Give the ends of this node's processes but for those that torchrun had to kill after the first."""
        first = min(item.timestamp for item in result.failures.values())
        host = socket.gethostname()
        return [
            End(rank, host, item.exitcode)
            for rank, item in result.failures.items()
            if item.timestamp < first + KILLED_SECONDS
        ]

    def _judge(self, worker_group: WorkerGroup, end: End) -> None:
        """Decide whether torchrun restarts after this end: tell the other nodes, and the reader of the log."""
        max_restarts, number = worker_group.spec.max_restarts, worker_group.group_rank
        left = self._remaining_restarts
        leaves = end.is_quiet or self.asked is not None or left == 0 or self.is_store_lost
        with self._telling() as store:
            store.set(f"{END}{number}", end.to_json())
            leaves = leaves or store.check([LEAVE])
            if leaves:
                # The first to leave says why, for all.
                end = End.from_json(store.compare_set(LEAVE, "", end.to_json()))
            store.set(ENDED, "")
        if not leaves:
            self._is_counted = True
            say(f"{end}; restart {max_restarts - left + 1} of {max_restarts}")
            return
        self.end = end
        self._remaining_restarts = 0
        if self.is_store_lost:
            say("lost the launcher of the node that all met at: it ended, or the network did")
        if self.asked is not None and self.exit_code_when_asked is None:
            say(f"{end}, told to leave")
        elif not end.is_quiet and self.asked is None:
            say(f"{end}; " + ("all restarts are used up" if max_restarts else "see --max-restarts"))
        self._wait_for_the_others()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[dist.Store]:
        """Give the store of this round; leave the block where its host is gone."""
        assert self._told is not None
        self._asks_since = time.monotonic()
        try:
            yield self._told
        except dist.DistError:
            self.is_store_lost = True
        finally:
            self._asks_since = None

    def _watch_store(self) -> None:
        """End this launcher when the store does not answer and a process here has ended; a thread of its own.

        Where a wire is cut, torch's store waits for an answer without end. As long as processes run they are left
        alone: if they cannot reach each other either, they end by themselves.
        """
        while True:
            time.sleep(1.0)
            since, context = self._asks_since, self._pcontext
            if since is None or context is None or time.monotonic() - since < SILENCE_SECONDS:
                continue
            pids = list(context.pids().values())
            if self._phase == "running" and not any(map(_has_ended, pids)):
                continue
            say(f"no answer in {SILENCE_SECONDS:.0f} s from the launcher that all met at; leaving")
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            self._abandon()

    @property
    def _num_nodes(self) -> int:
        return self._worker_group.group_world_size or 1

    def _has_ended(self) -> bool:
        """Say whether a process of this round ended otherwise than well, or the store is gone."""
        with self._telling() as store:
            return store.check([ENDED])
        return True

    def _told_leave(self) -> End | None:
        with self._telling() as store:
            return End.from_json(store.get(LEAVE)) if store.check([LEAVE]) else None
        return None

    def _told_cause(self) -> End | None:
        """Give what ended this round, as far as nodes have told it."""
        ends: list[End] = []
        with self._telling() as store:
            keys = [f"{END}{number}" for number in range(self._num_nodes)]
            ends += [End.from_json(store.get(key)) for key in keys if store.check([key])]
        return cause(ends) if ends else None

    def _wait_for_the_others(self) -> None:
        """Stay while others read why all leave, if this launcher keeps the store; else go with it."""
        deadline = time.monotonic() + TOGETHER_SECONDS
        with self._telling() as store:
            number = store.add(LEFT, 1)
            while number < self._num_nodes and time.monotonic() < deadline:
                time.sleep(0.1)
                number = store.add(LEFT, 0)


def _has_ended(pid: int) -> bool:
    """Say whether a child has ended, and leave it to whoever waits for it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return True


def say(text: str) -> None:
    """Tell the reader of the log."""
    print(f"launch.py: {text}", file=sys.stderr, flush=True)
