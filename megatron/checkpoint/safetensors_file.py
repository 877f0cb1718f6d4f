"""The safetensors format, streamed: tensors are written and read piece by piece, never as a whole file.

A file is 8 bytes of header length, a JSON header (key -> dtype, shape, byte range), then the raw values. The
`safetensors` package writes only what is in memory at once and reads by mapping files, which counts as the
reader's memory; this writes what comes, at disk speed, and reads exactly what is asked for. Knows nothing of
checkpoints: `checkpoint` and `convert` share it.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from megatron.checkpoint.content_hash import ContentHash
from megatron.checkpoint.files import damaged
from megatron.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# What is read at once where values cannot land in the target directly. Larger blocks are no faster: the allocator
# gives them back to the system each time, and their pages are faulted in anew.
BLOCK_BYTES = 8 << 20
MAX_HEADER_BYTES = 100_000_000  # as the safetensors package


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a file."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsWriter:
    """Writes one file whose tensors are known in advance and come in order, each in one piece or many.

    `close` forces the file to disk. As a context manager it closes, and after an error leaves the file cut short.
    """

    def __init__(
        self,
        path: Path,
        specs: Sequence[TensorSpec],
        metadata: Mapping[str, str] | None = None,
        *,
        content: ContentHash | None = None,
    ) -> None:
        """Create the file and write its header. Wide dtypes must come first, so that all values are aligned.

        content hears everything that is written, and says how long the memory of it must stay.
        """
        widths = [spec.dtype.itemsize for spec in specs]
        assert widths == sorted(widths, reverse=True), "wide dtypes come first"
        self._specs = specs
        self._current = 0  # the spec being written, and how many of its bytes are
        self._written = 0
        self.num_bytes = 0  # of the file so far
        self._content = content
        header = _encode_header(specs, metadata or {})
        self._file = path.open("wb", buffering=0)
        self._append(memoryview(header))

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._file.close()

    def write(self, key: str, values: Tensor) -> None:
        """Append the next values of the tensor `key`, in row-major order, whole or a run of its rows.

        Copies only what is not contiguous or not on the CPU. Synchronises the device.
        """
        self._skip_finished()
        spec = self._specs[self._current]
        assert key == spec.key and values.dtype == spec.dtype, (key, values.dtype, spec)
        data = _bytes_of(values.detach().cpu().contiguous())
        self._written += len(data)
        assert self._written <= spec.num_bytes, f"too many values for {key}"
        self._append(data)

    def close(self) -> None:
        """Force the file to disk. Every tensor must have been written in full."""
        self._skip_finished()
        assert self._current == len(self._specs), f"{self._specs[self._current].key} is incomplete"
        os.fsync(self._file.fileno())
        self._file.close()

    def _skip_finished(self) -> None:
        while (
            self._current < len(self._specs)
            and self._written == self._specs[self._current].num_bytes
        ):
            self._current += 1
            self._written = 0

    def _append(self, data: memoryview) -> None:
        # Everything written passes here.
        if self._content is not None:
            self._content.add(data)
        rest = data
        while len(rest):  # one call writes at most 2 GiB on Linux
            rest = rest[self._file.write(rest) :]
        self.num_bytes += len(data)


class SafetensorsReader:
    """Reads boxes of the tensors of one file. Keeps the header, not an open file.

    Every method raises CheckpointError when the file is missing, cut short or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries, self._data_start, self.metadata = _read_header(path)

    def keys(self) -> list[str]:
        """Give the keys of all tensors."""
        return list(self._entries)

    def spec(self, key: str) -> TensorSpec:
        """Give a tensor's dtype and shape."""
        if key not in self._entries:
            raise damaged(self.path, f"it has no tensor {key!r}")
        return self._entries[key][0]

    def read_box(self, spec: TensorSpec, offsets: Sequence[int], out: Tensor) -> None:
        """Fill `out`, any device and strides, with the box of its shape that starts at offsets in a tensor.

        The tensor must be in the file as spec says. A box that is a run of rows goes straight to the memory of a
        contiguous CPU tensor.
        """
        if self.spec(spec.key) != spec:
            raise damaged(self.path, f"it has {self.spec(spec.key)} in place of {spec}")
        box = tuple(slice(o, o + size) for o, size in zip(offsets, out.shape, strict=True))
        fits = all(part.stop <= size for part, size in zip(box, spec.shape, strict=True))
        assert fits and out.dtype == spec.dtype, (spec, offsets, out.shape, out.dtype)
        if out.numel() == 0:
            return
        if not spec.shape:
            out = out.reshape(1)  # a scalar is read as a row
            box = (slice(0, 1),)
        row_shape = spec.shape[1:]
        row_bytes = math.prod(row_shape) * spec.dtype.itemsize
        start = self._data_start + self._entries[spec.key][1] + box[0].start * row_bytes
        is_rows = tuple(out.shape[1:]) == row_shape
        with _reading(self.path) as file:
            file.seek(start)
            if is_rows and out.is_contiguous() and out.device.type == "cpu":
                _fill(file, self.path, out)
                return
            for first, last in row_blocks(0, len(out), row_bytes):
                target = out[first:last]
                rows = torch.empty((len(target), *row_shape), dtype=spec.dtype)
                _fill(file, self.path, rows)
                target.copy_(rows[(slice(None), *box[1:])])


