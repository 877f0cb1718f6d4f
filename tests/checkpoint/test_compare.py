"""What a checkpoint holds and where two differ, against torch on whole tensors."""

import hashlib
import json
import math
import random
import shutil
from unittest import mock

import pytest
import torch

from megatron.checkpoint.compare import Totals, differing_fields, examine, pair_tensors
from megatron.checkpoint.reader import CheckpointReader
from megatron.checkpoint.save import save_checkpoint
from megatron.errors import CheckpointError
from tests.checkpoint.toy import (
    CONFIG,
    EMBEDDING,
    VOCAB_SIZE,
    make_context,
    make_tensors,
    random_values,
    whole_tensors,
)

VOCAB_ROWS = 16
STATE = {"iteration": 1, "loss_scale": {"scale": 2.0}}
# Of every float kind, rows and columns that blocks do not divide, a scalar, nothing at all.
MANY_KINDS = {
    "model.a": torch.randn(37, 3),
    "model.b": torch.randn(5, 4, 3).bfloat16(),
    "model.half": torch.randn(11).half(),
    "model.double": torch.randn(6, 2, dtype=torch.float64),
    "model.long": torch.arange(-4, 20).reshape(8, 3),
    "model.bool": torch.tensor([True, False, True]),
    "model.scalar": torch.tensor(-2.5),
    "model.empty": torch.zeros(0, 4),
}
SMALL_BLOCKS = mock.patch("megatron.checkpoint.safetensors_file.BLOCK_BYTES", 50)


def save(root, tensors, state=STATE):
    return save_checkpoint(root, 1, tensors, state=state, config=CONFIG)


def save_in_layout(rank, root, layout, vocab_rows=VOCAB_ROWS):
    tensors = make_tensors(make_context(*layout), vocab_rows)
    size = math.prod(layout)
    save_checkpoint(root, 1, tensors, state=STATE | {"world_size": size}, config=CONFIG)


def compare(first, second, pattern="*"):
    """Give {name: (summary, difference)} of two folders, the second may be None."""
    one = CheckpointReader.open(first)
    other = CheckpointReader.open(second) if second is not None else None
    pairs = pair_tensors(one, other, pattern)
    return {pair.name: examine(pair, one, other) for pair in pairs}


def differences(first, second, pattern="*"):
    found = compare(first, second, pattern)
    return {name: difference for name, (_, difference) in found.items() if difference is not None}


