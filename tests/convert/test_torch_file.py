"""Files of torch.save, read without unpickling: the values of torch.load, and nothing that is run."""

import argparse
import builtins
import io
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

import megatron.errors
from megatron.convert.torch_file import Record, StoredTensor, read_torch_file
from megatron.errors import CheckpointError


def written(tmp_path, content, **options):
    path = tmp_path / "file.pt"
    torch.save(content, path, **options)
    return path


def read(stored):
    return stored.read(0, stored.shape[0])


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_those_of_torch_load(tmp_path, dtype):
    content = {
        "whole": torch.arange(35).view(5, 7).to(dtype),
        "parameters": [torch.nn.Parameter(torch.randn(3, 2).to(dtype), requires_grad=False)],
        "one": OrderedDict(a=torch.arange(3).to(dtype)),
    }
    path = written(tmp_path, content)
    ours, theirs = read_torch_file(path), torch.load(path, weights_only=True)
    for mine, expected in (
        (ours["whole"], theirs["whole"]),
        (ours["parameters"][0], theirs["parameters"][0]),
        (ours["one"]["a"], theirs["one"]["a"]),
    ):
        assert isinstance(mine, StoredTensor)
        assert (mine.dtype, mine.shape) == (dtype, tuple(expected.shape))
        assert torch.equal(read(mine), expected)
    assert torch.equal(ours["whole"].read(2, 4), theirs["whole"][2:4])


def test_views_of_one_storage_are_read_as_views(tmp_path):
    base = torch.randn(6, 8)
    views = [base, base[1:4], base[:, 2:5], base.t(), base[::2], base[2:3].expand(4, 8), base[:0]]
    path = written(tmp_path, views)
    assert path.stat().st_size < 3000  # one storage
    for mine, view in zip(read_torch_file(path), views, strict=True):
        assert torch.equal(mine.read(0, len(view)), view)
        assert torch.equal(mine.read(1, 2), view[1:2]) or len(view) == 0


def test_plain_values_and_arguments_come_as_they_are(tmp_path):
    values = {"a": 1, "b": 0.5, "c": [True, None, "text", b"bytes"], "d": (1, 2)}
    ours = read_torch_file(written(tmp_path, {"args": argparse.Namespace(**values)}))
    assert isinstance(ours["args"], Record)
    assert {key: ours["args"].values[key] for key in ("a", "b", "d")} == {
        key: values[key] for key in ("a", "b", "d")
    }
    assert ours["args"].values["c"][:3] == [True, None, "text"]


def test_states_of_generators_do_not_stop_the_reading(tmp_path):
    content = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.RandomState(1).get_state(),
        "scalar": np.float64(1),
        "python": random.Random(1).getstate(),
        "dtype": torch.bfloat16,
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
    }
    ours = read_torch_file(written(tmp_path, content))
    assert ours["python"] == random.Random(1).getstate()
    assert ours["dtype"] == "bfloat16"


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def target(tmp_path):
    return tmp_path / "was_run"


