"""The share of a run's time that counts, against a run whose failures are drawn."""

import math
from dataclasses import replace

import numpy as np
import pytest

from megatron.config import Config
from megatron.options import CheckpointConfig, ModelConfig
from megatron.planning.goodput import (
    Failures,
    Steps,
    best_interval,
    checkpoint_bytes,
    plan_goodput,
)

MODEL = ModelConfig(
    num_layers=40,
    hidden_size=6144,
    num_attention_heads=48,
    attention_head_type="multiquery",
    max_position_embeddings=8192,
    vocab_size=49152,
    padded_vocab_size=49152,
)
STEPS = Steps(world_size=512, seconds=8.0, days=24.0)
FREQUENT = Failures(device_mtbf_hours=512.0)  # one an hour


def _config(**checkpoint: object) -> Config:
    return Config(model=MODEL, checkpoint=CheckpointConfig(save="runs/a", **checkpoint))


def _simulated_share(work: float, stall: float, restart: float, mtbf: float) -> float:
    """Play a run of many segments: a failure takes back what was done since the last checkpoint."""
    draw = np.random.default_rng(0)
    num_segments, clock = 20_000, 0.0
    next_failure = draw.exponential(mtbf)
    for _ in range(num_segments):
        segment = work + stall
        while clock + segment > next_failure:
            clock = next_failure
            next_failure = clock + draw.exponential(mtbf)
            segment = restart + work + stall  # a restart may fail too, and is begun anew
        clock += segment
    return num_segments * work / clock


@pytest.mark.parametrize("interval", [20, 100, 400])
def test_share_is_that_of_a_run_whose_failures_are_drawn(interval):
    config = _config(save_interval=interval)
    goodput = plan_goodput(config, STEPS, FREQUENT)
    drawn = _simulated_share(8.0 * interval, goodput.stall_seconds, 600.0, 3600.0)
    assert goodput.mtbf_hours == 1.0
    assert goodput.share == pytest.approx(drawn, rel=0.02)
    assert goodput.days == pytest.approx(24.0 / goodput.share)


@pytest.mark.parametrize("async_save", [False, True])
def test_no_other_interval_is_much_better_than_the_best(async_save):
    config = _config(async_save=async_save)
    best = plan_goodput(config, STEPS, Failures())
    assert best.save_interval == best_interval(config, STEPS, Failures())
    for interval in range(1, 2000, 7):
        other = replace(config, checkpoint=replace(config.checkpoint, save_interval=interval))
        assert plan_goodput(other, STEPS, Failures()).share < best.share + 1e-3


def test_asynchronous_save_stalls_for_a_copy_and_counts_when_it_is_written():
    size = checkpoint_bytes(_config())
    assert size == pytest.approx(15.517e9 * 12, rel=1e-3)
    sync = plan_goodput(_config(), STEPS, Failures())
    assert sync.stall_seconds == sync.write_seconds == size / 20e9
    copied = plan_goodput(_config(async_save=True), STEPS, Failures())
    assert copied.stall_seconds == size / 512 / 10e9
    assert copied.write_seconds > sync.write_seconds
    assert copied.share > sync.share


def test_weights_alone_take_a_third():
    assert checkpoint_bytes(_config(no_save_optim=True)) * 3 == checkpoint_bytes(_config())


def test_a_run_that_never_comes_to_a_checkpoint_does_not_end():
    goodput = plan_goodput(_config(save_interval=10**9), STEPS, FREQUENT)
    assert goodput.share == 0.0 and math.isinf(goodput.days)


def test_processes_that_fail_faster_than_they_restart_do_no_work():
    config = _config(save_interval=1)
    goodput = plan_goodput(config, STEPS, replace(FREQUENT, restart_minutes=1e9))
    assert goodput.share == 0.0 and math.isinf(goodput.days)
