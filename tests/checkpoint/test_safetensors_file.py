"""Our streaming reader and writer against the safetensors package."""

import json

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from megatron.checkpoint.safetensors_file import (
    SafetensorsReader,
    SafetensorsWriter,
    TensorSpec,
)
from megatron.errors import CheckpointError


def sample_tensors():
    generator = torch.Generator().manual_seed(3)
    return {
        "weight": torch.randn(7, 5, generator=generator),
        "cube": torch.randn(3, 4, 5, generator=generator),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "half é": torch.randn(9, generator=generator).bfloat16(),
        "flag": torch.tensor([True, False]),
    }


def write(path, tensors):
    specs = [TensorSpec(key, t.dtype, tuple(t.shape)) for key, t in tensors.items()]
    with SafetensorsWriter(path, specs, {"format": "pt"}) as writer:
        for key, tensor in tensors.items():
            if tensor.dim() and len(tensor) > 2:
                writer.write(key, tensor[:2])
                writer.write(key, tensor[2:])
            elif tensor.numel():
                writer.write(key, tensor)


def test_the_package_reads_what_is_written(tmp_path):
    tensors = sample_tensors()
    write(tmp_path / "a.safetensors", tensors)
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert torch.equal(loaded[key], tensor), key
    with safe_open(tmp_path / "a.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("block_bytes", [1, 50, 1 << 20])
def test_boxes_are_those_of_what_the_package_wrote(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr("megatron.checkpoint.safetensors_file.BLOCK_BYTES", block_bytes)
    tensors = sample_tensors()
    save_file(tensors, tmp_path / "a.safetensors", metadata={"x": "y"})
    reader = SafetensorsReader(tmp_path / "a.safetensors")
    assert sorted(reader.keys()) == sorted(tensors)
    boxes = [
        ("weight", (slice(0, 7), slice(0, 5))),
        ("weight", (slice(2, 5), slice(0, 5))),
        ("weight", (slice(2, 5), slice(1, 4))),
        ("weight", (slice(3, 3), slice(1, 4))),
        ("cube", (slice(1, 3), slice(1, 2), slice(0, 5))),
        ("cube", (slice(0, 2), slice(0, 4), slice(2, 3))),
        ("scalar", ()),
        ("empty", (slice(0, 0), slice(0, 3))),
        ("half é", (slice(4, 8),)),
        ("flag", (slice(1, 2),)),
    ]
    for key, box in boxes:
        expected = tensors[key][box]
        offsets = [part.start for part in box]
        straight = torch.zeros(expected.shape, dtype=expected.dtype)
        reader.read_box(reader.spec(key), offsets, straight)
        assert torch.equal(straight, expected), (key, box)
        strided = torch.zeros((*expected.shape, 2), dtype=expected.dtype)
        reader.read_box(reader.spec(key), offsets, strided[..., 1])
        assert torch.equal(strided[..., 1], expected), (key, box)
        assert not strided[..., 0].any()


def test_an_incomplete_file_is_not_closed_as_if_it_were_whole(tmp_path):
    writer = SafetensorsWriter(tmp_path / "a", [TensorSpec("w", torch.float32, (4,))])
    writer.write("w", torch.zeros(3))
    with pytest.raises(AssertionError, match="w is incomplete"):
        writer.close()


def test_wrong_order_and_overflow_are_refused(tmp_path):
    specs = [TensorSpec(key, torch.float32, (2,)) for key in "ab"]
    writer = SafetensorsWriter(tmp_path / "a", specs)
    with pytest.raises(AssertionError):
        writer.write("b", torch.zeros(2))
    with pytest.raises(AssertionError, match="too many"):
        writer.write("a", torch.zeros(3))


def test_a_tensor_that_is_not_as_expected_is_damage(tmp_path):
    write(tmp_path / "a", {"w": torch.zeros(2, 3)})
    reader = SafetensorsReader(tmp_path / "a")
    for spec in (
        TensorSpec("w", torch.float32, (3, 2)),
        TensorSpec("w", torch.int32, (2, 3)),
        TensorSpec("x", torch.float32, (2, 3)),
    ):
        with pytest.raises(CheckpointError, match="damaged"):
            reader.read_box(spec, (0, 0), torch.zeros(1, 1, dtype=spec.dtype))


def test_every_cut_is_an_error_and_so_is_a_longer_file(tmp_path):
    path = tmp_path / "a"
    write(path, {"w": torch.zeros(2), "v": torch.zeros(3)})
    data = path.read_bytes()
    for changed in (*(data[:length] for length in range(len(data))), data + b"\0"):
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="damaged"):
            SafetensorsReader(path)


def test_a_file_cut_after_it_was_opened_is_an_error(tmp_path):
    path = tmp_path / "a"
    write(path, {"w": torch.zeros(2000)})
    reader = SafetensorsReader(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut short"):
        reader.read_box(reader.spec("w"), (0,), torch.zeros(2000))
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        reader.read_box(reader.spec("w"), (0,), torch.zeros(2000))


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"w": 1},
        {"w": {**ENTRY, "dtype": "F31"}},
        {"w": {**ENTRY, "dtype": ["F32"]}},
        {"w": {**ENTRY, "shape": [3]}},
        {"w": {**ENTRY, "shape": [-2]}},
        {"w": {**ENTRY, "shape": [2.0]}},
        {"w": {**ENTRY, "shape": None}},
        {"w": {**ENTRY, "data_offsets": [0]}},
        {"w": {**ENTRY, "data_offsets": [8, 16]}},
        {"w": {**ENTRY, "data_offsets": [8, 0]}},
        {"w": {"shape": [2]}},
        {"w": ENTRY, "v": ENTRY},
    ],
)
def test_headers_that_the_package_refuses_are_errors_here(tmp_path, header):
    text = json.dumps(header).encode()
    path = tmp_path / "a"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises((SafetensorError, ValueError, TypeError)):
        load_file(path)
    with pytest.raises(CheckpointError, match="damaged"):
        SafetensorsReader(path)
