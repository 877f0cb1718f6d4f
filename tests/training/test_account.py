"""Results read late are those read at once: weights, sums, messages, health, and where a run leaves."""

import dataclasses
import logging
import math
import os
import signal

import pytest
import torch
import torch.distributed as dist

from megatron.checkpoint.reader import CheckpointReader
from megatron.errors import TrainingError
from megatron.options import TrainingConfig
from megatron.training.account import MAX_LOST_STEPS, Account
from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run
from megatron.training.run_state import Progress
from megatron.training.spike import SpikeGuard
from megatron.training.start import plan_start
from megatron.training.step import StepResult
from megatron.training.train import train
from megatron.training.votes import Votes
from tests.grid import grid_of
from tests.training.runs import flags_of, parse, read_metrics, train_here

GLOBAL_BATCH = 4


class Step:
    """A step whose result stands, and which remembers that it was read."""

    def __init__(self, loss=1.0, *, is_lost=False, should_stop=False):
        self.was_read = False
        self._result = StepResult(
            loss,
            0.5,
            1e-3,
            is_skipped=not math.isfinite(loss),
            is_lost=is_lost,
            next_loss_scale=1.0,
            votes=Votes(stop=should_stop),
            attention_share=1.0,
        )

    def read(self):
        self.was_read = True
        return self._result


def account_of(progress, save=None):
    return Account(progress, SpikeGuard(TrainingConfig(), progress.spikes), save=save)


def enter(account, progress, step):
    progress.advance(GLOBAL_BATCH)
    account.add(step, GLOBAL_BATCH, 100)
    account.read_earlier()


def test_a_result_is_read_once_the_next_step_is_queued_and_counts_once():
    progress = Progress(iteration=10)
    account = account_of(progress)
    steps = [Step(1.0), Step(3.0, should_stop=True), Step(5.0)]
    for number, step in enumerate(steps):
        enter(account, progress, step)
        assert [step.was_read for step in steps] == [n < number for n in range(3)]
        assert progress.interval.num_steps == account.clock.num_steps == number
    assert account.should_stop and account.last.loss == 3.0
    for _ in range(2):
        account.read_all()
        assert (progress.interval.num_steps, progress.interval.loss_sum) == (3, 9.0)
        assert (account.clock.tokens, account.last.loss) == (300, 5.0)
    account.begin_interval()
    assert (progress.interval.num_steps, account.clock.num_steps) == (0, 0)


def test_only_the_first_step_of_a_process_is_left_out_of_what_steps_take():
    progress = Progress(iteration=10)  # of a resumed run
    account = account_of(progress)
    account.clock.start()
    enter(account, progress, Step())
    account.read_all()
    assert account.clock.usual_step_seconds is None
    account.begin_interval()
    enter(account, progress, Step())
    account.read_all()
    assert account.clock.usual_step_seconds == account.clock.seconds


def test_a_skipped_step_is_named_by_its_own_number(caplog):
    progress = Progress(iteration=10, consumed_samples=40)
    account = account_of(progress, save="runs/a")
    with caplog.at_level("INFO", "megatron"):
        for loss in (1.0, math.inf, 1.0):
            enter(account, progress, Step(loss))
    (message,) = [record.message for record in caplog.records]
    assert message.startswith("step 12: gradients are not finite (loss inf)")
    assert message.endswith(
        "it read samples 44 to 47, and python tools/verify.py sample --load runs/a --step 12 lists their documents"
    )
    assert (progress.interval.num_steps, progress.interval.num_skipped) == (2, 1)


def test_only_steps_lost_in_a_row_end_a_run():
    progress = Progress()
    account = account_of(progress)
    lost = [Step(math.nan, is_lost=True) for _ in range(2 * MAX_LOST_STEPS)]
    lost[5] = Step()
    with pytest.raises(TrainingError, match=f"up to step {6 + MAX_LOST_STEPS}, were all skipped"):
        for step in lost:
            enter(account, progress, step)
    assert progress.iteration == 7 + MAX_LOST_STEPS  # one more was queued


class Disturbed:
    """A loader with one batch whose losses are infinite, and one on whose reading this process gets a signal."""

    def __init__(self, loader, *, poisoned, signalled):
        self._loader = loader
        self._poisoned, self._signalled = poisoned, signalled

    def batch(self, consumed, size):
        batch = self._loader.batch(consumed, size)
        step = consumed // size + 1
        if step == self._signalled:
            os.kill(os.getpid(), signal.SIGTERM)
        if step == self._poisoned:
            mask = batch.loss_mask * math.inf
            batch = dataclasses.replace(batch, loss_mask=mask)
        return batch

    def close(self):
        self._loader.close()


