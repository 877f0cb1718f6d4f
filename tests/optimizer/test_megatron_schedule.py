"""Learning rate, weight decay and batch ramp against megatron-core's own, sample by sample."""

import json

import pytest

from megatron.optimizer.schedule import Schedule
from megatron.options import OptimizerConfig, TrainingConfig
from megatron.training.batch_schedule import BatchSchedule
from tests.megatron_core import run_megatron_core

SCRIPT = """
import json, sys
from unittest import mock
from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

def rows(style, wsd_style, incr_style, start_wd, end_wd):
    optimizer = mock.Mock(param_groups=[{"lr": 0.0, "weight_decay": 0.0}])
    scheduler = OptimizerParamScheduler(
        optimizer, init_lr=0.0, max_lr=3e-4, min_lr=3e-5, lr_warmup_steps=40, lr_decay_steps=400,
        lr_decay_style=style, start_wd=start_wd, end_wd=end_wd, wd_incr_steps=480,
        wd_incr_style=incr_style, wsd_decay_steps=80, lr_wsd_decay_style=wsd_style)
    result = []
    for _ in range(120):
        result.append((scheduler.get_lr(optimizer.param_groups[0]), scheduler.get_wd()))
        scheduler.step(increment=4)
    return result

calculator = RampupBatchsizeNumMicroBatchesCalculator(
    global_batch_size=32, micro_batch_size=2, data_parallel_size=2,
    decrease_batch_size_if_needed=False, rank=0, start_global_batch_size=8,
    batch_size_increment=8, ramup_samples=300)
sizes, consumed = [], 0
while consumed < 500:
    calculator.update(consumed, consistency_check=False)
    sizes.append(calculator.get_current_global_batch_size())
    consumed += sizes[-1]
print(json.dumps({"schedules": [rows(*case) for case in json.loads(sys.argv[1])], "ramp": sizes}))
"""
CASES = [
    ("constant", "linear", "constant", 0.1, 0.1),
    ("linear", "linear", "linear", 0.01, 0.1),
    ("cosine", "linear", "cosine", 0.01, 0.1),
    ("WSD", "linear", "constant", 0.1, 0.1),
    ("WSD", "cosine", "constant", 0.1, 0.1),
    ("WSD", "exponential", "constant", 0.1, 0.1),
]


@pytest.fixture(scope="module")
def megatron() -> dict:
    return json.loads(run_megatron_core(SCRIPT, json.dumps(CASES)).splitlines()[-1])


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_schedule_equals_megatron_core(megatron, case):
    style, wsd_style, incr_style, start, end = case
    expected = megatron["schedules"][CASES.index(case)]
    grows = incr_style != "constant"
    schedule = Schedule.create(
        OptimizerConfig(
            lr=3e-4,
            min_lr=3e-5,
            lr_decay_style=style,
            lr_decay_iters=100,
            lr_warmup_iters=10,
            lr_wsd_decay_iters=20,
            lr_wsd_decay_style=wsd_style,
            weight_decay=0.1,
            start_weight_decay=start if grows else None,
            end_weight_decay=end if grows else None,
            weight_decay_incr_style=incr_style,
        ),
        TrainingConfig(train_iters=120),
        global_batch_size=4,
    )
    ours = [(schedule.learning_rate(n * 4), schedule.weight_decay(n * 4)) for n in range(120)]
    for row, (expected_lr, expected_decay) in zip(ours, expected, strict=True):
        assert row == (pytest.approx(expected_lr, rel=1e-9), pytest.approx(expected_decay))


def test_batch_ramp_equals_megatron_core(megatron):
    schedule = BatchSchedule.create(TrainingConfig(rampup_batch_size=(8, 8, 300)), 32)
    sizes, consumed = [], 0
    while consumed < 500:
        sizes.append(schedule.size(consumed))
        consumed += sizes[-1]
    assert sizes == megatron["ramp"]
