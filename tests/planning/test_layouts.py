"""Layouts are ranked by what a plan of each says, and every one that is not shown is accounted for."""

import dataclasses

import pytest

from megatron.config import Config
from megatron.errors import ConfigError
from megatron.options import DataConfig, ModelConfig, OptimizerConfig, TrainingConfig
from megatron.planning.hardware import read_hardware
from megatron.planning.layouts import enumerate_layouts, rank_layouts
from megatron.planning.options import complete
from megatron.planning.plan import Question, make_plan

A100 = dataclasses.replace(read_hardware("a100-80gb"), reserved_bytes=0.0, devices_per_node=4)


def _config(**training):
    return Config(
        model=ModelConfig(
            num_layers=4,
            hidden_size=64,
            num_attention_heads=4,
            attention_head_type="multiquery",
            max_position_embeddings=8192,
            vocab_size=300,
            attention_backend="sdpa",
            hidden_dropout=0.0,
            attention_dropout=0.0,
        ),
        optimizer=OptimizerConfig(lr=1e-3),
        training=TrainingConfig(**{"global_batch_size": 16, "train_iters": 10, **training}),
        data=DataConfig(seq_length=8192, train_data_path=("unread",)),
    )


def _question(memory_bytes):
    hardware = dataclasses.replace(A100, memory_bytes=memory_bytes, peak_flops={"float32": 19.5e12})
    return Question(8, hardware)


@pytest.fixture(scope="module")
def ranking():
    return rank_layouts(_config(), _question(0.25e9), 1000)


def test_what_fits_is_sorted_and_what_does_not_is_counted(ranking):
    seconds = [plan.step.seconds for plan in ranking.best]
    assert seconds == sorted(seconds)
    assert all(plan.fits for plan in ranking.best)
    assert ranking.num_layouts == len(ranking.best) + sum(ranking.refused.values())
    assert any("needs more memory" in reason for reason in ranking.refused)
    assert any("needs at least N micro-batches" in reason for reason in ranking.refused)


def test_every_grid_is_tried_and_tensor_parallelism_stays_in_a_node(ranking):
    grids = {
        (p.tensor_model_parallel_size, p.context_parallel_size, p.pipeline_model_parallel_size)
        for p in (layout.parallel for layout in enumerate_layouts(_config(), _question(1e9)))
    }
    sizes = [(tp, cp, pp) for tp in (1, 2, 4) for cp in (1, 2) for pp in (1, 2, 4)]
    assert grids == {grid for grid in sizes if 8 % (grid[0] * grid[1] * grid[2]) == 0}


def test_a_layout_is_planned_as_it_is_alone(ranking):
    for plan in ranking.best[:5]:
        config = complete(dataclasses.replace(plan.config), 8)
        assert make_plan(config, _question(0.25e9)) == plan


def test_recomputation_is_for_layouts_that_do_not_fit_without(ranking):
    recomputing = [p for p in ranking.best if p.config.model.recompute_granularity is not None]
    assert recomputing
    for plan in recomputing:
        model = dataclasses.replace(
            plan.config.model, recompute_granularity=None, recompute_modules=None
        )
        kept = dataclasses.replace(plan.config, model=model)
        assert not make_plan(kept, _question(0.25e9)).fits


def test_no_layout_that_fits_is_an_error_that_counts_reasons():
    with pytest.raises(
        ConfigError, match=r"none of \d+ layouts fits A100.*\d+ x a rank needs more"
    ):
        rank_layouts(_config(), dataclasses.replace(_question(1e6), world_size=1), 10)


def test_layouts_of_no_common_batch_are_not_compared():
    with pytest.raises(ConfigError, match="--global-batch-size"):
        rank_layouts(_config(global_batch_size=None), _question(1e9), 10)
