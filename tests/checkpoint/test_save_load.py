"""Checkpoints written and read by worlds of processes, in equal and in different layouts."""

import math
import resource
from unittest import mock

import pytest
import torch
from safetensors import safe_open

from megatron.checkpoint.layout import latest_iteration
from megatron.checkpoint.load import load_checkpoint
from megatron.checkpoint.reader import CheckpointReader
from megatron.checkpoint.save import save_checkpoint
from megatron.errors import CheckpointError
from tests.checkpoint.toy import (
    CONFIG,
    EMBEDDING,
    make_context,
    make_tensors,
    random_values,
    whole_tensors,
    zero_values,
)

# (pp, dp_replicate, dp_shard, tp)
LAYOUTS = {
    1: [(1, 1, 1, 1)],
    2: [(1, 1, 1, 2), (1, 1, 2, 1), (2, 1, 1, 1), (1, 2, 1, 1)],
    4: [(1, 1, 2, 2), (1, 2, 1, 2), (2, 1, 1, 2), (2, 1, 2, 1), (1, 2, 2, 1), (1, 1, 4, 1)],
}
VOCAB_ROWS = 16


def save_toy(rank, root, layout, iteration=1):
    tensors = make_tensors(make_context(*layout), VOCAB_ROWS)
    save_checkpoint(
        root, iteration, tensors, state={"iteration": iteration, "loss": 0.1}, config=CONFIG
    )


def load_toy(rank, folder, layout, vocab_rows=VOCAB_ROWS):
    """Load into zeros, and give the names whose local part is not bitwise what this layout holds of the values."""
    context = make_context(*layout)
    loaded = make_tensors(context, vocab_rows, zero_values)
    expected = make_tensors(context, vocab_rows, random_values)
    load_checkpoint(folder, loaded)
    assert loaded.keys() == expected.keys()
    return [
        name
        for name, tensor in loaded.items()
        if not torch.equal(tensor.to_local(), expected[name].to_local())
    ]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_layout_reads_back_what_it_wrote_bitwise(world, tmp_path, size):
    for index, layout in enumerate(LAYOUTS[size]):
        root = tmp_path / str(index)
        world(size).run(save_toy, root, layout)
        assert world(size).run(load_toy, root / "iter_0000001", layout) == [[]] * size, layout


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ((1, 1, 2, 2), (1, 1, 1, 1)),
        ((1, 1, 1, 1), (1, 1, 2, 2)),
        ((2, 1, 1, 1), (1, 1, 1, 1)),
        ((1, 1, 1, 1), (2, 1, 1, 1)),
        ((2, 1, 1, 2), (1, 1, 4, 1)),
        ((1, 1, 4, 1), (2, 1, 1, 2)),
        ((1, 2, 1, 2), (2, 1, 2, 1)),
    ],
)
def test_any_layout_loads_in_any_other(world, tmp_path, written, read):
    world(math.prod(written)).run(save_toy, tmp_path, written)
    assert not any(world(math.prod(read)).run(load_toy, tmp_path / "iter_0000001", read))


@pytest.mark.parametrize("layout", [(1, 1, 1, 1), (1, 1, 2, 2), (2, 1, 1, 2), (2, 1, 2, 1)])
def test_a_single_process_reads_whole_tensors_and_rows(world, tmp_path, layout):
    world(math.prod(layout)).run(save_toy, tmp_path, layout)
    reader = CheckpointReader.open(tmp_path / "iter_0000001")
    whole = whole_tensors(VOCAB_ROWS)
    assert sorted(reader.names()) == sorted(whole)
    for name, tensor in whole.items():
        assert torch.equal(reader.read(name), tensor)
        assert (reader.shape(name), reader.dtype(name)) == (tuple(tensor.shape), tensor.dtype)
        for rows in (slice(0, 1), slice(1, 4), slice(3, None), slice(2, 2), slice(-3, 100)):
            assert torch.equal(reader.read(name, rows), tensor[rows]), (name, rows)
    assert reader.state == {"iteration": 1, "loss": 0.1}
    assert (reader.config, reader.iteration) == (CONFIG, 1)
    with pytest.raises(CheckpointError, match=r"no tensor model\.nothing"):
        reader.read("model.nothing")


