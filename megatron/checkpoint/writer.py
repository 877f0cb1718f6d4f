"""A checkpoint as one process writes it: whole fp32 tensors in a known order, a run of rows at a time.

For tools, as `megatron.checkpoint.reader` is: needs no process group and no memory beyond what it is handed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from megatron.checkpoint import layout
from megatron.checkpoint.content_hash import ContentHash
from megatron.checkpoint.metadata import Chunk, TensorEntry, chunk_key
from megatron.checkpoint.safetensors_file import SafetensorsWriter, TensorSpec
from megatron.checkpoint.save import SideFolder, WrittenFile, encode_values, write_description


class CheckpointWriter:
    """Writes one checkpoint under a run's folder. Nothing counts before `publish`.

    As a context manager it closes its file; a writer that was not published leaves its side folder, which the next
    save there clears.
    """

    def __init__(self, root: Path, iteration: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Start a checkpoint of the tensors named in shapes, which `write` then gets in this order."""
        self._root, self._iteration, self._shapes = root, iteration, dict(shapes)
        self._side = SideFolder(root, iteration, layout.prepare_side_folder(root, iteration))
        self._content = ContentHash()
        self._weights = SafetensorsWriter(
            self._side.path / layout.rank_file(0),
            [TensorSpec(_key(name, shape), torch.float32, shape) for name, shape in shapes.items()],
            content=self._content,
        )
        self._is_closed = False

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_closed:
            self._weights.__exit__(kind, error, trace)
        self._content.__exit__(kind, error, trace)

    def write(self, name: str, values: Tensor) -> None:
        """Append the next values of a tensor in row-major order: fp32, whole or a run of its rows."""
        self._weights.write(_key(name, self._shapes[name]), values)
        self._content.wait()  # the caller may use the memory again

    def publish(self, *, state: Mapping[str, Any], config: Mapping[str, Any]) -> Path:
        """Force everything to disk, give the checkpoint its name and point the tracker at it. Gives its folder.

        Every tensor must have been written in full. state and config: JSON values.
        """
        self._weights.close()
        self._is_closed = True
        name = layout.rank_file(0)
        file = WrittenFile(name, self._weights.num_bytes, self._content.hexdigest())
        entries = {
            tensor: TensorEntry(
                shape, torch.float32, (Chunk(name, tuple(0 for _ in shape), shape),)
            )
            for tensor, shape in self._shapes.items()
        }
        write_description(self._side, 1, [file], encode_values(state, config), entries)
        return layout.publish(self._root, self._side.path, self._iteration)


def _key(name: str, shape: tuple[int, ...]) -> str:
    """Give the key of a tensor that lies whole in one file."""
    return chunk_key(name, [0] * len(shape))
