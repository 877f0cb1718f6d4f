"""The account of a run's steps: each one's result read once and in order, as late as nobody misses it.

The result of a step is read when the next one has been queued, so that a GPU has work while Python looks at what it
did. Every process reads the same results at the same steps. Knows nothing of how a step is taken or where numbers go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from megatron.errors import TrainingError
from megatron.logging import get_logger
from megatron.training.run_state import Interval, Progress
from megatron.training.spike import SpikeGuard
from megatron.training.step import PendingStep, StepResult
from megatron.training.throughput import Clock
from megatron.training.votes import Votes

logger = get_logger(__name__)

MAX_LOST_STEPS = 20  # in a row; a divergence does not heal, and every step of it costs data


@dataclass(frozen=True)
class Entry:
    """A step that was queued."""

    iteration: int
    samples: range
    num_tokens: int
    step: PendingStep


class Account:
    """Takes the results of steps into the progress of a run."""

    def __init__(
        self,
        progress: Progress,
        spikes: SpikeGuard,
        *,
        save: str | None = None,
        on_votes: Callable[[int, Votes], None] = lambda iteration, votes: None,
    ) -> None:
        """Keep progress.interval, which holds the steps that were read and no others, and tell spikes of them.

        save: the run's folder, which messages name for who looks a step's samples up. on_votes hears the votes of
        each step that is read.
        """
        self.clock = Clock()
        self.should_stop = False  # some process was asked to, in a step that was read
        self._progress, self._spikes, self._save = progress, spikes, save
        self._on_votes = on_votes
        self._pending: deque[Entry] = deque()
        self._last: StepResult | None = None
        self._num_lost = 0  # in a row
        self._is_warm = False  # a step has been taken

    @property
    def last(self) -> StepResult:
        """The result that was read last."""
        assert self._last is not None
        return self._last

    def add(self, step: PendingStep, num_samples: int, num_tokens: int) -> None:
        """Enter the step that progress has just been advanced by."""
        stop = self._progress.consumed_samples
        samples = range(stop - num_samples, stop)
        self._pending.append(Entry(self._progress.iteration, samples, num_tokens, step))
        if not self._is_warm:
            self._is_warm = True
            self.clock.end_warm_up()

    def read_earlier(self) -> None:
        """Read all steps but the newest, on which the device goes on working. Raises as `read_all`."""
        while len(self._pending) > 1:
            self._read(self._pending.popleft())

    def read_all(self) -> None:
        """Read every step. Synchronises the device.

        Raises TrainingError, on every process alike, when step after step is lost.
        """
        while self._pending:
            self._read(self._pending.popleft())

    def begin_interval(self) -> None:
        """Forget what was logged."""
        self._progress.interval, self.clock = Interval(), Clock()
        self.clock.start()

    def restart(self) -> None:
        """Go on from another step than the last one read."""
        assert not self._pending
        self._num_lost, self.clock = 0, Clock()
        self.clock.start()

    def _read(self, entry: Entry) -> None:
        result = entry.step.read()
        self._last = result
        self.should_stop = self.should_stop or result.votes.stop > 0
        self._on_votes(entry.iteration, result.votes)
        self.clock.count(entry.num_tokens, result.attention_share)
        self._progress.interval.add(result.loss, result.is_skipped, result.num_loss_tokens)
        lost_sample = entry.samples.start if result.is_lost else None
        self._spikes.add(
            entry.iteration, result.loss, result.gradient_norm, lost_sample=lost_sample
        )
        if result.is_skipped:
            logger.info(
                f"step {entry.iteration}: {_reason(result)}; weights unchanged, "
                f"next loss scale {result.next_loss_scale:g}; {self._trace(entry)}"
            )
        self._num_lost = self._num_lost + 1 if result.is_lost else 0
        if self._num_lost >= MAX_LOST_STEPS:
            raise TrainingError(
                f"the last {self._num_lost} steps, up to step {entry.iteration}, were all skipped (the last: "
                f"{_reason(result)}): the weights did not change in them. Restart from an earlier checkpoint with a lower "
                f"--lr or another --seed (--no-load-rng), and look at the data of these steps"
            )

    def _trace(self, entry: Entry) -> str:
        """Say which samples a step took, and how to list the documents they were made of."""
        text = f"it read samples {entry.samples.start} to {entry.samples.stop - 1}"
        if self._save is None:
            return text
        command = f"python tools/verify.py sample --load {self._save} --step {entry.iteration}"
        return f"{text}, and {command} lists their documents"


def _reason(result: StepResult) -> str:
    """Say why a step was skipped."""
    if not result.is_spike:
        return f"gradients are not finite (loss {result.loss})"
    limits = result.limits
    return (
        f"a spike: loss {result.loss:.4f} (limit {limits.loss:.4f}), gradient norm "
        f"{result.gradient_norm:.4g} (limit {limits.gradient_norm:.4g})"
    )