@pytest.mark.parametrize("layout", [(1, 1, 2, 2), (2, 1, 1, 2), (1, 2, 1, 2)])
def test_each_value_is_stored_once_and_the_safetensors_package_reads_it(world, tmp_path, layout):
    world(4).run(save_toy, tmp_path, layout)
    stored = 0
    for file in (tmp_path / "iter_0000001").glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            stored += sum(opened.get_tensor(key).numel() for key in opened.keys())  # noqa: SIM118 - not a dict
    assert stored == sum(tensor.numel() for tensor in whole_tensors(VOCAB_ROWS).values())


def test_replicas_share_the_writing(world, tmp_path):
    world(2).run(save_toy, tmp_path, (1, 2, 1, 1))
    sizes = [file.stat().st_size for file in (tmp_path / "iter_0000001").glob("*.safetensors")]
    assert len(sizes) == 2
    assert max(sizes) < 1.5 * min(sizes)


@pytest.mark.parametrize("rows", [14, 24])
@pytest.mark.parametrize("layout", [(1, 1, 2, 2), (1, 1, 1, 1)])
def test_other_padding_of_the_vocabulary_loads(world, tmp_path, layout, rows):
    world(2).run(save_toy, tmp_path, (1, 1, 1, 2))
    size = math.prod(layout)
    bad = world(size).run(load_padded, tmp_path / "iter_0000001", layout, rows)
    assert bad == [[]] * size


def load_padded(rank, folder, layout, rows):
    """As load_toy; rows beyond those stored must keep the value they had (zero)."""
    context = make_context(*layout)
    loaded = make_tensors(context, rows, zero_values)
    load_checkpoint(folder, loaded)

    def cut_or_padded(name, shape):
        if not name.endswith(EMBEDDING):
            return random_values(name, shape)
        values = torch.zeros(shape)
        stored = random_values(name, (VOCAB_ROWS, *shape[1:]))[: shape[0]]
        values[: len(stored)] = stored
        return values

    expected = make_tensors(context, rows, cut_or_padded)
    return [n for n in loaded if not torch.equal(loaded[n].to_local(), expected[n].to_local())]


def catch_load(rank, folder, layout, change):
    tensors = make_tensors(make_context(*layout), VOCAB_ROWS, zero_values)
    change(rank, tensors)
    try:
        load_checkpoint(folder, tensors)
    except CheckpointError as error:
        return str(error)
    return None


def fewer_rows_than_tokens(rank, tensors):
    for name in list(tensors):
        if name.endswith(EMBEDDING):
            tensors[name] = torch.zeros(12, 6)


def wrong_shape_on_rank_1(rank, tensors):
    if rank == 1:
        tensors["model.layers.1.mlp.bias"] = torch.zeros(3)


def wrong_dtype(rank, tensors):
    tensors["model.final_layernorm.weight"] = torch.zeros(6, dtype=torch.bfloat16)


def bf16_moment(rank, tensors):
    tensors["optimizer.exp_avg.final_layernorm.weight"] = torch.zeros(6, dtype=torch.bfloat16)


def unknown_name_on_rank_1(rank, tensors):
    if rank == 1:
        tensors["model.layers.2.mlp.bias"] = torch.zeros(2)


def one_layer_less(rank, tensors):
    for name in [name for name in tensors if name.startswith("model.layers.1.")]:
        del tensors[name]


def weights_only(rank, tensors):
    for name in [name for name in tensors if name.startswith("optimizer.")]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fewer_rows_than_tokens, [EMBEDDING, "[16, 6]", "[12, 6]", "model options"]),
        (wrong_shape_on_rank_1, ["layers.1.mlp.bias", "[2]", "[3]", "model options"]),
        (wrong_dtype, ["final_layernorm", "float32", "bfloat16"]),
        (bf16_moment, ["exp_avg.final_layernorm", "--exp-avg-dtype", "--no-load-optim"]),
        (unknown_name_on_rank_1, ["lacks model.layers.2.mlp.bias"]),
        (one_layer_less, ["has model.layers.1.", "4 more", "does not have"]),
    ],
)
def test_what_does_not_fit_is_named_on_every_rank(world, tmp_path, change, words):
    world(2).run(save_toy, tmp_path, (1, 1, 1, 2))
    messages = world(2).run(catch_load, tmp_path / "iter_0000001", (1, 1, 2, 1), change)
    assert messages[0] == messages[1]
    for word in words:
        assert word in messages[0], messages[0]


