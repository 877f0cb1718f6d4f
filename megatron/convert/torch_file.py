"""Tensors and plain values of a `torch.save` file, read without running anything that stands in it.

A pickle is a program that may call whatever it names. Here each of the few names that a checkpoint needs stands for
something inert of ours; any other name is refused before anything is called. Tensors come as descriptions, and
their values are read from the file when they are asked for, a run of rows at a time. Knows nothing of Megatron.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from megatron.errors import CheckpointError

STORAGES = {
    "FloatStorage": torch.float32,
    "BFloat16Storage": torch.bfloat16,
    "HalfStorage": torch.float16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DTYPES = {str(dtype).removeprefix("torch.") for dtype in STORAGES.values()}
# Names of values that stand beside the weights (states of generators, arguments) and are not needed from them.
INERT = {
    (
        "__builtin__",
        "getattr",
    ),  # how Python 3.11.0 to 3.11.3 spell a member of an enum; nothing is looked up
    ("_codecs", "encode"),
    ("builtins", "getattr"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("torch", "Size"),
    ("torch", "device"),
}
# Whatever a damaged or hostile pickle makes the unpickler raise.
PICKLE_ERRORS = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)
# Whatever zipfile raises for a damaged archive.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


class Inert:
    """Stands for an object of a foreign class: keeps what it was called with, does nothing."""

    origin = ""  # module.name, set by a subclass for each name

    def __new__(cls, *arguments: object, **_: object) -> Inert:
        self = super().__new__(cls)
        self.arguments = arguments
        return self

    def __init__(self, *arguments: object, **_: object) -> None:
        self.arguments: tuple[object, ...] = arguments

    def __setstate__(self, state: object) -> None:
        """Ignore it."""

    def __repr__(self) -> str:
        return f"{self.origin}({', '.join(repr(argument) for argument in self.arguments)})"


class Record:
    """Stands for argparse.Namespace: its values by name."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {}

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise pickle.UnpicklingError("a Namespace without names")
        self.values = state


class Mapping(dict[Any, Any]):
    """Stands for OrderedDict; attributes that came with it (`_metadata`) are dropped."""

    def __setstate__(self, state: object) -> None:
        """Ignore it."""


@dataclass(frozen=True)
class Storage:
    """Values of one dtype in a row, somewhere in the file."""

    path: Path
    dtype: torch.dtype
    first_byte: int
    num_values: int

    def read(self, first: int, count: int) -> Tensor:
        """Read count values: [count]."""
        out = torch.empty(count, dtype=self.dtype)
        rest = out.view(torch.uint8).numpy().data
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.first_byte + first * self.dtype.itemsize)
                while len(rest):
                    num_read = file.readinto(rest)
                    if not num_read:
                        raise _damaged(self.path, "it is cut short")
                    rest = rest[num_read:]
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from error
        return out


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file: a view of its storage."""

    storage: Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    def read(self, start: int, stop: int) -> Tensor:
        """Read rows start … stop - 1: [rows, …]."""
        shape = (stop - start, *self.shape[1:])
        span = 1 + sum(
            (size - 1) * stride for size, stride in zip(shape, self.strides, strict=True)
        )
        values = self.storage.read(self.first + start * self.strides[0], span)
        return values.as_strided(shape, self.strides)


def read_torch_file(path: Path) -> Any:
    """Read what `torch.save` wrote; tensors as StoredTensor, a Namespace as Record.

    Raises CheckpointError for a file that is missing, damaged or in the format before torch 1.6, and for a pickle
    that names anything but tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in entries if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise _damaged(path, "it holds no data.pkl, or several")
            prefix = pickles[0].removesuffix("data.pkl")
            if f"{prefix}byteorder" in entries and archive.read(f"{prefix}byteorder") != b"little":
                raise _damaged(path, "its values are in big-endian order, which is not read here")
            _check_stored(path, entries)
            content = archive.read(pickles[0])
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ZIP_ERRORS as error:
        raise _damaged(
            path,
            f"it is cut short, or not of torch 1.6 or later ({error}); an older file becomes a new one by "
            f"torch.load and torch.save where it is trusted",
        ) from None
    storages = {
        name.removeprefix(f"{prefix}data/"): info
        for name, info in entries.items()
        if name.startswith(f"{prefix}data/")
    }
    try:
        return _Unpickler(path, content, storages).load()
    except PICKLE_ERRORS as error:
        raise _damaged(path, f"its pickle cannot be read ({error})") from None


