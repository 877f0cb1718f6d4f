"""The loop of a run: step, log, validate, save, leave. What it drives is built in `pretrain`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from megatron.config import Config
from megatron.data.consumption import consumption
from megatron.data.gpt_dataset import Dataset
from megatron.data.loader import BatchLoader
from megatron.errors import TrainingError
from megatron.logging import get_logger
from megatron.training.batch_schedule import BatchSchedule
from megatron.training.evaluate import Validation
from megatron.training.metrics import Interval, MetricsWriter
from megatron.training.run_state import Progress, RunSaver
from megatron.training.signals import StopSignals
from megatron.training.step import StepParts, StepResult, train_step
from megatron.training.throughput import Clock, Throughput

logger = get_logger(__name__)

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
    saver: RunSaver
    throughput: Throughput
    writer: MetricsWriter | None  # rank 0 only

    def close(self) -> None:
        """End loader processes and close the logs."""
        self.loader.close()
        self.validation.close()
        self.test.close()
        if self.writer is not None:
            self.writer.close()

    @property
    def is_complete(self) -> bool:
        training = self.config.training
        if training.train_samples is not None:
            return self.progress.consumed_samples >= training.train_samples
        assert training.train_iters is not None
        return self.progress.iteration >= training.train_iters

    @property
    def total_iterations(self) -> int:
        """Steps of the whole run, an estimate while the batch still grows."""
        training, progress = self.config.training, self.progress
        if training.train_iters is not None:
            return training.train_iters
        assert training.train_samples is not None
        remaining = max(0, training.train_samples - progress.consumed_samples)
        return progress.iteration - (-remaining // self.batches.size(progress.consumed_samples))


def train(run: Run) -> Outcome:
    """Train until the run is complete or a process is asked to leave; the last step is always saved.

    Collective over the world: every process leaves at the same step.
    """
    training, progress = run.config.training, run.progress
    clock, started, num_lost = Clock(), time.monotonic(), 0
    with StopSignals() as signals:
        if progress.iteration == 0:
            _validate(run, run.validation)
        while not run.is_complete:
            is_overtime = (
                training.exit_duration_in_mins is not None
                and time.monotonic() - started > 60.0 * training.exit_duration_in_mins
            )
            size = run.batches.size(progress.consumed_samples)
            clock.start()
            result = _step(run, size, wants_stop=signals.received is not None or is_overtime)
            clock.stop(size * run.parts.seq_length, result.attention_share)
            progress.advance(size)
            progress.interval.add(result.loss, result.is_skipped)
            num_lost = num_lost + 1 if result.is_lost else 0
            _check_health(num_lost, progress.iteration)
            if progress.iteration % run.config.logging.log_interval == 0 or run.is_complete:
                _log(run, result, clock)
                progress.interval, clock = Interval(), Clock()
            if progress.iteration % training.eval_interval == 0 or run.is_complete:
                _log_sources(run)
                _validate(run, run.validation)
            should_leave = result.should_stop or (
                training.exit_interval is not None
                and progress.iteration % training.exit_interval == 0
            )
            run.saver.save_if_due(progress, is_last=run.is_complete or should_leave)
            if run.is_complete:
                _validate(run, run.test)
            elif should_leave:
                logger.info(f"left after step {progress.iteration}; {_how_to_continue(run.config)}")
                return "stopped"
    return "finished"


MAX_LOST_STEPS = 20  # in a row; a divergence does not heal, and every step of it costs data


def _check_health(num_lost: int, iteration: int) -> None:
    """Raise TrainingError, on every process alike, when step after step is lost."""
    if num_lost >= MAX_LOST_STEPS:
        raise TrainingError(
            f"the gradients of the last {num_lost} steps, up to step {iteration}, were not finite: "
            f"the weights did not change in them. Restart from an earlier checkpoint with a lower "
            f"--lr or another --seed (--no-load-rng), and look at the data of these steps"
        )


def _how_to_continue(config: Config) -> str:
    options = config.checkpoint
    if options.save is None:
        return "nothing was saved: there is no --save"
    if options.load is None:
        return f"add --load {options.save} to continue"
    return "the same command continues"


def _step(run: Run, size: int, *, wants_stop: bool) -> StepResult:
    """Read a global batch of size samples and take one step with it."""
    consumed = run.progress.consumed_samples
    batch = run.loader.batch(consumed, size).to(run.parts.context.device)
    result = train_step(
        run.parts,
        batch,
        consumed_samples=consumed,
        global_batch_size=size,
        wants_stop=wants_stop,
    )
    if result.is_skipped:
        logger.info(
            f"step {run.progress.iteration + 1}: gradients are not finite (loss {result.loss}); "
            f"weights unchanged, next loss scale {run.parts.loss_scale.scale:g}"
        )
    return result


def _validate(run: Run, validation: Validation) -> None:
    losses = validation.run(run.parts.pipeline, run.parts.context)
    if run.writer is not None and losses:
        run.writer.validation(run.progress.iteration, losses)


def _log_sources(run: Run) -> None:
    if run.writer is not None:
        consumed, seq_length = run.progress.consumed_samples, run.parts.seq_length
        run.writer.sources(
            run.progress.iteration, consumption(run.dataset, consumed, seq_length=seq_length)
        )


def _log(run: Run, result: StepResult, clock: Clock) -> None:
    if run.writer is None:
        return
    progress = run.progress
    run.writer.training(
        {
            "iteration": progress.iteration,
            "consumed_samples": progress.consumed_samples,
            "consumed_tokens": progress.consumed_samples * run.parts.seq_length,
            "lm_loss": progress.interval.mean_loss,
            "grad_norm": result.gradient_norm,
            "learning_rate": result.learning_rate,
            "step_time_s": clock.seconds / clock.num_steps,
            **run.throughput.fields(clock.tokens, clock.seconds, clock.attention_share),
            "skipped": progress.interval.num_skipped,
        },
        total_iterations=run.total_iterations,
    )
