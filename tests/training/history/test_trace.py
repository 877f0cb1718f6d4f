"""From a step and a process to the samples it read: what the loader of that process gave."""

import json
from pathlib import Path

import pytest

from megatron.config import to_json
from megatron.data.loader import BatchLoader
from megatron.errors import CheckpointError, ConfigError
from megatron.training.batch_schedule import BatchSchedule
from megatron.training.history.trace import RunRecord, RunTrace, dp_rank_of, samples_of_step
from megatron.training.inputs import open_inputs
from tests.checkpoint.seal import seal
from tests.training.runs import flags_of, parse


def save(root: Path, config, saved, *, world_size=4) -> None:
    """Write what a trace reads of checkpoints: options and progress, no tensors."""
    for iteration, consumed in saved:
        folder = root / f"iter_{iteration:07d}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(to_json(config)))
        state = {"iteration": iteration, "consumed_samples": consumed, "world_size": world_size}
        (folder / "state.json").write_text(json.dumps(state))
        seal(folder)
    (root / "latest_checkpointed_iteration.txt").write_text(str(saved[-1][0]))


def test_every_process_of_a_grown_batch_is_given_what_its_loader_read(corpus, tmp_path):
    """Tensor parallel 2, pipeline parallel 1, data parallel 2, and a batch that grows from 4 to 8."""
    extra = "--tensor-model-parallel-size 2 --rampup-batch-size 4 2 24 --fim-rate 0"
    flags = flags_of(corpus, tmp_path, extra).replace("--train-iters 20", "--train-samples 100")
    inputs = open_inputs(parse(flags.replace("--lr-warmup-iters 2", "")), 4)
    batches = BatchSchedule.create(inputs.config.training, 8)
    consumed = [0]
    for _ in range(12):
        consumed.append(consumed[-1] + batches.size(consumed[-1]))
    save(tmp_path, inputs.config, [(5, consumed[5]), (10, consumed[10])])
    for step in (1, 2, 5, 6, 9, 10, 12):
        record = RunRecord.open(tmp_path, step)
        run = RunTrace(record)
        size = batches.size(consumed[step - 1])
        for rank in range(4):
            loader = BatchLoader(
                inputs.datasets.train, micro_batch_size=1, dp_rank=rank // 2, dp_size=2
            )
            batch = loader.batch(consumed[step - 1], size)
            numbers = samples_of_step(record, step, rank=rank, world_size=None)
            assert numbers == batch.sample_ids.tolist()
            for row, number in enumerate(numbers):
                assert window(run.trace("train", number), inputs) == [
                    *batch.tokens[row].tolist(),
                    int(batch.labels[row, -1]),
                ]
        whole = samples_of_step(record, step, rank=None, world_size=None)
        assert whole == list(range(consumed[step - 1], consumed[step - 1] + size))
    assert record.num_consumed == consumed[10]
    steps = record.steps_of(range(consumed[12]), 2)
    assert sorted(steps) == list(range(consumed[10]))  # later ones are not known to be read
    for step in range(1, 11):
        read = samples_of_step(RunRecord.open(tmp_path, step), step, rank=None, world_size=None)
        assert [number for number, other in steps.items() if other == step] == read


def window(traced, inputs) -> list[int]:
    indexed = inputs.datasets.train.tokens.indexed
    assert traced.prefix == indexed.prefix
    tokens: list[int] = []
    for span in traced.spans:
        start = indexed.document_start(span.document) + span.first
        tokens += indexed.tokens[start : start + len(span.tokens)].tolist()
    return tokens


@pytest.mark.parametrize(
    ("tensor", "context", "pipeline", "world_size", "expected"),
    [
        (1, 1, 1, 3, [0, 1, 2]),
        (2, 1, 1, 4, [0, 0, 1, 1]),
        (2, 1, 2, 8, [0, 0, 1, 1, 0, 0, 1, 1]),
        (1, 2, 2, 8, [0, 0, 1, 1, 0, 0, 1, 1]),
        (2, 2, 1, 8, [0, 0, 0, 0, 1, 1, 1, 1]),
    ],
)
def test_processes_count_through_tensor_then_context_then_data_then_pipeline(
    corpus, tmp_path, tensor, context, pipeline, world_size, expected
):
    layout = (
        f"--tensor-model-parallel-size {tensor} --pipeline-model-parallel-size {pipeline} "
        f"--context-parallel-size {context}"
    )
    config = parse(flags_of(corpus, tmp_path, layout))
    dp_size = config.parallel.data_parallel_size(world_size)
    assert [dp_rank_of(config, rank, dp_size) for rank in range(world_size)] == expected
    with pytest.raises(ConfigError, match=f"--rank {world_size}: the run had processes 0 to"):
        dp_rank_of(config, world_size, dp_size)