def flip_bit(folder, name, index, bit):
    """Flip a bit of one value of a tensor, found by the format's description alone."""
    metadata = json.loads((folder / "metadata.json").read_text())
    entry = metadata["tensors"][name]
    for chunk in entry["chunks"]:
        inside = [i - o for i, o in zip(index, chunk["offsets"], strict=True)]
        if all(0 <= i < size for i, size in zip(inside, chunk["sizes"], strict=True)):
            break
    path = folder / chunk["file"]
    data = bytearray(path.read_bytes())
    header_bytes = int.from_bytes(data[:8], "little")
    key = f"{name}@{','.join(map(str, chunk['offsets']))}"
    start, end = json.loads(data[8 : 8 + header_bytes])[key]["data_offsets"]
    place = 0
    for i, size in zip(inside, chunk["sizes"], strict=True):
        place = place * size + i
    width = (end - start) // math.prod(chunk["sizes"])
    data[8 + header_bytes + start + place * width + bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_summaries_equal_torch_on_whole_tensors(tmp_path):
    folder = save(tmp_path, MANY_KINDS)
    with SMALL_BLOCKS:
        found = compare(folder, None)
    assert found.keys() == MANY_KINDS.keys()
    for name, tensor in MANY_KINDS.items():
        summary, difference = found[name]
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert summary.sha256 == hashlib.sha256(raw).hexdigest()
        assert summary.norm == pytest.approx(float(tensor.double().norm()), rel=1e-12)
        assert summary.is_finite and difference is None


def test_values_that_are_not_finite_are_counted(tmp_path):
    bad = torch.zeros(40, 3)
    bad[1, 1] = bad[39, 2] = bad[20, 0] = math.nan
    bad[7, 2], bad[8, 2] = math.inf, -math.inf
    with SMALL_BLOCKS:
        summary, _ = compare(save(tmp_path, {"model.bad": bad}), None)["model.bad"]
    assert (summary.num_nan, summary.num_inf, summary.is_finite) == (3, 2, False)
    assert math.isnan(summary.norm)


@pytest.mark.parametrize("layout", [(2, 1, 1, 2), (1, 2, 2, 1)], ids=["TP2 PP2", "DP4 in two"])
def test_another_layout_is_equal_and_has_the_same_hashes(world, tmp_path, layout):
    world(4).run(save_in_layout, tmp_path / "cut", layout)
    world(1).run(save_in_layout, tmp_path / "whole", (1, 1, 1, 1))
    cut, whole = tmp_path / "cut" / "iter_0000001", tmp_path / "whole" / "iter_0000001"
    with SMALL_BLOCKS:
        found = compare(cut, whole)
        assert found == compare(whole, cut)
    content = whole_tensors(VOCAB_ROWS)
    assert len(found) == len(content) + 2  # the rows of padding of weight and moment
    for name, tensor in content.items():
        rows = tensor[:VOCAB_SIZE] if name.endswith(EMBEDDING) else tensor
        summary, difference = found[name]
        assert difference is None
        assert summary.sha256 == hashlib.sha256(rows.contiguous().numpy().tobytes()).hexdigest()
    states = [CheckpointReader.open(folder).state for folder in (cut, whole)]
    assert states[0] != states[1] and differing_fields(*states) == {}


def test_one_flipped_bit_anywhere_is_found_and_placed(world, tmp_path):
    world(4).run(save_in_layout, tmp_path / "cut", (2, 1, 1, 2))
    cut = tmp_path / "cut" / "iter_0000001"
    flipped = tmp_path / "flipped"
    content = whole_tensors(VOCAB_ROWS)
    draw = random.Random(1)
    for name in content:
        index = [draw.randrange(size) for size in content[name].shape]
        bit = draw.randrange(32)
        shutil.copytree(cut, flipped)
        flip_bit(flipped, name, index, bit)
        with SMALL_BLOCKS:
            (found,) = differences(cut, flipped).items()
        shown, difference = found
        is_padding = name.endswith(EMBEDDING) and index[0] >= VOCAB_SIZE
        assert shown == name + (" (padding)" if is_padding else "")
        assert difference.num_values == 1
        first_row = VOCAB_SIZE if is_padding else 0
        assert difference.index == (index[0] - first_row, *index[1:])
        value = content[name][tuple(index)]
        other = (value.view(torch.int32) ^ torch.tensor(1 << bit).to(torch.int32)).view(
            torch.float32
        )
        assert torch.equal(torch.tensor(difference.values), torch.stack([value, other]))
        expected = abs(float(value) - float(other))
        assert difference.largest == (expected if math.isfinite(expected) else math.inf)
        shutil.rmtree(flipped)


def test_differences_equal_torch_on_whole_tensors(tmp_path):
    one = torch.randn(41, 5)
    other = one.clone()
    generator = torch.Generator().manual_seed(3)
    for place in torch.randperm(one.numel(), generator=generator)[:23]:
        other.view(-1)[place] += 0.5 * torch.randn((), generator=generator)
    folders = [save(tmp_path / name, {"model.w": w}) for name, w in (("a", one), ("b", other))]
    with SMALL_BLOCKS:
        difference = differences(*folders)["model.w"]
    distance = (one.double() - other.double()).abs()
    assert difference.num_values == int((one != other).sum()) == 23
    assert difference.largest == float(distance.max())
    assert distance[difference.index] == distance.max()
    assert difference.values == (float(one[difference.index]), float(other[difference.index]))


@pytest.mark.parametrize(
    ("one", "other", "largest"),
    [
        (0.0, -0.0, 0.0),
        (1.0, math.nan, math.inf),
        (math.inf, -math.inf, math.inf),
        (math.inf, 1.0, math.inf),
        (math.nan, math.nan, None),
        (math.inf, math.inf, None),
    ],
)
def test_bits_decide_whether_values_are_equal(tmp_path, one, other, largest):
    folders = [
        save(tmp_path / name, {"model.w": torch.tensor([3.0, value, 5.0])})
        for name, value in (("a", one), ("b", other))
    ]
    difference = differences(*folders).get("model.w")
    assert (None if difference is None else difference.largest) == largest


@pytest.mark.parametrize("same", [math.nan, math.inf])
def test_values_that_are_equally_not_finite_are_no_difference_beside_one(tmp_path, same):
    folders = [
        save(tmp_path / name, {"model.w": torch.tensor([same, value, same])})
        for name, value in (("a", 1.0), ("b", 1.5))
    ]
    difference = differences(*folders)["model.w"]
    assert (difference.num_values, difference.index, difference.largest) == (1, (1,), 0.5)


def test_what_only_one_has_and_other_shapes_and_dtypes_are_named(tmp_path):
    ones = torch.ones(2, 3)
    same = {"model.same": ones}
    first = save(
        tmp_path / "a",
        same | {"model.here": ones, "model.shape": ones, "model.dtype": ones},
    )
    second = save(
        tmp_path / "b",
        same | {"model.there": ones, "model.shape": ones.T, "model.dtype": ones.bfloat16()},
    )
    assert {name: found.reason for name, found in differences(first, second).items()} == {
        "model.dtype": "dtypes differ: F32 and BF16",
        "model.here": f"only in {first}",
        "model.shape": "shapes differ: [2, 3] and [3, 2]",
        "model.there": f"only in {second}",
    }


def test_rows_of_padding_may_be_more_or_fewer_but_those_that_both_have_count(world, tmp_path):
    def padded(name, shape):
        # The rows of the smaller one, then others.
        if not name.endswith(EMBEDDING):
            return random_values(name, shape)
        return torch.cat([random_values(name, (VOCAB_ROWS, 6)), torch.ones(24 - VOCAB_ROWS, 6)])

    small = save(tmp_path / "small", whole_tensors(VOCAB_ROWS))
    large = save(tmp_path / "large", whole_tensors(24, padded))
    none = save(tmp_path / "none", {
        name: tensor[:VOCAB_SIZE].clone() if name.endswith(EMBEDDING) else tensor
        for name, tensor in whole_tensors(VOCAB_ROWS).items()
    })  # fmt: skip
    for first in (small, large, none):
        for second in (small, large, none):
            assert differences(first, second) == {}
    contents = set()
    for folder in (small, large, none):
        reader, totals = CheckpointReader.open(folder), Totals()
        for pair in pair_tensors(reader):
            totals.add(pair, *examine(pair, reader))
        contents.add(totals.content)
    assert len(contents) == 1
    flip_bit(large, f"model.{EMBEDDING}", (VOCAB_ROWS - 1, 0), 3)
    assert list(differences(small, large)) == [f"model.{EMBEDDING} (padding)"]


def test_numbers_in_names_sort_as_numbers_and_a_pattern_chooses(tmp_path):
    names = [f"model.layers.{number}.w" for number in (10, 9, 2)]
    folder = save(tmp_path, {name: torch.ones(1) for name in [*names, "optimizer.w"]})
    assert list(compare(folder, None)) == [*reversed(names), "optimizer.w"]
    assert list(compare(folder, None, "*.9.*")) == ["model.layers.9.w"]
    with pytest.raises(CheckpointError, match=r"no tensor like 'x\*'; .* 'model\.layers\.10\.w'"):
        compare(folder, None, "x*")


def test_reads_are_blocks_and_all_bytes_are_reported(tmp_path):
    folder = save(tmp_path, MANY_KINDS)
    reader = CheckpointReader.open(folder)
    pairs = pair_tensors(reader, reader)
    sizes, told = [], []
    read = CheckpointReader.read

    def record(self, name, rows):
        sizes.append(read(self, name, rows).nbytes)
        return read(self, name, rows)

    with SMALL_BLOCKS, mock.patch.object(CheckpointReader, "read", record):
        for pair in pairs:
            examine(pair, reader, reader, on_bytes=told.append)
    assert max(sizes) <= 50
    assert sum(told) == sum(pair.num_bytes for pair in pairs) == 2 * sum(
        tensor.nbytes for tensor in MANY_KINDS.values()
    )  # fmt: skip


def test_fields_of_the_state_that_differ_are_named_with_both_values():
    first = {
        "iteration": 4,
        "loss_scale": {"scale": 2.0, "good_steps": 1},
        "world_size": 4,
        "kernels": {"bias_gelu": "fused"},
    }
    second = {"iteration": 6, "loss_scale": {"scale": 2.0, "good_steps": 2}, "extra": None}
    assert differing_fields(first, second) == {
        "extra": ("", "null"),
        "iteration": ("4", "6"),
        "loss_scale.good_steps": ("1", "2"),
    }
    assert differing_fields(first, first) == {}
