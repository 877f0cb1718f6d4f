"""How long a process may stay at one mark before it counts as hanging. Knows nothing of threads or processes."""

from __future__ import annotations

from collections import Counter, deque

from megatron.training.marks import Mark, Phase

LEAST_SECONDS = 120.0  # storage that stalls comes back within a minute or two
STEPS_OF_PATIENCE = 10  # in the longest of recent steps
NUM_RECENT = 50
LONG_FACTOR = 10  # for what takes long by nature: starting, loading, saving, and what is done for the first time
LONG_PHASES: frozenset[Phase] = frozenset({"start", "load", "save", "leave"})
NUM_FIRST = 2  # steps or validation batches that may compile, choose kernels, open files


class Patience:
    """Counts the time at the present mark, and says how much there may be."""

    def __init__(self, timeout: float | None) -> None:
        """timeout: seconds that a step may take; None: derived from those before it."""
        self.age = 0.0  # at the present mark
        self._timeout = timeout
        self._mark: Mark | None = None
        self._steps: deque[float] = deque(maxlen=NUM_RECENT)  # seconds at marks that were left
        self._num_seen: Counter[Phase] = Counter()

    def observe(self, mark: Mark, elapsed: float) -> None:
        """Account for the time since the last call; elapsed is what this process was seen to run, not a clock's."""
        if self._mark is not None and mark.number == self._mark.number:
            self.age += elapsed
            return
        if self._mark is not None and not self._takes_long(self._mark.phase):
            self._steps.append(self.age)
        self._mark, self.age = mark, 0.0
        self._num_seen[mark.phase] += 1

    @property
    def limit(self) -> float:
        """Seconds at the present mark after which nobody waits any longer."""
        step = self._timeout
        if step is None:
            step = max(LEAST_SECONDS, STEPS_OF_PATIENCE * max(self._steps, default=0.0))
        if self._mark is None or self._takes_long(self._mark.phase):
            return LONG_FACTOR * step
        return step

    def _takes_long(self, phase: Phase) -> bool:
        return phase in LONG_PHASES or self._num_seen[phase] <= NUM_FIRST
