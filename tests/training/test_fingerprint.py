"""What a resume compares: every option is in the table or free by name, and every difference is named and allowed."""

import dataclasses
import json
import re
import shutil
import socket
import typing
from pathlib import Path

import numpy as np
import pytest

from megatron.checkpoint.checksums import SUMS_FILE, encode_sums, read_sums
from megatron.checksum import hash_file
from megatron.config import Config, from_json, to_json
from megatron.data.content import FileContent, SourceContent
from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.errors import CheckpointError, DataError
from megatron.optimizer.schedule import Schedule
from megatron.option_field import flag_of
from megatron.options import CheckpointConfig
from megatron.presets import value_type_of
from megatron.training.contents import Contents
from megatron.training.fingerprint import FREE_OF_MODEL, NUMERICS, Fingerprint, rules_for
from megatron.training.history.trace import RunRecord, RunTrace
from megatron.training.inputs import open_inputs
from megatron.training.start import Start, plan_start
from megatron.training.verified_start import check_same_files
from tests.training.corpus import Corpus
from tests.training.runs import flags_of, parse, train_here
from tests.training.test_resume import SCHEDULE

# Options that may change from one start of a run to the next: rounding aside, they change no number of it, or only
# how often it is looked at. A new option is either here or in the table of megatron/training/fingerprint.py.
FREE_SECTIONS = {"parallel", "checkpoint", "logging", "tokenizer"}  # files are compared by content
FREE = {
    "data": {
        *("data_path", "split", "exclude_documents", "exclude_documents_skip"),
        *(f"{name}_data_path" for name in ("train", "valid", "test")),
        *(f"{name}_weighted_split_paths" for name in ("train", "valid", "test")),
        *(f"{name}_weighted_split_paths_path" for name in ("train", "valid", "test")),
        *("num_workers", "valid_num_workers", "dataloader_type", "eval_fim"),
    },
    "model": FREE_OF_MODEL
    - {name for section, name in NUMERICS if section == "model"}
    - {"attention_head_type", "num_query_groups", "ffn_hidden_size", "kv_channels"},
    "precision": {
        "loss_scale",
        "initial_loss_scale",
        "min_loss_scale",
        "loss_scale_window",
        "hysteresis",
        "accumulate_allreduce_grads_in_fp32",
        "gradient_accumulation_fusion",
    },
    "optimizer": {"optimizer", "use_precision_aware_optimizer"},
    "training": {
        *("micro_batch_size", "eval_interval", "eval_iters"),
        "watchdog_timeout_in_secs",
        "check_weight_hash_across_dp_replicas_interval",
        *("exit_interval", "exit_duration_in_mins", "exit_signal_handler"),
    },
}
BASE = """--num-layers 4 --hidden-size 32 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32
    --train-iters 100 --lr 1e-2 --lr-decay-style WSD --lr-wsd-decay-iters 10 --lr-warmup-iters 4 --data-path a
    --weight-decay-incr-style linear --start-weight-decay 0.1 --end-weight-decay 0.2 --global-batch-size 8"""
NOTHING = Contents("", {}, {})


def _print(config: Config) -> Fingerprint:
    size = config.training.global_batch_size or 1
    schedule = Schedule.create(config.optimizer, config.training, size)
    return Fingerprint(config, schedule, size, NOTHING)


def _other(value, hint):
    """Give another value of a field's type."""
    kind = value_type_of(hint)
    if typing.get_origin(kind) is typing.Literal:
        return next(choice for choice in typing.get_args(kind) if choice != value)
    if typing.get_origin(kind) is tuple:
        return tuple({str: "x", int: 2}[typing.get_args(kind)[0]] for _ in range(3))
    if kind is bool:
        return not value
    if kind is str:
        return f"{value} and more"
    if value is None:
        return {int: 90, float: 0.5}[kind]
    return value + 1 if kind is int else value * 0.5 + 0.001


def _base_of(name: str) -> str:
    """Give flags in which an option counts."""
    if "samples" in name or name == "lr_warmup_fraction":
        by_samples = re.sub(r"--train-iters 100|--lr-w\S+-iters \d+", "", BASE)
        warmup = "" if name == "lr_warmup_fraction" else "--lr-warmup-samples 8"
        return f"{by_samples} --train-samples 800 --lr-wsd-decay-samples 80 {warmup}"
    if name == "weight_decay":
        return BASE[: BASE.index("--weight-decay-incr-style")] + "--global-batch-size 8"
    return BASE