ATTACKS = {
    "os.system": lambda path: Calls(os.system, f"touch {path}"),
    "eval": lambda path: Calls(builtins.eval, f"open({str(path)!r}, 'w')"),
    "exec": lambda path: Calls(builtins.exec, f"open({str(path)!r}, 'w')"),
    "open": lambda path: Calls(open, str(path), "w"),
    "mkdir": lambda path: Calls(Path.mkdir, path),
    "getattr": lambda path: Calls(getattr, path, "mkdir"),
    "torch.save": lambda path: Calls(torch.save, {}, str(path)),
    "torch.load": lambda path: Calls(torch.load, str(path)),
    "numpy.save": lambda path: Calls(np.save, str(path), 1),
    "in arguments": lambda path: {"args": argparse.Namespace(a=Calls(os.mkdir, str(path)))},
    "in the model": lambda path: {"model": {"a": Calls(os.mkdir, str(path))}},
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_pickle_that_calls_something_is_refused_and_runs_nothing(tmp_path, name):
    path = written(tmp_path, ATTACKS[name](target(tmp_path)))
    with pytest.raises(CheckpointError, match=r"is refused: its pickle names .* Nothing of it was"):
        read_torch_file(path)
    assert not target(tmp_path).exists()


def replace_pickle(path, content):
    """Put other bytes in the place of a file's pickle."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, content if name.endswith("data.pkl") else data)


def test_the_attacks_would_work_on_pickle_itself(tmp_path):
    pickle.loads(pickle.dumps(ATTACKS["open"](target(tmp_path)))).close()
    assert target(tmp_path).exists()


# Programs in the pickle language that no pickler writes. c: name, R: call, b: set state, \x93: name from the stack.
PROGRAMS = {
    "a call by names on the stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "a dotted name": b"\x80\x04\x8c\x0amegatron.x\x8c\x12__class__.__base__\x93.",
    "an extension": b"\x80\x02\x82\x01.",
    "an unknown persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "a state for a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
    "a state for a storage type": b"\x80\x02ctorch\nFloatStorage\n}X\x05\x00\x00\x00dtypeK\x01sb.",
    "a state for a class": b"\x80\x02cargparse\nNamespace\n}X\x01\x00\x00\x00aK\x01sb.",
    "arguments without names": b"\x80\x02cargparse\nNamespace\n)\x81}K\x01K\x01sb.",
    "a call of text": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "too few arguments": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "an endless length": b"\x80\x04\x96\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "nothing": b"",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_of_any_kind_ends_in_one_error(tmp_path, name):
    path = written(tmp_path, {"a": torch.ones(2)})
    replace_pickle(path, PROGRAMS[name])
    if name == "a dotted name":  # of Megatron: taken for one of its enums, looked up nowhere
        assert read_torch_file(path).__module__ != "megatron"
        return
    with pytest.raises(CheckpointError):
        read_torch_file(path)


def test_names_of_our_own_package_are_not_imported_either(tmp_path):
    path = written(tmp_path, Calls(megatron.errors.ConfigError, "text"))
    found = read_torch_file(path)
    assert not isinstance(found, megatron.errors.ConfigError)
    assert found.arguments == ("text",)


@pytest.mark.parametrize(
    ("first", "shape", "strides"),
    [(0, (3, 3), (3, 1)), (1, (8,), (1,)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2,), (1, 1))],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, first, shape, strides):
    class Outside:
        def __reduce__(self):
            arguments = (
                torch.ones(8)._typed_storage(),
                first,
                shape,
                strides,
                False,
                OrderedDict(),
            )
            return (torch._utils._rebuild_tensor_v2, arguments)

    path = tmp_path / "file.pt"
    torch.save(Outside(), path)
    with pytest.raises(CheckpointError, match="not in its storage"):
        read_torch_file(path)


def test_other_formats_are_refused_in_words(tmp_path):
    legacy = written(tmp_path, {"a": 1}, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"not of torch 1\.6 or later"):
        read_torch_file(legacy)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(ATTACKS["open"](target(tmp_path))))
    with pytest.raises(CheckpointError, match=r"not of torch 1\.6 or later"):
        read_torch_file(tmp_path / "plain.pt")
    assert not target(tmp_path).exists()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "text")
    with pytest.raises(CheckpointError, match=r"no data\.pkl"):
        read_torch_file(tmp_path / "other.zip")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**6))
    with pytest.raises(CheckpointError, match="is compressed"):
        read_torch_file(tmp_path / "packed.zip")
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_torch_file(tmp_path / "none.pt")


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    path = written(tmp_path, {"a": torch.ones(1000)})
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_torch_file(path)


def test_damage_is_an_error_or_changes_values_only(tmp_path):
    content = {"args": argparse.Namespace(a=1), "model": {"b": torch.arange(9.0)}}
    path = written(tmp_path, content)
    whole = path.read_bytes()
    generator = random.Random(3)
    num_refused = 0
    for _ in range(400):
        place = generator.randrange(len(whole))
        path.write_bytes(whole[:place] + generator.randbytes(1) + whole[place + 1 :])
        try:
            found = read_torch_file(path)
            read(found["model"]["b"])
        except CheckpointError:
            num_refused += 1
    assert num_refused > 50


def test_damage_to_the_pickle_is_an_error_or_harmless(tmp_path):
    path = written(tmp_path, {"args": argparse.Namespace(a=1), "b": torch.arange(9.0)})
    with zipfile.ZipFile(path) as archive:
        good = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    generator = random.Random(4)
    num_refused = 0
    for _ in range(400):
        bad = bytearray(good)
        for _ in range(generator.randrange(1, 4)):
            bad[generator.randrange(len(bad))] = generator.randrange(256)
        replace_pickle(path, bytes(bad))
        try:
            read_torch_file(path)
        except CheckpointError:
            num_refused += 1
    assert num_refused > 200


def test_values_in_big_endian_order_are_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    path = tmp_path / "file.pt"
    path.write_bytes(buffer.getvalue())
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, b"big" if name.endswith("byteorder") else data)
    with pytest.raises(CheckpointError, match="big-endian"):
        read_torch_file(path)
    assert struct.pack("=H", 1) == b"\x01\x00"  # this machine's order, in which values are read