def test_options_are_those_of_the_first_checkpoint_from_the_step_on(corpus, tmp_path):
    small = parse(flags_of(corpus, tmp_path))
    large = parse(flags_of(corpus, tmp_path, "--global-batch-size 16"))
    save(tmp_path, small, [(2, 16)])
    save(tmp_path, large, [(4, 48)])
    steps = [
        samples_of_step(RunRecord.open(tmp_path, s), s, rank=None, world_size=1) for s in (2, 3)
    ]
    assert [(step[0], len(step)) for step in steps] == [(8, 8), (16, 16)]
    # Steps after the last are those that the run takes if it goes on.
    after = samples_of_step(RunRecord.open(tmp_path, 6), 6, rank=None, world_size=1)
    assert (after[0], len(after)) == (64, 16)


def test_step_whose_samples_cannot_be_told_is_refused(corpus, tmp_path):
    save(tmp_path, parse(flags_of(corpus, tmp_path)), [(2, 16), (4, 40)])
    with pytest.raises(CheckpointError, match=r"up to 40, and its options make it 32: its batch"):
        samples_of_step(RunRecord.open(tmp_path, 3), 3, rank=None, world_size=None)


def test_run_without_its_number_of_processes_asks_for_it(corpus, tmp_path):
    save(tmp_path, parse(flags_of(corpus, tmp_path)), [(2, 16)], world_size=None)
    record = RunRecord.open(tmp_path / "iter_0000002", 1)
    with pytest.raises(ConfigError, match="add --world-size N"):
        samples_of_step(record, 1, rank=0, world_size=None)
    assert samples_of_step(record, 1, rank=1, world_size=2) == [1, 3, 5, 7]


def test_a_run_is_traced_before_its_first_checkpoint(corpus, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_json(parse(flags_of(corpus, tmp_path)))))
    record = RunRecord.open(tmp_path, 3)
    assert samples_of_step(record, 3, rank=None, world_size=2) == list(range(16, 24))
    with pytest.raises(ConfigError, match="add --world-size N"):
        samples_of_step(record, 3, rank=None, world_size=None)


@pytest.mark.parametrize("step", [0, -3])
def test_step_that_is_none_is_refused(corpus, tmp_path, step):
    save(tmp_path, parse(flags_of(corpus, tmp_path)), [(2, 16)])
    with pytest.raises(ConfigError, match="steps count from 1"):
        samples_of_step(RunRecord.open(tmp_path, step), step, rank=0, world_size=None)


def test_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        RunRecord.open(tmp_path, 1)
    with pytest.raises(CheckpointError, match="is not a folder"):
        RunRecord.open(tmp_path / "none", 1)


def test_opt_out_list_that_is_not_what_it_was_is_refused(corpus, tmp_path):
    path = tmp_path / "optout.jsonl"
    path.write_text('{"dataset": "train", "document": 3}\n')
    inputs = open_inputs(parse(flags_of(corpus, tmp_path, f"--exclude-documents {path}")), 1)
    save(tmp_path / "run", inputs.config, [(2, 16)])
    record = RunRecord.open(tmp_path / "run")
    run = RunTrace(record)
    documents = {
        span.document for sample in range(600) for span in run.trace("train", sample).spans
    }
    assert 3 not in documents and len(documents) == 35
    path.write_text('{"dataset": "train", "document": 4}\n')
    with pytest.raises(CheckpointError, match="not the opt-out lists that the run read"):
        RunTrace(record)


def test_set_and_sample_that_are_not_there_are_refused(corpus, tmp_path):
    inputs = open_inputs(parse(flags_of(corpus, tmp_path, "--fim-rate 0")), 1)
    save(tmp_path, inputs.config, [(2, 16)])
    run = RunTrace(RunRecord.open(tmp_path))
    assert run.trace("valid", 3).source == "valid/valid"
    read = inputs.datasets.train[7]
    ids = [*read["tokens"].tolist(), int(read["labels"][-1])]
    assert run.text("train", 7) == inputs.tokenizer.detokenize(ids)
    with pytest.raises(ConfigError, match="--set test: the run has valid, train"):
        run.trace("test", 0)
    with pytest.raises(ConfigError, match="samples count from 0"):
        run.trace("train", -1)
