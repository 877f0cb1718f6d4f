"""The layers of a pipeline's stages: Megatron's splits, and mistakes named."""

import itertools
import json

import pytest

from megatron.errors import ConfigError
from megatron.layer_split import assign_stages, resolve_schedule, split_layers
from megatron.options import ParallelConfig
from tests.megatron_core import run_megatron_core

# (layers, ranks, chunks of a rank, layers of the first and the last rank, embedding and loss count as layers)
CASES = [
    *itertools.product(range(1, 13), (2, 3, 4), (None, 1, 2, 3), (None, 1, 2, 4), (None, 1, 2, 3), (False,), (False,)),
    *itertools.product(range(1, 13), (1, 2, 3, 4), (None,), (None,), (None,), (False, True), (False, True)),
    *itertools.product(range(1, 13), (2, 3, 4), (1, 2, 3), (None,), (None,), (False, True), (False, True)),
    (6, 3, None, 2, None, True, False),
    (6, 3, None, None, 2, False, True),
]  # fmt: skip

# Prints, for each of the cases, [first layer, layers] of the stages in the model's order, or null for a refusal.
MEGATRON = """
import itertools, json, sys
import torch
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

def split(layers, ranks, chunks, first, last, embedding, loss):
    config = TransformerConfig(
        num_layers=layers, hidden_size=8, num_attention_heads=1, pipeline_dtype=torch.float32,
        pipeline_model_parallel_size=ranks, virtual_pipeline_model_parallel_size=chunks,
        num_layers_in_first_pipeline_stage=first, num_layers_in_last_pipeline_stage=last,
        account_for_embedding_in_pipeline_split=embedding, account_for_loss_in_pipeline_split=loss,
    )
    places = itertools.product(range(chunks) if chunks else [None], range(ranks))
    stages = []
    for chunk, rank in places:
        size = get_num_layers_to_build(config, chunk, rank)
        try:
            start = get_transformer_layer_offset(config, chunk, rank)
        except ZeroDivisionError:  # interleaved, two ranks that both have a number of layers: it has no offset
            start = sum(size for _, size in stages)
        stages.append([start, size])
    return stages

def answer(case):
    try:
        stages = split(*case)
    except (ValueError, AssertionError):
        return None
    # Of ends that hold more than there is, it gives the others less than nothing.
    return stages if all(size >= 0 for _, size in stages) else None

print(json.dumps([answer(case) for case in json.loads(sys.argv[1])]))
"""


def split(num_layers, ranks, chunks=None, first=None, last=None, embedding=False, loss=False):
    parallel = ParallelConfig(
        pipeline_model_parallel_size=ranks,
        num_virtual_stages_per_pipeline_rank=chunks,
        decoder_first_pipeline_num_layers=first,
        decoder_last_pipeline_num_layers=last,
        account_for_embedding_in_pipeline_split=embedding,
        account_for_loss_in_pipeline_split=loss,
    )
    return split_layers(num_layers, parallel)


def answer(case):
    try:
        return [[layers.start, len(layers)] for layers in split(*case)]
    except ConfigError:
        return None


def test_splits_and_refusals_are_those_of_megatron_core():
    theirs = json.loads(run_megatron_core(MEGATRON, json.dumps(CASES)))
    assert 300 < sum(stages is not None for stages in theirs) < len(CASES) - 300
    for case, stages in zip(CASES, theirs, strict=True):
        assert answer(case) == stages, case


def test_every_layer_is_in_one_stage():
    for case in CASES:
        if answer(case) is not None:
            layers = [layer for stage in split(*case) for layer in stage]
            assert layers == list(range(case[0])), case


def test_chunks_by_their_layers_count_what_the_ends_hold_besides():
    parallel = ParallelConfig(
        pipeline_model_parallel_size=2,
        num_layers_per_virtual_pipeline_stage=2,
        account_for_embedding_in_pipeline_split=True,
        account_for_loss_in_pipeline_split=True,
    )
    assert split_layers(6, parallel) == [range(1), range(1, 3), range(3, 5), range(5, 6)]


def placement(num_layers, **options):
    """The layers of the stages on each rank, by the stage's number."""
    parallel = ParallelConfig(**options)
    ranks = range(parallel.pipeline_model_parallel_size)
    stages = [assign_stages(num_layers, parallel, rank) for rank in ranks]
    return [{stage.index: [*stage.layers] for stage in here} for here in stages]


def test_stages_lie_one_after_the_other_interleaved_or_in_a_v():
    two, chunks = {"pipeline_model_parallel_size": 2}, {"num_virtual_stages_per_pipeline_rank": 2}
    in_order = [{0: [0, 1]}, {1: [2, 3]}]
    assert placement(4, **two) == placement(4, **two, pipeline_schedule="1f1b") == in_order
    interleaved = [{0: [0], 2: [2]}, {1: [1], 3: [3]}]
    assert placement(4, **two, **chunks) == interleaved
    assert placement(4, **two, **chunks, pipeline_schedule="interleaved") == interleaved
    for schedule in ("zbv", "dualpipev"):
        in_v = [{0: [0], 3: [3]}, {1: [1], 2: [2]}]
        assert placement(4, **two, pipeline_schedule=schedule) == in_v


