"""What a run consists of. Built by `pretrain`, driven by `train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron.config import Config
from megatron.data.gpt_dataset import Dataset
from megatron.data.loader import BatchLoader
from megatron.training.batch_schedule import BatchSchedule
from megatron.training.evaluate import Validation
from megatron.training.marks import Marks
from megatron.training.metrics import MetricsWriter
from megatron.training.replicas import ReplicaCheck
from megatron.training.rollback import Rollback
from megatron.training.run_state import Progress, RunTensors
from megatron.training.saver import RunSaver
from megatron.training.spike import SpikeGuard
from megatron.training.step import StepParts
from megatron.training.throughput import Throughput

Outcome = Literal["finished", "stopped"]


@dataclass(frozen=True)
class Run:
    """Everything a run consists of."""

    config: Config
    parts: StepParts
    dataset: Dataset  # what loader reads
    loader: BatchLoader
    batches: BatchSchedule
    validation: Validation
    test: Validation  # read once, at the end
    progress: Progress
    tensors: RunTensors
    spikes: SpikeGuard
    rollback: Rollback
    saver: RunSaver
    replicas: ReplicaCheck
    throughput: Throughput
    writer: MetricsWriter | None  # rank 0 only
    marks: Marks  # of where the run is, for those who watch it

    def close(self) -> None:
        """End loader processes and close the logs."""
        self.loader.close()
        self.validation.close()
        self.test.close()
        if self.writer is not None:
            self.writer.close()

    @property
    def is_complete(self) -> bool:
        return self.progress.iteration >= self.total_iterations

    @property
    def total_iterations(self) -> int:
        """Steps of the whole run, an estimate while the batch still grows."""
        training, progress = self.config.training, self.progress
        if training.train_iters is not None:
            return training.train_iters
        assert training.train_samples is not None
        return progress.iteration + self.batches.num_steps(
            progress.consumed_samples, training.train_samples
        )
