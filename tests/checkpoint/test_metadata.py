"""Damage to the files of a checkpoint: every change of metadata.json that means something else is an error."""

import copy
import json

import pytest
import torch

from megatron.checkpoint.checksums import SUMS_FILE, encode_sums, read_sums
from megatron.checkpoint.layout import METADATA_FILE
from megatron.checkpoint.load import load_checkpoint
from megatron.checkpoint.metadata import Chunk, TensorEntry, find_uncovered
from megatron.checkpoint.reader import CheckpointReader
from megatron.checkpoint.save import save_checkpoint
from megatron.checksum import hash_file
from megatron.errors import CheckpointError
from tests.checkpoint.toy import make_context, make_tensors

REPLACEMENTS = (
    None,
    True,
    -1,
    1.5,
    3,
    10**30,
    "",
    "I64",
    "rank_00009.safetensors",
    [],
    [1],
    {},
    {"a": 1},
)
# Their values are notes for people: nothing is read by them.
FREE = ("iteration", "world_size")


def save_small(root):
    tensors = {"model.a": torch.arange(6.0).reshape(3, 2), "model.b": torch.tensor(5.0)}
    return save_checkpoint(root, 1, tensors, state={"x": 1}, config={"y": 2})


def load_all(folder):
    """Read everything there is in both ways."""
    reader = CheckpointReader.open(folder)
    for name in reader.names():
        reader.read(name)
    load_checkpoint(folder, {"model.a": torch.zeros(3, 2), "model.b": torch.tensor(0.0)})


def reseal(folder):
    """Make SHA256SUMS fit what is there, as if it had been written so."""
    names = read_sums(folder)
    (folder / SUMS_FILE).write_bytes(
        encode_sums({name: hash_file(folder / name) for name in names})
    )


def places(value, path=()):
    """Every place in a JSON value, from the whole to the leaves."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


def changed_at(original, path, change):
    """A copy in which change(parent, key) was done at the place."""
    boxed = [copy.deepcopy(original)]
    parent, *keys = boxed, 0, *path
    for key in keys[:-1]:
        parent = parent[key]
    change(parent, keys[-1])
    return boxed[0]


def remove(parent, key):
    del parent[key]


def double(parent, key):
    if isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    else:
        parent[f"{key}x"] = copy.deepcopy(parent[key])


def mutations(original):
    """(description, changed value): each place replaced by each of REPLACEMENTS, removed, doubled."""
    for path in places(original):
        for replacement in REPLACEMENTS:
            changed = changed_at(original, path, lambda p, k, r=replacement: p.__setitem__(k, r))
            if json.dumps(changed) != json.dumps(original):
                yield f"{path} = {replacement!r}", changed
        if path:
            yield f"del {path}", changed_at(original, path, remove)
            yield f"double {path}", changed_at(original, path, double)


def test_every_mutation_of_metadata_is_an_error(tmp_path):
    folder = save_small(tmp_path)
    load_all(folder)
    original = json.loads((folder / METADATA_FILE).read_text())
    undetected, count = [], 0
    for description, changed in mutations(original):
        (folder / METADATA_FILE).write_text(json.dumps(changed))
        reseal(folder)
        count += 1
        try:
            load_all(folder)
        except CheckpointError:
            continue
        undetected.append(description)
    assert undetected == [f"('{name}',) = 3" for name in FREE]
    assert count > 400


def cut(data):
    return data[: len(data) // 2]


def lengthen(data):
    return data + b"\n"


def spoil_start(data):
    return b"\xff" + data[1:]


@pytest.mark.parametrize("change", [cut, lengthen, spoil_start])
@pytest.mark.parametrize("name", ["state.json", "config.json", "rank_00000.safetensors"])
def test_a_changed_file_is_an_error(tmp_path, name, change):
    folder = save_small(tmp_path)
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError, match=name):
        load_all(folder)


@pytest.mark.parametrize(
    "name", ["state.json", "config.json", "rank_00000.safetensors", METADATA_FILE, SUMS_FILE]
)
def test_a_missing_file_is_an_error(tmp_path, name):
    folder = save_small(tmp_path)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_all(folder)


def test_a_newer_format_is_refused_by_its_number(tmp_path):
    folder = save_small(tmp_path)
    values = json.loads((folder / METADATA_FILE).read_text()) | {"format_version": 3, "more": 1}
    (folder / METADATA_FILE).write_text(json.dumps(values))
    reseal(folder)
    with pytest.raises(CheckpointError, match="format version 3 and this program reads 2"):
        load_all(folder)


def load_on_rank(rank, folder):
    try:
        load_checkpoint(folder, make_tensors(make_context(1, 1, 1, 2), 16))
    except CheckpointError as error:
        return str(error)
    return None


def test_damage_is_reported_alike_on_all_ranks(world, tmp_path):
    folder = save_small(tmp_path)
    (folder / METADATA_FILE).write_text("{")
    reseal(folder)
    messages = world(2).run(load_on_rank, folder)
    assert messages[0] == messages[1]
    assert "not JSON" in messages[0]


def chunks(*boxes):
    return tuple(Chunk("f", offsets, sizes) for offsets, sizes in boxes)


@pytest.mark.parametrize(
    ("shape", "boxes", "is_covered"),
    [
        ((4, 2), [((0, 0), (3, 2)), ((3, 0), (1, 2))], True),
        ((4, 2), [((0, 0), (4, 1)), ((0, 1), (4, 1))], True),
        ((), [((), ())], True),
        ((0, 3), [], True),
        ((4, 2), [((0, 0), (3, 2))], False),
        ((4, 2), [((0, 0), (3, 2)), ((2, 0), (2, 2))], False),
        ((4, 2), [((0, 0), (2, 1)), ((2, 1), (2, 1))], False),
        ((4, 2), [((0, 0), (4, 2)), ((0, 0), (4, 2))], False),
        ((4, 2), [((0, 0), (5, 2))], False),
        ((4,), [], False),
        ((), [], False),
        ((4, 2), [((0,), (4,))], False),
    ],
)
def test_chunks_must_cover_a_tensor_once(shape, boxes, is_covered):
    entry = TensorEntry(shape, torch.float32, chunks(*boxes))
    assert (find_uncovered(entry) is None) == is_covered
