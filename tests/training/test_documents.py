"""Runs on short documents packed into samples: every layout keeps them apart alike; what is logged of them is so."""

import numpy as np
import pytest
import torch

from megatron.model.flops import attended_pairs, flops_per_token
from megatron.training.inputs import open_inputs
from megatron.training.step import _pairs_in_documents
from tests.training.corpus import cut_short
from tests.training.runs import flags_of, parse, read_lines, read_metrics, train_here

NUM_STEPS = 5
LAYOUTS = [
    ("TP2 SP", 2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    ("DP2 distributed optimizer", 2, "--use-distributed-optimizer --micro-batch-size 2"),
    (
        "PP2 interleaved",
        2,
        "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1",
    ),
    ("PP4, whose middle stages hold neither end", 4, "--pipeline-model-parallel-size 4"),
    ("CP2", 2, "--context-parallel-size 2"),
]
RESETS = "--reset-position-ids --reset-attention-mask"


@pytest.fixture(scope="module")
def short(corpus, tmp_path_factory):
    """The corpus cut into documents of 1 to 24 tokens: prefixes of two training sets and one held out."""
    folder = tmp_path_factory.mktemp("short")
    for name, source, first_token in (
        ("a", corpus.train, 0),
        ("b", corpus.train, 5000),
        ("valid", corpus.valid, 0),
    ):
        cut_short(source, folder / name, first_token)
    return folder


def flags(corpus, short, save, extra):
    return flags_of(
        corpus,
        save,
        f"--train-data-path 0.7 {short / 'a'} 0.3 {short / 'b'} --valid-data-path {short / 'valid'} "
        f"--test-data-path {short / 'valid'} "
        f"--train-iters {NUM_STEPS} --eval-interval 4 --eval-iters 1 {extra}",
    )


@pytest.fixture(scope="module")
def alone(world, corpus, short, tmp_path_factory):
    """The folder of a run of one process."""
    save = tmp_path_factory.mktemp("alone")
    world(1).run(train_here, flags(corpus, short, save, RESETS))
    return save


def share_of_attention(line, config):
    """Solve the two FLOP rates of a line for the part of the pairs of positions that was counted as causal."""
    flops = flops_per_token(config.model, config.data.seq_length)
    causal = flops.full * line["tflops_per_gpu_causal"] / line["tflops_per_gpu_full"]
    return 2 * (causal - flops.linear - flops.head) / flops.attention_full


@pytest.mark.parametrize(("name", "size", "layout"), LAYOUTS, ids=[row[0] for row in LAYOUTS])
def test_losses_with_documents_equal_one_process(
    world, corpus, short, alone, tmp_path, name, size, layout
):
    command = flags(corpus, short, tmp_path, f"{RESETS} {layout}")
    assert world(size).run(train_here, command) == ["finished"] * size
    expected = {name: read_metrics(alone, name) for name in ("valid", "valid+fim")}
    for name, (_, losses) in expected.items():
        assert sorted(losses) == [0, 4, 5]
        assert read_metrics(tmp_path, name)[1] == pytest.approx(losses, abs=1e-4)
    config = open_inputs(parse(command), size).config
    config_alone = open_inputs(parse(flags(corpus, short, tmp_path, RESETS)), 1).config
    training, _ = read_metrics(tmp_path)
    for step, line in expected["valid"][0].items():
        assert training[step]["lm_loss"] == pytest.approx(line["lm_loss"], abs=1e-4)
        assert training[step]["grad_norm"] == pytest.approx(line["grad_norm"], rel=1e-3)
        share = share_of_attention(training[step], config)
        assert share == pytest.approx(share_of_attention(line, config_alone), rel=1e-6)


@pytest.mark.parametrize(
    ("size", "layout"),
    [(4, "--pipeline-model-parallel-size 4"), (2, "--context-parallel-size 2")],
)
def test_rotary_positions_start_anew_in_every_stage(world, corpus, short, tmp_path, size, layout):
    """Without document masks, so that documents see how far apart they are said to be."""
    extra = (
        "--reset-position-ids --position-embedding-type rope --window-size 20 "
        "--init-method-std 0.5 --train-iters 2 --lr-decay-iters 20 --eval-iters 0 "
    )
    results = []
    for num_processes, options in ((1, ""), (size, layout)):
        command = flags(corpus, short, tmp_path / str(num_processes), extra + options)
        world(num_processes).run(train_here, command)
        training, _ = read_metrics(tmp_path / str(num_processes))
        results.append([(line["lm_loss"], line["grad_norm"]) for line in training.values()])
    np.testing.assert_allclose(*results, rtol=1e-4)
    share = share_of_attention(training[1], open_inputs(parse(command), 4).config)
    assert share == pytest.approx(sum(2 * min(i, 19) + 1 for i in range(32)) / 32**2, rel=1e-6)


@pytest.mark.parametrize("window", [None, 1, 3, 9])
def test_pairs_are_those_of_each_document_within_its_window(window):
    starts = torch.tensor([[0] * 5 + [5] + [6] * 9, [0] * 9 + [9] * 6])
    expected = sum(attended_pairs(length, window) for length in (5, 1, 9, 9, 6))
    assert _pairs_in_documents(starts, torch.arange(starts.size(1)), window) == expected


def test_flops_count_the_squares_of_the_documents_lengths(corpus, short, alone):
    inputs = open_inputs(parse(flags(corpus, short, alone, RESETS)), 1)
    training, _ = read_metrics(alone)
    for step in range(1, NUM_STEPS + 1):
        total = 0
        for number in range(8 * step - 8, 8 * step):
            tokens = inputs.datasets.train[number]["tokens"]
            ends = np.flatnonzero(tokens == 0) + 1
            total += sum(np.diff([0, *ends, 32]) ** 2)
        share = share_of_attention(training[step], inputs.config)
        assert share == pytest.approx(total / (8 * 32**2), rel=1e-6)
        assert 0.1 < share < 0.9


def test_each_option_changes_the_run_and_evaluation_too(world, corpus, short, alone, tmp_path):
    losses = {}
    for number, extra in enumerate(("", "--reset-position-ids", "--reset-attention-mask")):
        save = tmp_path / str(number)
        world(1).run(
            train_here, flags(corpus, short, save, f"{extra} --train-iters 1 --lr-warmup-iters 0")
        )
        training, validation = read_metrics(save)
        losses[extra] = (training[1]["lm_loss"], validation[0])
    training, validation = read_metrics(alone)
    losses[RESETS] = (training[1]["lm_loss"], validation[0])
    for part in range(2):
        assert len({round(pair[part], 5) for pair in losses.values()}) == 4


def test_sets_are_evaluated_without_fim_as_in_a_run_that_has_none(
    world, corpus, short, alone, tmp_path
):
    command = flags(
        corpus, short, tmp_path, f"{RESETS} --fim-rate 0 --train-iters 1 --lr-warmup-iters 0"
    )
    world(1).run(train_here, command)
    for save, expected in (
        (tmp_path, ["valid", "test"]),
        (alone, ["valid", "valid+fim", "test", "test+fim"]),
    ):
        lines = [line for line in read_lines(save) if line["iteration"] > 0]
        names = dict.fromkeys(line["validation"] for line in lines if "validation" in line)
        assert list(names) == expected
    _, without = read_metrics(tmp_path)
    assert read_metrics(alone, "valid")[1][0] == without[0]
    assert read_metrics(alone, "valid+fim")[1][0] != without[0]


def test_what_was_read_of_each_source_is_logged_with_each_validation(alone):
    lines = [line for line in read_lines(alone) if "source" in line]
    assert [(line["iteration"], line["source"]) for line in lines] == [
        (step, f"train/{name}") for step in (4, 5) for name in ("a", "b")
    ]
    for line in lines:
        share = 0.7 if line["source"] == "train/a" else 0.3
        assert abs(line["samples"] - share * 8 * line["iteration"]) < 1
        assert line["tokens"] == 32 * line["samples"]
        assert line["epochs"] == pytest.approx(line["samples"] / 125, rel=0.1)