def row_blocks(start: int, stop: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut rows start … stop - 1 into runs (first, last + 1) of about BLOCK_BYTES."""
    size = max(1, BLOCK_BYTES // max(1, row_bytes))
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def _encode_header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for spec in specs:
        start, end = end, end + spec.num_bytes
        header[spec.key] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values start aligned
    return len(text).to_bytes(8, "little") + text


def _read_header(path: Path) -> tuple[dict[str, tuple[TensorSpec, int]], int, dict[str, str]]:
    """Give (tensor, first byte) by key, where the values start, and the metadata.

    Checks that the values fill the file exactly.
    """
    with _reading(path) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8) or b"", "little")
        if file_bytes < 8 or length > min(file_bytes - 8, MAX_HEADER_BYTES):
            raise damaged(path, "it is cut short, or is no safetensors file")
        text = file.read(length) or b""
    try:
        header = json.loads(text)
        metadata = dict(header.pop("__metadata__", None) or {})
        entries = {key: _parse_entry(key, value) for key, value in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise damaged(path, "its header is not that of a safetensors file") from None
    end = 0
    for spec, start in sorted(entries.values(), key=lambda entry: (entry[1], entry[0].num_bytes)):
        if start != end:
            raise damaged(path, f"the values of {spec.key} do not follow those before it")
        end += spec.num_bytes
    if 8 + length + end != file_bytes:
        raise damaged(path, f"it has {file_bytes} bytes and describes {8 + length + end}")
    return entries, 8 + length, metadata


def _parse_entry(key: str, value: dict[str, list[int]]) -> tuple[TensorSpec, int]:
    """Read one entry of a header. Raises ValueError, TypeError or KeyError when it is not one."""
    spec = TensorSpec(key, DTYPES[str(value["dtype"])], tuple(value["shape"]))
    start, end = value["data_offsets"]
    numbers = (*spec.shape, start, end)
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        raise ValueError(key)
    if end - start != spec.num_bytes:
        raise ValueError(key)
    return spec, start


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[io.FileIO]:
    """Open a file unbuffered; whatever the disk refuses becomes a CheckpointError."""
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _fill(file: io.FileIO, path: Path, out: Tensor) -> None:
    """Read the next bytes of a file into a contiguous CPU tensor."""
    rest = _bytes_of(out)
    while len(rest):
        count = file.readinto(rest)
        if not count:
            raise damaged(path, "it is cut short")
        rest = rest[count:]


def _bytes_of(tensor: Tensor) -> memoryview:
    """Give the memory of a contiguous CPU tensor."""
    assert tensor.is_contiguous()
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