def test_weights_load_without_the_optimizer(world, tmp_path):
    world(2).run(save_toy, tmp_path, (1, 1, 1, 2))
    folder = tmp_path / "iter_0000001"
    assert world(2).run(catch_load, folder, (1, 1, 2, 1), weights_only) == [None, None]


def test_a_checkpoint_without_optimizer_says_which_flag_loads_it(tmp_path):
    folder = save_checkpoint(tmp_path, 1, {"model.a": torch.ones(2)}, state={}, config={})
    wanted = {"model.a": torch.zeros(2), "optimizer.exp_avg.a": torch.zeros(2)}
    with pytest.raises(CheckpointError, match="--no-load-optim"):
        load_checkpoint(folder, wanted)


def test_every_dtype_and_a_scalar_survive_without_a_process_group(tmp_path):
    tensors = {
        "a.double": torch.randn(3, dtype=torch.float64),
        "a.half": torch.randn(3, 2).half(),
        "a.bfloat16": torch.randn(5).bfloat16(),
        "a.long": torch.tensor(2**40),
        "a.bool": torch.tensor([True, False, True]),
        "a.transposed": torch.randn(4, 3).T,
        "a.empty": torch.zeros(0, 4),
    }
    folder = save_checkpoint(tmp_path, 7, tensors, state={}, config={})
    loaded = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    load_checkpoint(folder, loaded)
    reader = CheckpointReader.open(folder)
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor), name
        assert torch.equal(reader.read(name), tensor), name


def test_large_boxes_are_read_in_blocks(tmp_path):
    weight = torch.randn(30, 10)
    with mock.patch("megatron.checkpoint.safetensors_file.BLOCK_BYTES", 90):
        folder = save_checkpoint(tmp_path, 1, {"model.w": weight}, state={}, config={})
        target = torch.zeros(10, 30).T  # not contiguous: nothing can be read straight into it
        load_checkpoint(folder, {"model.w": target})
    assert torch.equal(target, weight)


def fail_on_full_disk(rank, root):
    """Let rank 1 write at most 300 bytes to a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    tensors = make_tensors(make_context(1, 1, 1, 2), VOCAB_ROWS)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        save_checkpoint(root, 2, tensors, state={}, config=CONFIG)
    except CheckpointError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return None


def test_a_rank_that_cannot_write_fails_the_save_on_all_and_leaves_no_trace(world, tmp_path):
    world(2).run(save_toy, tmp_path, (1, 1, 1, 2))
    messages = world(2).run(fail_on_full_disk, tmp_path)
    assert messages[0] == messages[1]
    assert "File too large" in messages[0]
    assert latest_iteration(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "iter_0000001",
        "latest_checkpointed_iteration.txt",
    ]
    assert world(2).run(load_toy, tmp_path / "iter_0000001", (1, 1, 1, 2)) == [[], []]


def test_a_file_lost_from_one_rank_fails_the_load_on_all(world, tmp_path):
    world(2).run(save_toy, tmp_path, (1, 1, 1, 2))
    folder = tmp_path / "iter_0000001"
    data = (folder / "rank_00001.safetensors").read_bytes()
    # Same length, so that only the rank that reads it can notice.
    (folder / "rank_00001.safetensors").write_bytes(data[:8] + b"?" + data[9:])
    messages = world(2).run(catch_load, folder, (1, 1, 1, 2), no_change)
    assert messages[0] == messages[1]
    assert "rank_00001.safetensors is damaged" in messages[0]


def no_change(rank, tensors):
    pass