def _check_stored(path: Path, entries: dict[str, zipfile.ZipInfo]) -> None:
    for info in entries.values():
        if info.compress_type != zipfile.ZIP_STORED:
            raise _damaged(path, f"{info.filename} is compressed, which torch.save never does")


class _Unpickler(pickle.Unpickler):
    """Builds plain values, and stand-ins for the names that are allowed."""

    def __init__(self, path: Path, content: bytes, storages: dict[str, zipfile.ZipInfo]) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._path, self._storages = path, storages

    def find_class(self, module: str, name: str) -> Any:
        """Give what a name stands for. Nothing is imported. Raises CheckpointError for any other name."""
        found = (module, name)
        if found == ("torch._utils", "_rebuild_tensor_v2"):
            return _Call(_rebuild_tensor)
        if found == ("torch._utils", "_rebuild_parameter"):
            return _Call(_rebuild_parameter)
        if found == ("collections", "OrderedDict"):
            return type("Mapping", (Mapping,), {})
        if found == ("argparse", "Namespace"):
            return type("Record", (Record,), {})
        if module == "torch" and name in STORAGES:
            return _StorageType(STORAGES[name])
        if module == "torch" and name in DTYPES:
            return name
        # Megatron's enums in the arguments. The package is not imported, whether it is there or not.
        if found in INERT or module.partition(".")[0] == "megatron":
            return type("Inert", (Inert,), {"origin": f"{module}.{name}"})
        raise CheckpointError(
            f"{self._path} is refused: its pickle names {module}.{name}, which is neither a tensor nor a plain "
            f"value. Nothing of it was run"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """Find the storage that a tensor is a view of."""
        kind, storage_type, key, _, num_values = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"an unknown kind of storage, {kind!r}")
        if key not in self._storages:
            raise pickle.UnpicklingError(f"storage {key!r} is missing")
        info = self._storages[key]
        if (
            type(num_values) is not int
            or num_values * storage_type.dtype.itemsize != info.file_size
        ):
            raise pickle.UnpicklingError(f"storage {key} has {info.file_size} bytes")
        first_byte = _first_byte(self._path, info)
        return Storage(self._path, storage_type.dtype, first_byte, num_values)


class _StorageType:
    """Stands for torch.FloatStorage and its like. Cannot be changed by the pickle."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("a type with a state")


class _Call:
    """Stands for one of torch's functions. Cannot be changed by the pickle."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., StoredTensor]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> StoredTensor:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("a function with a state")


def _rebuild_tensor(storage: Any, first: Any, shape: Any, strides: Any, *_: object) -> StoredTensor:
    """Describe a tensor. Raises UnpicklingError for one that does not lie in its storage."""
    if isinstance(shape, Inert):  # torch.Size((3, 4))
        (shape,) = shape.arguments
    numbers = (first, *shape, *strides)
    is_sound = (
        isinstance(storage, Storage)
        and all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)
        and len(shape) == len(strides)
    )
    if is_sound and math.prod(shape) > 0:
        last = first + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        is_sound = last < storage.num_values
    if not is_sound:
        raise pickle.UnpicklingError(f"a tensor of shape {shape} that is not in its storage")
    return StoredTensor(storage, first, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: Any, *_: object) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise pickle.UnpicklingError("a parameter that is no tensor")
    return tensor


def _first_byte(path: Path, info: zipfile.ZipInfo) -> int:
    """Find where the values of an entry start: after a header of 30 bytes, a name and an extra field."""
    try:
        with path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
            size = file.seek(0, io.SEEK_END)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    name_length = int.from_bytes(header[26:28], "little")
    extra_length = int.from_bytes(header[28:30], "little")
    first = info.header_offset + 30 + name_length + extra_length
    if header[:4] != b"PK\x03\x04" or first + info.file_size > size:
        raise pickle.UnpicklingError(f"{info.filename} is not where it should be")
    return first


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be used: {problem}")
