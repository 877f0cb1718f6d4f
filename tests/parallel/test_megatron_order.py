"""Ranks and the passes of an interleaved pipeline come in megatron-core's order."""

import json

import pytest
import torch.distributed as dist

from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run
from megatron.training.start import plan_start
from tests.grid import grid, grid_of
from tests.megatron_core import run_megatron_core
from tests.training.runs import flags_of, parse

GROUPS = """
import json, sys
from megatron.core.parallel_state import RankGenerator
sizes = json.loads(sys.argv[1])
ranks = RankGenerator(ep=1, order="tp-cp-ep-dp-pp", **sizes)
print(json.dumps({axis: ranks.get_ranks(axis) for axis in sizes}))
"""
PASSES = """
import json, sys
from megatron.core.pipeline_parallel.schedules import get_schedule_table
print(json.dumps(get_schedule_table(*json.loads(sys.argv[1]))))
"""


def _place(rank, sizes):
    """Give this process's place on every axis, and the ranks that it shares sequences with."""
    cp = sizes["cp"]
    context = grid(pp=sizes["pp"], dp_shard=sizes["dp"] * cp, tp=sizes["tp"], cp=cp)
    found = {"tp": context.tp_size, "cp": context.cp.size, "dp": context.dp_size}
    assert {**found, "pp": context.pp_size} == sizes
    place = {"tp": context.tp_group.rank(), "cp": context.cp.rank, "dp": context.dp_rank}
    ranks = [rank] if context.cp.group is None else dist.get_process_group_ranks(context.cp.group)
    return {**place, "pp": context.pp_rank}, ranks


@pytest.mark.parametrize(
    "sizes",
    [
        {"tp": 2, "cp": 1, "dp": 2, "pp": 2},
        {"tp": 2, "cp": 2, "dp": 1, "pp": 2},
        {"tp": 2, "cp": 2, "dp": 2, "pp": 1},
    ],
    ids=str,
)
def test_neighbours_on_each_axis_are_megatron_cores(world, sizes):
    expected = json.loads(run_megatron_core(GROUPS, json.dumps(sizes)).splitlines()[-1])
    found = world(8).run(_place, sizes)
    for axis, groups in expected.items():
        for group in groups:
            assert [found[rank][0][axis] for rank in group] == list(range(len(group))), axis
    for group in expected["cp"]:
        assert all(found[rank][1] == group for rank in group)


def _passes(rank, flags, num_micro_batches):
    """Give this rank's passes in order: (kind, micro-batch, chunk)."""
    inputs = open_inputs(parse(flags), 2)
    run = build_run(inputs, plan_start(inputs, 2), grid_of(inputs.config.parallel))
    schedule = run.parts.pipeline._schedule_of(num_micro_batches, train=True)
    actions = [action for action in schedule.pipeline_order[rank] if action is not None]
    run.close()
    return [
        (action.computation_type.value, action.microbatch_index, action.stage_index // 2)
        for action in actions
    ]


def test_passes_of_an_interleaved_pipeline_are_megatron_cores(world, corpus, tmp_path):
    num_micro_batches, num_chunks, num_ranks = 8, 2, 2
    flags = flags_of(
        corpus,
        tmp_path,
        "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1 --eval-iters 0",
    )
    arguments = json.dumps([num_micro_batches, num_chunks, num_ranks])
    table = json.loads(run_megatron_core(PASSES, arguments).splitlines()[-1])
    forward = [("F", micro_batch, chunk) for micro_batch, chunk in table]
    backward = [("B", micro_batch, num_chunks - 1 - chunk) for micro_batch, chunk in table]
    for rank, found in enumerate(world(2).run(_passes, flags, num_micro_batches)):
        # forward passes before the first backward pass, by Narayanan et al. 2021 (arXiv 2104.04473), section 2.2
        num_warmup = 2 * (num_ranks - rank - 1) + (num_chunks - 1) * num_ranks
        steady = zip(forward[num_warmup:], backward, strict=False)
        expected = [*forward[:num_warmup], *(item for pair in steady for item in pair)]
        expected += backward[len(forward) - num_warmup :]
        assert found == expected
