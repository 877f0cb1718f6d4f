"""Damage to the files of a checkpoint: whatever the change and wherever it is, no tensor of it is used."""

import random
import shutil
import socket
from unittest import mock

import pytest
import torch

from megatron.checkpoint.checksums import SUMS_FILE, check_content
from megatron.checkpoint.layout import METADATA_FILE
from megatron.checkpoint.load import load_checkpoint
from megatron.checkpoint.save import save_checkpoint
from megatron.checkpoint.verify import find_damage, verify_files
from megatron.checkpoint.writer import CheckpointWriter
from megatron.errors import CheckpointError
from tests.checkpoint.test_save_load import VOCAB_ROWS, catch_load, no_change, save_toy

LAYOUT = (1, 1, 1, 2)


def save_small(root):
    tensors = {"model.a": torch.arange(6.0).reshape(3, 2), "model.b": torch.tensor(5.0)}
    return save_checkpoint(root, 1, tensors, state={"x": 1}, config={"y": 2})


def is_noticed(folder):
    try:
        verify_files(folder)
    except CheckpointError:
        return True
    return False


def test_a_flipped_bit_of_any_byte_of_any_file_is_noticed(tmp_path):
    folder, drawn, count = save_small(tmp_path), random.Random(1), 0
    assert not is_noticed(folder)
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        for place in range(len(original)):
            changed = bytearray(original)
            changed[place] ^= 1 << drawn.randrange(8)
            path.write_bytes(changed)
            assert is_noticed(folder), (path.name, place)
            count += 1
        path.write_bytes(original)
    assert not is_noticed(folder)
    assert count > 900


def test_every_bit_of_the_list_of_hashes_counts(tmp_path):
    path = save_small(tmp_path) / SUMS_FILE
    original = path.read_bytes()
    for place in range(8 * len(original)):
        changed = bytearray(original)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        assert is_noticed(path.parent), place


def test_the_list_of_hashes_names_exactly_the_files_that_are_described(tmp_path):
    path = save_small(tmp_path) / SUMS_FILE
    original = path.read_bytes().splitlines(keepends=True)
    assert len(original) == 4
    another = original[0].replace(b"config", b"confih")
    for lines in [
        *(original[:number] + original[number + 1 :] for number in range(4)),
        [*original, another],
        [*original, original[0]],
        [],
    ]:
        path.write_bytes(b"".join(lines))
        with pytest.raises(CheckpointError, match=f"{SUMS_FILE} is damaged"):
            verify_files(path.parent)


def test_a_file_cut_anywhere_and_a_missing_file_are_noticed_and_named(tmp_path):
    folder = save_small(tmp_path)
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        for length in (0, 1, len(original) // 2, len(original) - 1):
            path.write_bytes(original[:length])
            with pytest.raises(CheckpointError, match=path.name):
                verify_files(folder)
        path.unlink()
        with pytest.raises(CheckpointError, match=f"{path.name} is missing"):
            verify_files(folder)
        path.write_bytes(original)


def damage_in_both_ways(rank, folder):
    return find_damage(folder)


def test_exchanged_files_of_ranks_are_named_alike_on_all_ranks(world, tmp_path):
    world(2).run(save_toy, tmp_path, LAYOUT)
    folder = tmp_path / "iter_0000001"
    first, second = folder / "rank_00000.safetensors", folder / "rank_00001.safetensors"
    assert world(2).run(damage_in_both_ways, folder) == [None, None]
    data = first.read_bytes()
    shutil.copy(second, first)
    second.write_bytes(data)
    messages = world(2).run(catch_load, folder, LAYOUT, no_change)
    assert messages[0] == messages[1]
    assert "rank_0000" in messages[0]


@pytest.mark.parametrize("size", [1, 2])
def test_damage_of_values_alone_is_found_by_any_number_of_ranks(world, tmp_path, size):
    world(2).run(save_toy, tmp_path, LAYOUT)
    folder = tmp_path / "iter_0000001"
    path = folder / "rank_00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # the last bit of a value: every number is still one
    path.write_bytes(data)
    messages = world(size).run(damage_in_both_ways, folder)
    assert len(set(messages)) == 1
    assert "rank_00001.safetensors is damaged: its content is not what was written" in messages[0]


def damage_where_one_reads_wrong(rank, folder, num_wrong):
    """Look for damage while rank 1 reads wrong at first; give what was found, raised and said."""
    left, said = num_wrong, []

    def read_wrong(path, digest, on_bytes=None):
        nonlocal left
        if rank == 1 and left > 0:
            left -= 1
            raise CheckpointError(f"{path} is damaged: as it seems")
        check_content(path, digest, on_bytes)

    with (
        mock.patch("megatron.checkpoint.verify.check_content", read_wrong),
        mock.patch("megatron.checkpoint.verify.logger.warning", said.append),
    ):
        try:
            return find_damage(folder), None, said
        except CheckpointError as error:
            return None, str(error), said


def test_a_process_that_reads_wrong_condemns_no_checkpoint(world, tmp_path):
    world(2).run(save_toy, tmp_path, LAYOUT)
    folder = tmp_path / "iter_0000001"
    (first, second) = world(2).run(damage_where_one_reads_wrong, folder, 1)
    assert first[:2] == second[:2] == (None, None)
    assert "whole when it was read again" in first[2][0] and not second[2]


def damage_where_a_node_is_bad(rank, folder):
    """Rank 1 reads the last file wrong whenever it gets it."""

    def read_wrong(path, digest, on_bytes=None):
        if rank == 1 and path.name == "rank_00001.safetensors":
            raise CheckpointError(f"{path} is damaged: as it seems")
        check_content(path, digest, on_bytes)

    with (
        mock.patch("megatron.checkpoint.verify.check_content", read_wrong),
        pytest.raises(CheckpointError) as error,
    ):
        find_damage(folder)
    return str(error.value)


def test_a_process_that_keeps_reading_wrong_is_named_on_all(world, tmp_path):
    world(2).run(save_toy, tmp_path, LAYOUT)
    first, second = world(2).run(damage_where_a_node_is_bad, tmp_path / "iter_0000001")
    assert first == second
    assert f"(read on {socket.gethostname()})" in first and "start without it" in first


def test_values_are_not_read_from_a_damaged_file(tmp_path):
    folder = save_small(tmp_path)
    path = folder / "rank_00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    tensors = {"model.a": torch.zeros(3, 2), "model.b": torch.tensor(0.0)}
    with pytest.raises(CheckpointError, match=r"rank_00000\.safetensors is damaged"):
        load_checkpoint(folder, tensors)
    assert not any(tensor.any() for tensor in tensors.values())


def test_what_a_tool_writes_has_its_hashes(tmp_path):
    with CheckpointWriter(tmp_path, 3, {"model.a": (4, 2)}) as writer:
        writer.write("model.a", torch.ones(3, 2))
        writer.write("model.a", torch.zeros(1, 2))
        folder = writer.publish(state={}, config={})
    verify_files(folder)
    names = {line.split("  ")[1] for line in (folder / SUMS_FILE).read_text().splitlines()}
    assert names == {path.name for path in folder.iterdir()} - {SUMS_FILE}
    assert METADATA_FILE in names


def test_large_parts_are_hashed_as_small_ones(tmp_path):
    # Above the size from which another thread hashes.
    tensors = {"model.a": torch.randn(300, 1000), "model.b": torch.randn(2 * VOCAB_ROWS)}
    folder = save_checkpoint(tmp_path, 1, tensors, state={}, config={})
    verify_files(folder)