def _options():
    config = parse(BASE)
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        hints = typing.get_type_hints(type(values))
        for field in dataclasses.fields(values):
            choices = typing.get_args(hints[field.name])
            if len(choices) != 1:  # of one choice there is no other
                yield section.name, field.name, hints[field.name]


@pytest.mark.parametrize(("section", "name", "hint"), _options())
def test_every_option_is_compared_or_free_by_name(section, name, hint):
    config = parse(_base_of(name))
    values = getattr(config, section)
    values = dataclasses.replace(values, **{name: _other(getattr(values, name), hint)})
    changed = dataclasses.replace(config, **{section: values})
    rules = rules_for(changed, is_other_run=False, continues=True)
    found = [rule.name for rule in rules if rule.difference(_print(config), _print(changed))]
    is_free = section in FREE_SECTIONS or name in FREE[section]
    assert is_free == (not found), (
        f"{name} is compared by {found or 'no rule'}: add it to the table of megatron/training/fingerprint.py, or to "
        "FREE here if a run may go on with another value"
    )


@pytest.fixture(scope="module")
def trained(world, corpus, tmp_path_factory):
    """A folder with the files of a run, its own copies, and its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    for path in (
        corpus.tokenizer,
        *corpus.train.parent.glob("*.bin"),
        *corpus.train.parent.glob("*.idx"),
    ):
        shutil.copy(path, folder)
    world(1).run(train_here, _flags(folder))
    return folder


def _flags(folder: Path, extra: str = "", *, train: str = "", valid: str = "") -> str:
    train = train or f"3 {folder}/train 1 {folder}/short"
    flags = flags_of(
        Corpus(folder / "tokenizer.json", *[folder / name for name in ("train", "valid", "short")]),
        folder / "run",
        f"--train-iters 3 {extra}",
    )
    return flags.replace(f"--train-data-path {folder}/train", f"--train-data-path {train}").replace(
        f"--valid-data-path {folder}/valid", f"--valid-data-path {valid or folder / 'valid'}"
    )


def _start(flags: str) -> Start:
    return plan_start(open_inputs(parse(flags), 1), 1)


@pytest.fixture
def copied(trained, tmp_path):
    """The same, to change."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def _change_id(prefix: Path, place: int) -> None:
    with open(f"{prefix}.bin", "r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


def _change_tokenizer(folder: Path) -> str:
    path = folder / "tokenizer.json"
    definition = json.loads(path.read_text())
    vocab = definition["model"]["vocab"]
    first, second = list(vocab)[-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(definition))
    return _flags(folder)


def _add_document(folder: Path) -> str:
    old = IndexedDataset(folder / "short")
    with IndexedDatasetBuilder(folder / "longer", np.uint16) as builder:
        for item in range(len(old)):
            builder.add_document(old[item])
        builder.add_document([1, 0])
        builder.finalize()
    return _flags(folder, train=f"3 {folder}/train 1 {folder}/longer")


def _change_content(folder: Path) -> str:
    _change_id(folder / "short", 100)
    return _flags(folder)


def _opt_out(folder: Path) -> str:
    (folder / "list.jsonl").write_text('{"dataset": "train", "document": 1}\n')
    return _flags(folder, f"--exclude-documents {folder / 'list.jsonl'}")


CASES = {
    "a tokenizer": (_change_tokenizer, "tokenizer = SHA-256", "--override-tokenizer"),
    "an id of a source": (
        _change_content,
        r"train_data: source 2 of 2 of train = short \(content",
        None,
    ),
    "a document more": (_add_document, r"train_data: source 2 .* this run longer \(content", None),
    "weights": (
        lambda folder: _flags(folder, train=f"1 {folder}/train 1 {folder}/short"),
        "train_data: source 1 of 2 of train = weight 3/4 of train, this run 1/2",
        None,
    ),
    "the order of a blend": (
        lambda folder: _flags(folder, train=f"1 {folder}/short 3 {folder}/train"),
        r"train_data: source 1 of 2 of train = train \(content .*, this run short \(content",
        None,
    ),
    "a source more": (
        lambda folder: _flags(folder, train=f"3 {folder}/train 1 {folder}/short 1 {folder}/valid"),
        r"train_data: source 1 of 2 of train \(3 in this run\) = weight 3/4 of train, this run 3/5",
        None,
    ),
    "the part of a file": (
        lambda folder: _flags(folder).replace(
            f"--train-data-path 3 {folder}/train 1 {folder}/short",
            "--train-weighted-split-paths-path " + str(_write_groups(folder)),
        ),
        r"train_data: source 1 of 2 of train = documents 0 to 36 of train, this run 0 to 18",
        None,
    ),
    "a validation set": (
        lambda folder: _flags(folder, valid=f"{folder}/short"),
        r"eval_data: source 1 of 1 of valid = valid \(content .*, this run short",
        "--override-eval-data",
    ),
    "an opt-out list": (
        _opt_out,
        "no --exclude-documents, this run has --exclude-documents",
        "--override-exclude-documents",
    ),
    "the seed": (
        lambda folder: _flags(folder, "--seed 7"),
        r"--seed 1234 \(this run: 7\)",
        "--no-load-rng",
    ),
    "how samples are made": (
        lambda folder: _flags(folder, "--fim-rate 0.25"),
        r"--fim-rate 0.5 \(this run: 0.25\)",
        "--override-samples",
    ),
    "the length of samples": (
        lambda folder: _flags(folder, "--seq-length 16"),
        r"--seq-length 32 \(this run: 16\)",
        "--override-samples",
    ),
    "precision": (
        lambda folder: _flags(folder, "--bf16"),
        r"--bf16 or --fp16: float32 \(this run: bfloat16\)",
        "--override-numerics",
    ),
    "a beta": (
        lambda folder: _flags(folder, "--adam-beta2 0.95"),
        r"--adam-beta2 0.999 \(this run: 0.95\)",
        "--override-numerics",
    ),
    "the learning rate": (
        lambda folder: _flags(folder, "--lr 0.5"),
        "--lr was 0.01 and is 0.5",
        "--override-opt_param-scheduler",
    ),
    "the model": (
        lambda folder: _flags(folder, "--num-layers 2"),
        r"--num-layers 4 \(this run: 2\)",
        "",
    ),
}


def _write_groups(folder: Path) -> Path:
    path = folder / "groups.txt"
    path.write_text(f"train: 3 0:0.5 {folder}/train, 1 0:1 {folder}/short\n")
    return path


@pytest.mark.parametrize("case", CASES)
def test_a_difference_is_named_and_one_flag_allows_it(copied, case, caplog):
    change, message, flag = CASES[case]
    flags = change(copied)
    with pytest.raises(CheckpointError, match=message) as error:
        _start(flags)
    if flag == "":
        assert "--override" not in str(error.value)
        return
    flag = flag or "--override-train-data"
    offered = re.findall(r"--override\S+|--no-load\S+", str(error.value).split(". ", 1)[1])
    assert offered == [flag]
    for other in dataclasses.fields(CheckpointConfig):
        if other.name.startswith("override") and flag_of(other) != flag:
            with pytest.raises(CheckpointError, match=message):
                _start(f"{flags} {flag_of(other)}")
    with caplog.at_level("INFO", "megatron"):
        start = _start(f"{flags} {flag}")
    assert start.place == (3, 24) and start.takes_progress
    (line,) = [one for one in caplog.messages if "as asked: " in one]
    assert re.search(message, line)
    assert "24" in line.split("as asked: ")[1] or flag == "--override-tokenizer"


def test_files_may_move_and_be_renamed_and_give_the_same_samples(copied, tmp_path):
    before = open_inputs(parse(_flags(copied)), 1).datasets.train
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for suffix in (".bin", ".idx"):
        (copied / f"train{suffix}").rename(moved / f"python{suffix}")
    (copied / "tokenizer.json").rename(moved / "other.json")
    flags = _flags(copied, train=f"6 {moved}/python 2 {copied}/short")
    flags = flags.replace(f"{copied}/tokenizer.json", f"{moved}/other.json")
    assert _start(flags).place == (3, 24)
    after = open_inputs(parse(flags), 1).datasets.train
    for index in range(50):
        assert np.array_equal(before[index]["tokens"], after[index]["tokens"])


def test_an_override_is_the_runs_own_after_the_next_checkpoint(world, copied):
    _change_id(copied / "short", 100)
    flags = _flags(copied, "--train-iters 4 --override-opt_param-scheduler")
    with pytest.raises(CheckpointError, match="train_data"):
        _start(flags)
    assert world(1).run(train_here, f"{flags} --override-train-data") == ["finished"]
    assert _start(flags).place == (4, 32)


def test_fine_tuning_asks_for_the_tokenizer_and_the_shape_only(copied, tmp_path):
    flags = _flags(
        copied, "--finetune --seed 7 --lr 0.5 --bf16 --fim-rate 0", train=f"{copied}/short"
    ).replace(f"--save {copied}/run", f"--save {tmp_path}/tuned")
    assert not _start(flags).takes_progress
    _change_tokenizer(copied)
    with pytest.raises(CheckpointError, match="--override-tokenizer"):
        _start(flags)
    assert not _start(f"{flags} --override-tokenizer").takes_progress


def test_moments_of_another_type_are_refused_before_anything_starts(copied, tmp_path):
    extra = "--use-precision-aware-optimizer --exp-avg-dtype bf16"
    with pytest.raises(CheckpointError, match=r"fp32 \(this run: bf16\).*--no-load-opt"):
        _start(_flags(copied, extra))
    afresh = _flags(copied, f"{extra} --no-load-optim").replace(
        f"--save {copied}/run", f"--save {tmp_path}/afresh"
    )
    assert not _start(afresh).takes_optimizer


def _rewrite(path: Path, values: dict) -> None:
    """Write a JSON file of a checkpoint as a program would, with its hash."""
    path.write_text(json.dumps(values))
    sums = read_sums(path.parent) | {path.name: hash_file(path)}
    (path.parent / SUMS_FILE).write_bytes(encode_sums(sums))


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("fingerprint"),
        lambda state: state.update(fingerprint=[1]),
        lambda state: state["fingerprint"].pop("tokenizer"),
        lambda state: state["fingerprint"].update(train_data={"train": 3}),
        lambda state: state["fingerprint"]["train_data"]["train"][0].update(content={}),
        lambda state: state["fingerprint"]["train_data"]["train"][0].update(start="x"),
        lambda state: state["fingerprint"]["train_data"]["train"][0].update(more=1),
        lambda state: state.pop("world_size"),
        lambda state: state.update(schedule={"lr": 1}),
    ],
)
def test_a_damaged_fingerprint_is_an_error(copied, damage):
    path = copied / "run" / "iter_0000003" / "state.json"
    state = json.loads(path.read_text())
    damage(state)
    _rewrite(path, state)
    with pytest.raises(CheckpointError, match=r"state\.json is damaged: the fingerprint"):
        _start(_flags(copied))


