"""Going back to a checkpoint when spikes do not end, and on from there without the samples that led into them.

PaLM's way (arXiv 2204.02311 §5.1): restart from a checkpoint roughly 100 steps before the spike and skip roughly 200 to
500 batches, those seen before and during it; the loss did not spike again. Here the run does it in place: no process
leaves. Whether, from where and what is skipped follows from numbers that all processes know and a resumed run finds
again, so all of them decide alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron.checkpoint.checksums import read_state
from megatron.checkpoint.choice import find_flaw
from megatron.checkpoint.layout import checkpoint_folder, saved_iterations
from megatron.checkpoint.verify import find_damage
from megatron.config import Config
from megatron.data.gpt_dataset import Dataset
from megatron.data.trace import Tracer
from megatron.errors import MegatronError, TrainingError
from megatron.logging import get_logger
from megatron.parallel.agreement import on_first_rank
from megatron.parallel.pipeline import TiedEmbedding
from megatron.training.account import Account
from megatron.training.marks import Marks
from megatron.training.metrics import MetricsWriter
from megatron.training.run_state import Progress, RunTensors, restore
from megatron.training.saver import RunSaver
from megatron.training.skipped import SkippedSamples, is_of_same_past
from megatron.training.spike import SpikeGuard, Streak
from megatron.training.start import Start

logger = get_logger(__name__)

MAX_ROLLBACKS = 20  # of a run; PaLM's 540B had about as many
MAX_TRACED = 64  # samples whose documents a line names


@dataclass(frozen=True)
class Rollback:
    """Brings a run back."""

    config: Config
    origin: Start  # what the run started from
    tensors: RunTensors
    tied_embedding: TiedEmbedding | None
    spikes: SpikeGuard
    saver: RunSaver
    dataset: Dataset
    writer: MetricsWriter | None  # rank 0 only
    marks: Marks

    def go_back_if_due(self, progress: Progress, account: Account) -> bool:
        """Go back if the steps before the newest were lost for as long as patience lasts; say whether.

        Decides the same whether the newest step was read or not, and leaves nothing of it. Collective over the world
        when it is due. Raises TrainingError, on every process alike, after MAX_ROLLBACKS.
        """
        streak = self.spikes.streak(progress.iteration)
        if self.config.training.loss_spike_policy != "rollback" or streak is None:
            return False
        account.read_all()
        self.marks.enter("load")
        self.saver.settle()  # what it writes may be what to go back to
        steps = f"steps {streak.first_step} to {progress.iteration - 1} were all lost"
        if progress.num_rollbacks == MAX_ROLLBACKS:
            raise TrainingError(
                f"{steps}, and the run has gone back {MAX_ROLLBACKS} times: it does not become stable by skipping "
                "data. Restart from an earlier checkpoint with a lower --lr or another --seed (--no-load-rng)"
            )
        start = self._find_start(streak, progress)
        if start is None:
            logger.info(
                f"{steps} and there is no good checkpoint before them that was not gone back to: going on by "
                "skipping steps"
            )
            return False
        left = replace(progress)
        self._restore(start, progress)
        account.restart()
        self._report(steps, streak, left, progress)
        return True

    def _find_start(self, streak: Streak, progress: Progress) -> Start | None:
        """Find the newest checkpoint that is whole, of this run's past and not gone back to. Collective.

        One that was gone back to may hold what the next spike grows from: the run takes an older one the second time.
        """
        for folder, state in on_first_rank(lambda: list(self._candidates(streak, progress))):
            damage = find_damage(folder)
            if damage is None:
                return replace(
                    self.origin,
                    folder=folder,
                    state=state,
                    schedule=self.tensors.schedule,
                    takes_optimizer=True,
                    takes_progress=True,
                )
            logger.info(f"cannot go back to it: {damage}")
        return None

    def _candidates(
        self, streak: Streak, progress: Progress
    ) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Look for checkpoints, newest first. Only those that every run has at these steps, stopped before or not."""
        checkpoint = self.config.checkpoint
        assert checkpoint.save is not None and checkpoint.save_interval is not None
        root, used = Path(checkpoint.save), {one.after for one in progress.skipped}
        for iteration in reversed(saved_iterations(root)):
            folder = checkpoint_folder(root, iteration)
            is_new = iteration % checkpoint.save_interval == 0 and iteration not in used
            if iteration >= streak.first_step or not is_new or find_flaw(folder) is not None:
                continue
            state = read_state(folder)
            if is_of_same_past(iteration, state, progress.skipped):
                yield folder, state

    def _restore(self, start: Start, progress: Progress) -> None:
        """Bring tensors and progress to where the checkpoint was, and the data to where the run is. Collective."""
        found = restore(start, self.tensors)
        if self.tied_embedding is not None:
            self.tied_embedding.copy_weight()
        kept = tuple(one for one in progress.skipped if one.after < found.iteration)
        left_out = SkippedSamples(
            found.iteration, found.consumed_samples, progress.consumed_samples
        )
        progress.skipped = (*kept, left_out)
        progress.num_rollbacks += 1
        progress.iteration, progress.interval = found.iteration, found.interval
        self.spikes.restore(found.spikes)
        self.saver.rewind(found.iteration)

    def _report(self, steps: str, streak: Streak, left: Progress, progress: Progress) -> None:
        """Name what was left out in the log and in metrics.jsonl."""
        skipped = progress.skipped[-1]
        spike = range(streak.first_sample, skipped.stop)
        logger.info(
            f"{steps}: back to step {progress.iteration}, and on without samples {skipped.start} to "
            f"{skipped.stop - 1}, of which {spike.start} to {spike.stop - 1} were the spike's (rollback "
            f"{progress.num_rollbacks} of at most {MAX_ROLLBACKS}). After the next save, python tools/verify.py sample "
            f"--load {self.config.checkpoint.save} --skipped lists their documents"
        )
        if self.writer is None:
            return
        self.writer.rollback(
            {
                "iteration": progress.iteration,
                "rollback_from": left.iteration,
                "skipped_samples": [skipped.start, skipped.stop],
                "spike_samples": [spike.start, spike.stop],
                "spike_documents": self._documents(spike[:MAX_TRACED]),
            }
        )

    def _documents(self, samples: range) -> list[str]:
        """Name the documents of samples, each as DATASET:FIRST-LAST."""
        tracer, names = Tracer(self.dataset), []
        try:
            for number in samples:
                traced = tracer.trace(number)
                spans = [span.document for span in traced.spans]
                names.append(f"{traced.prefix}:{min(spans)}-{max(spans)}")
        except MegatronError as error:
            logger.info(f"the documents of a spike cannot be told: {error}")
        return names