class Messages(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def train_disturbed(rank, flags, poisoned, signalled):
    """Train with the last rank's loader disturbed; give the outcome, the updates made and what was said."""
    world_size = dist.get_world_size()
    inputs = open_inputs(parse(flags), world_size)
    run = build_run(inputs, plan_start(inputs, world_size), grid_of(inputs.config.parallel))
    if rank == world_size - 1:
        loader = Disturbed(run.loader, poisoned=poisoned, signalled=signalled)
        run = dataclasses.replace(run, loader=loader)
    logger, messages = logging.getLogger("megatron"), Messages()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(messages)
    try:
        outcome = train(run)
    finally:
        logger.removeHandler(messages)
        logger.setLevel(level)
    run.close()
    return outcome, run.parts.optimizer.num_steps, messages.texts


def flags_for(corpus, save, extra):
    return flags_of(
        corpus,
        save,
        f"--global-batch-size {GLOBAL_BATCH} --train-iters 9 --eval-interval 9 --eval-iters 1 {extra}",
    )


def tensors_of(save, iteration):
    reader = CheckpointReader.open(save / f"iter_{iteration:07d}")
    return {name: reader.read(name) for name in reader.names()}


def assert_equal(one, other):
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("precision", ["", "--bf16", "--fp16 --initial-loss-scale 1024"])
def test_steps_read_late_equal_those_read_at_once(world, corpus, tmp_path, precision):
    for name, extra in (("at once", "--log-interval 1"), ("late", "--log-interval 9")):
        flags = flags_for(corpus, tmp_path / name.replace(" ", "_"), f"{extra} {precision}")
        ((outcome, num_steps, messages),) = world(1).run(train_disturbed, flags, 4, None)
        assert (outcome, num_steps) == ("finished", 8)
        (skipped,) = [text for text in messages if "not finite" in text]
        assert skipped.startswith("step 4: gradients are not finite")
    assert_equal(tensors_of(tmp_path / "at_once", 9), tensors_of(tmp_path / "late", 9))
    at_once, late = (read_metrics(tmp_path / name)[0] for name in ("at_once", "late"))
    assert list(late) == [9]
    losses = [line["lm_loss"] for step, line in at_once.items() if step != 4]
    assert late[9]["lm_loss"] == sum(losses) / 8
    assert late[9]["grad_norm"] == at_once[9]["grad_norm"]
    assert (late[9]["skipped"], at_once[4]["skipped"]) == (1, 1)


def test_a_step_lost_amid_steps_read_late_changes_no_weight(world, corpus, tmp_path):
    for steps in (3, 4):
        extra = f"--log-interval 9 --exit-interval {steps}"
        flags = flags_for(corpus, tmp_path / str(steps), extra)
        assert world(1).run(train_disturbed, flags, 4, None)[0][:2] == ("stopped", 3)
    assert_equal(tensors_of(tmp_path / "3", 3), tensors_of(tmp_path / "4", 4))


@pytest.mark.parametrize(
    ("log_interval", "last"),
    [
        (9, 6),  # asked for in step 4, known in step 5's reduction, read when step 6 is queued
        (5, 5),  # step 5 is logged, and so read at once
        (3, 6),
    ],
)
def test_one_process_is_asked_to_stop_and_all_leave_at_the_same_step(
    world, corpus, tmp_path, log_interval, last
):
    extra = f"--log-interval {log_interval} --use-distributed-optimizer"
    parts = flags_for(corpus, tmp_path / "parts", extra)
    results = world(2).run(train_disturbed, parts, None, 4)
    assert [outcome for outcome, _, _ in results] == ["stopped"] * 2
    assert all(f"left after step {last}; " in " ".join(texts) for _, _, texts in results)
    assert int((tmp_path / "parts" / "latest_checkpointed_iteration.txt").read_text()) == last
    assert world(2).run(train_here, parts) == ["finished"] * 2
    assert world(2).run(train_here, flags_for(corpus, tmp_path / "whole", extra)) == (
        ["finished"] * 2
    )
    assert_equal(tensors_of(tmp_path / "parts", 9), tensors_of(tmp_path / "whole", 9))
    found, expected = (read_metrics(tmp_path / name) for name in ("parts", "whole"))
    for name in ("lm_loss", "grad_norm", "skipped", "consumed_samples"):
        assert [row[name] for row in found[0].values()] == [
            row[name] for row in expected[0].values()
        ]
    assert found[1] == expected[1]