def test_uneven_ends_of_a_v_are_its_first_and_last_stage():
    in_v = {"pipeline_model_parallel_size": 3, "pipeline_schedule": "zbv"}
    first_less = placement(11, **in_v, decoder_first_pipeline_num_layers=1)
    assert first_less == [{0: [0], 5: [9, 10]}, {1: [1, 2], 4: [7, 8]}, {2: [3, 4], 3: [5, 6]}]
    ends = {"decoder_first_pipeline_num_layers": 2, "decoder_last_pipeline_num_layers": 1}
    both = placement(7, **in_v, **ends)
    assert both == [{0: [0, 1], 5: [6]}, {1: [2], 4: [5]}, {2: [3], 3: [4]}]
    counted = {
        "account_for_embedding_in_pipeline_split": True,
        "account_for_loss_in_pipeline_split": True,
    }
    assert placement(4, **in_v, **counted) == [{0: [], 5: []}, {1: [0], 4: [3]}, {2: [1], 3: [2]}]


@pytest.mark.parametrize(
    ("schedule", "chunks", "resolved"),
    [
        ("auto", None, "1f1b"),
        ("auto", 1, "1f1b"),
        ("auto", 2, "interleaved"),
        ("1f1b", None, "1f1b"),
        ("interleaved", 2, "interleaved"),
        ("zbv", None, "zbv"),
        ("dualpipev", None, "dualpipev"),
    ],
)
def test_auto_is_interleaved_where_chunks_are_asked_for(schedule, chunks, resolved):
    parallel = ParallelConfig(
        pipeline_model_parallel_size=2,
        num_virtual_stages_per_pipeline_rank=chunks,
        pipeline_schedule=schedule,
    )
    assert resolve_schedule(len(split_layers(4, parallel)), parallel) == resolved


FIRST, LAST = "--decoder-first-pipeline-num-layers", "--decoder-last-pipeline-num-layers"
EMBEDDING = "--account-for-embedding-in-pipeline-split"
LOSS = "--account-for-loss-in-pipeline-split"
SCHEDULE = "--pipeline-schedule"
CHUNK_SIZE = "--num-layers-per-virtual-pipeline-stage"
NUM_CHUNKS = "--num-virtual-stages-per-pipeline-rank"


@pytest.mark.parametrize(
    ("ranks", "flags", "names"),
    [
        (3, [], ["size 3", "--num-layers 8", FIRST]),
        (4, [f"{EMBEDDING} 1"], ["size 4", EMBEDDING, "which is 9"]),
        (1, [f"{LAST} 8"], [f"{LAST} 8", "--pipeline-model-parallel-size is 1", "raise it"]),
        (2, [f"{FIRST} 2", f"{EMBEDDING} 1"], [f"{FIRST} 2 clashes with {EMBEDDING}"]),
        (2, [f"{FIRST} 2", f"{LAST} 5"], [f"{FIRST} 2 and {LAST} 5", "leaves 1 of", "add up"]),
        (2, [f"{FIRST} 8"], [f"{FIRST} 8", "leaves 0 of --num-layers 8", "above 0"]),
        (3, [f"{LAST} 3"], [f"{LAST} 3 leaves 5", "2 other stages", "a multiple of 2"]),
        (4, [f"{FIRST} 6", f"{LAST} 6"], ["leaves -4 of --num-layers 8"]),
        (2, [f"{FIRST} 2", f"{CHUNK_SIZE} 1"], [f"{CHUNK_SIZE} clashes with {FIRST}", NUM_CHUNKS]),
        (2, [f"{NUM_CHUNKS} 2", f"{CHUNK_SIZE} 2"], [f"{CHUNK_SIZE} 2 and {NUM_CHUNKS} 2"]),
        (1, [f"{NUM_CHUNKS} 2"], [NUM_CHUNKS, "--pipeline-model-parallel-size is 1"]),
        (2, [f"{FIRST} 3", f"{NUM_CHUNKS} 3"], [f"{NUM_CHUNKS} 3", "3, 5"]),
        (2, [f"{CHUNK_SIZE} 3"], [f"{CHUNK_SIZE} 3", "4 layers of a stage"]),
        (1, [f"{SCHEDULE} zbv"], [f"{SCHEDULE} zbv", "--pipeline-model-parallel-size is 1"]),
        (2, [f"{SCHEDULE} zbv", f"{CHUNK_SIZE} 2"], [f"{SCHEDULE} zbv", f"with {CHUNK_SIZE} 2"]),
        (2, [f"{SCHEDULE} dualpipev", f"{NUM_CHUNKS} 2"], ["two stages", f"with {NUM_CHUNKS} 2"]),
        (2, [f"{SCHEDULE} 1f1b", f"{NUM_CHUNKS} 2"], ["one stage", f"{SCHEDULE} interleaved"]),
        (2, [f"{SCHEDULE} interleaved"], [f"{SCHEDULE} interleaved", NUM_CHUNKS, CHUNK_SIZE]),
        (2, [f"{SCHEDULE} interleaved", f"{NUM_CHUNKS} 1"], ["2 or more chunks", NUM_CHUNKS]),
        (
            3,
            [f"{SCHEDULE} zbv"],
            ["size 3", f"6 stages by {SCHEDULE} zbv", "--num-layers 8", FIRST],
        ),
        (2, [f"{SCHEDULE} zbv", f"{LAST} 4"], [f"{LAST} 4", "3 other stages", "4 stages by"]),
        (2, [f"{SCHEDULE} zbv", f"{LAST} 2", f"{LOSS} 1"], [f"{LAST} 2 clashes with {LOSS}"]),
    ],
)
def test_a_split_that_cannot_be_names_what_clashes(ranks, flags, names):
    pairs = (flag.split() for flag in flags)
    options = {
        flag[2:].replace("-", "_"): int(value) if value.isdigit() else value
        for flag, value in pairs
    }
    with pytest.raises(ConfigError) as error:
        split_layers(8, ParallelConfig(pipeline_model_parallel_size=ranks, **options))
    for name in names:
        assert name in str(error.value)
