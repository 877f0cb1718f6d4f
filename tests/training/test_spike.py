"""Steps far above recent ones: where the limit lies, and what each policy makes of a bad batch."""

import dataclasses
import math
import statistics

import pytest
import torch
import torch.distributed as dist

from megatron.checkpoint.reader import CheckpointReader
from megatron.options import TrainingConfig
from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run
from megatron.training.spike import NO_LIMITS, SpikeGuard, SpikeHistory, robust_limit
from megatron.training.start import plan_start
from megatron.training.train import train
from tests.grid import grid_of
from tests.training.corpus import VOCAB_SIZE
from tests.training.runs import flags_of, parse, read_metrics

BATCH = 4


def guard_of(history=None, window=8, threshold=6.0, policy="skip"):
    config = TrainingConfig(
        loss_spike_policy=policy, loss_spike_window=window, loss_spike_threshold=threshold
    )
    return SpikeGuard(config, history if history is not None else SpikeHistory())


def test_the_limit_of_normally_distributed_values_lies_deviations_above_their_mean():
    generator = torch.Generator().manual_seed(1)
    values = (2.0 + 0.1 * torch.randn(20001, generator=generator, dtype=torch.float64)).tolist()
    assert robust_limit(values, 6.0) == pytest.approx(
        statistics.mean(values) + 6.0 * statistics.stdev(values), rel=0.01
    )
    with_spikes = [*values, *([50.0] * 100)]
    assert robust_limit(with_spikes, 6.0) == pytest.approx(robust_limit(values, 6.0), rel=0.01)


def test_a_flat_curve_leaves_room_for_noise():
    assert robust_limit([1.0] * 9, 6.0) == pytest.approx(1.006)


def test_the_limit_is_a_function_of_steps_two_and_more_before_however_early_they_are_read():
    late, early = guard_of(), guard_of()
    losses = [1.0, 1.1, 0.9, 1.05, 0.95, 1.2, 0.7, 1.0, 1.3, 0.8, 1.1]
    limits = []
    for step, loss in enumerate(losses, start=1):
        early.add(step, loss, 2.0 * loss)  # at once: it knows one step more than it may use
        limits.append(early.limits(step + 1))
        if step > 1:
            late.add(step - 1, losses[step - 2], 2.0 * losses[step - 2])
        assert late.limits(step + 1) == limits[-1]
    assert limits[:4] == [NO_LIMITS] * 4 and NO_LIMITS not in limits[4:]  # half a window first
    window = losses[2:10]  # step 12's: 3 to 10
    assert limits[-1].loss == robust_limit(window, 6.0)
    expected = math.exp(robust_limit([math.log(2.0 * loss) for loss in window], 6.0))
    assert limits[-1].gradient_norm == expected


def test_steps_that_are_not_finite_set_no_limit_and_without_a_policy_nothing_is_kept():
    history = SpikeHistory()
    guard = guard_of(history)
    for step in range(1, 40):
        guard.add(step, math.nan if step % 2 else 1.0, 1.0)
    assert [step for step, _, _ in history.steps] == list(range(22, 40, 2))
    assert guard.limits(41).loss < 1.1
    off = SpikeHistory()
    guard = guard_of(off, policy="none")
    for step in range(40):
        guard.add(step, 1.0, 1.0)
    assert off.steps == [] and guard.limits(41) == NO_LIMITS


class BadBatches:
    """A loader some of whose samples have labels that no model could know, and only those."""

    def __init__(self, loader, bad: range):
        self._loader, self._bad = loader, bad

    def batch(self, consumed, size):
        batch = self._loader.batch(consumed, size)
        rows = [number for number, x in enumerate(batch.sample_ids.tolist()) if x in self._bad]
        if rows and batch.labels.numel():
            labels = batch.labels.clone()
            labels[rows] = VOCAB_SIZE - 1  # a token that the corpus does not hold
            batch = dataclasses.replace(batch, labels=labels)
        return batch

    def close(self):
        self._loader.close()


def train_with_bad_batches(rank: int, flags: str, bad: range) -> tuple[str, int]:
    """Train; give the outcome, or the error that ended it, and the number of updates."""
    world_size = dist.get_world_size()
    inputs = open_inputs(parse(flags), world_size)
    run = build_run(inputs, plan_start(inputs, world_size), grid_of(inputs.config.parallel))
    run = dataclasses.replace(run, loader=BadBatches(run.loader, bad))
    outcome = train(run)
    run.close()
    return outcome, run.parts.optimizer.num_steps


def flags_for(corpus, save, extra=""):
    return flags_of(
        corpus,
        save,
        f"--global-batch-size {BATCH} --micro-batch-size 1 --train-iters 30 --eval-iters 0 "
        f"--loss-spike-window 8 --lr 3e-3 --lr-warmup-iters 0 {extra}",
    )


def tensors_of(save, iteration):
    reader = CheckpointReader.open(save / f"iter_{iteration:07d}")
    return {name: reader.read(name) for name in reader.names()}


def samples_of(step: int) -> range:
    return range((step - 1) * BATCH, step * BATCH)


@pytest.mark.parametrize(
    "layout", ["--use-distributed-optimizer", "--pipeline-model-parallel-size 2"]
)
def test_a_bad_batch_leaves_every_weight_as_it_was(world, corpus, tmp_path, layout):
    bad = samples_of(20)
    for steps in (19, 20):
        extra = f"--loss-spike-policy skip --log-interval 30 --exit-interval {steps} {layout}"
        flags = flags_for(corpus, tmp_path / str(steps), extra)
        assert world(2).run(train_with_bad_batches, flags, bad) == [("stopped", 19)] * 2
    before, after = (tensors_of(tmp_path / str(steps), steps) for steps in (19, 20))
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    flags = flags_for(corpus, tmp_path / "none", f"--exit-interval 20 {layout}")
    assert world(2).run(train_with_bad_batches, flags, bad) == [("stopped", 20)] * 2


@pytest.mark.parametrize("stop", [19, 20, 21])
def test_a_run_stopped_around_a_spike_resumes_bitwise(world, corpus, tmp_path, stop):
    """Results are read one step late in the one and at once, by a save, in the other."""
    bad, extra = range(20 * BATCH - BATCH, 21 * BATCH), "--loss-spike-policy skip --log-interval 30"
    whole = flags_for(corpus, tmp_path / "whole", extra)
    assert world(1).run(train_with_bad_batches, whole, bad) == [("finished", 28)]
    parts = flags_for(corpus, tmp_path / "parts", extra)
    world(1).run(train_with_bad_batches, f"{parts} --exit-interval {stop}", bad)
    assert world(1).run(train_with_bad_batches, parts, bad) == [("finished", 28)]
    expected = tensors_of(tmp_path / "whole", 30)
    for name, tensor in tensors_of(tmp_path / "parts", 30).items():
        assert torch.equal(tensor, expected[name]), name
    (one, other) = (read_metrics(tmp_path / name)[0][30] for name in ("whole", "parts"))
    assert (one["lm_loss"], one["skipped"]) == (other["lm_loss"], other["skipped"])
    assert one["skipped"] == 2