def test_a_trace_of_other_files_is_refused(copied):
    values = to_json(parse(_flags(copied)))
    config_file = copied / "run" / "iter_0000003" / "config.json"
    config = from_json(json.loads(config_file.read_text()))
    values["model"] = to_json(config)["model"]
    _rewrite(config_file, values)
    RunTrace(RunRecord.open(copied / "run")).trace("train", 0)
    _change_id(copied / "short", 100)
    with pytest.raises(CheckpointError, match="has train_data: source 2 of 2 of train = short"):
        RunTrace(RunRecord.open(copied / "run"))


def _check(rank: int, contents: list[Contents], opt_outs: list[tuple[str, ...]]) -> str:
    start = Start(None, {}, SCHEDULE, contents[rank], opt_outs[rank])
    real = socket.gethostname
    socket.gethostname = lambda: f"node{rank}"
    try:
        check_same_files(start)
    except DataError as error:
        return str(error)
    finally:
        socket.gethostname = real
    return "the same"


def _contents(tokenizer: str = "t", sample: str = "a", sha256: str | None = None) -> Contents:
    source = SourceContent("py", "1", 0, 9, FileContent(sample, sha256))
    return Contents(tokenizer, {"train": (source,)}, {"valid": (source,)})


@pytest.mark.parametrize(
    ("contents", "opt_outs", "message"),
    [
        (
            [_contents("t"), _contents("u"), _contents("t")],
            [()] * 3,
            "the tokenizer is SHA-256 u… on node1 and SHA-256 t",
        ),
        (
            [_contents(), _contents(), _contents(sample="b")],
            [()] * 3,
            "source 1 of the training set train, py, is documents 0 to 9 of content b… on node2 and documents 0 to 9 of "
            "content a… on node0, node1;",
        ),
        (
            [_contents(sha256="x"), _contents(), _contents(sha256="y")],
            [()] * 3,
            "its .sha256 is x… on node0 and y… on node2",
        ),
        ([_contents(sha256="x"), _contents(), _contents(sha256="x")], [()] * 3, "the same"),
        (
            [_contents()] * 3,
            [("a",), ("a",), ("b",)],
            "list 1 of --exclude-documents is SHA-256 b… on node2",
        ),
        (
            [_contents()] * 3,
            [("a",), ("a",), ()],
            "list 1 of --exclude-documents is missing on node2",
        ),
    ],
)
def test_nodes_that_read_different_files_are_named_by_every_process(
    world, contents, opt_outs, message
):
    messages = world(3).run(_check, contents, opt_outs)
    assert len(set(messages)) == 1
    assert message in messages[0]
