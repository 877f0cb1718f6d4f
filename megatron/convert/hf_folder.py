"""The weights of a Hugging Face folder: one safetensors file, or several with an index. Never a pickle.

Knows nothing of what the tensors are for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron.checkpoint.files import read_json_object
from megatron.checkpoint.layout import METADATA_FILE, TRACKER
from megatron.checkpoint.safetensors_file import SafetensorsReader, TensorSpec
from megatron.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def is_hf_folder(path: Path) -> bool:
    """Tell a folder that transformers loads from one of ours, a run's or a checkpoint's."""
    if (path / TRACKER).exists() or (path / METADATA_FILE).exists():
        return False
    if any((path / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        return True
    config = path / "config.json"
    return config.is_file() and "model_type" in read_json_object(config)


@dataclass(frozen=True)
class HfFolder:
    """The tensors of one folder by name. Raises CheckpointError for what is missing or damaged."""

    path: Path
    _specs: dict[str, TensorSpec]
    _files: dict[str, SafetensorsReader]  # by name of the tensor

    @classmethod
    def open(cls, path: Path) -> HfFolder:
        """Read the headers of all files and check them against the index."""
        if not path.is_dir():
            raise CheckpointError(f"{path} is not a folder; give the local folder of a model")
        if (path / SINGLE_FILE).is_file():
            reader = SafetensorsReader(path / SINGLE_FILE)
            specs = _specs(reader)
            return cls(path, specs, dict.fromkeys(specs, reader))
        if (path / INDEX_FILE).is_file():
            return _open_shards(path)
        for name in PICKLES:
            if (path / name).is_file():
                raise CheckpointError(
                    f"{path} has its weights in {name}, a pickle, which can run code when it is loaded and is "
                    f'not read here; where you trust it, make safetensors of it: python -c "from transformers '
                    f"import AutoModelForCausalLM as M; M.from_pretrained('{path}', torch_dtype='auto')"
                    f".save_pretrained('{path}')\""
                )
        raise CheckpointError(f"{path} has neither {SINGLE_FILE} nor {INDEX_FILE}")

    def names(self) -> list[str]:
        """Name all tensors."""
        return list(self._specs)

    def shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of a tensor."""
        return self._specs[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Give the dtype of a tensor as stored."""
        return self._specs[name].dtype

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Read rows start … stop - 1 of a tensor."""
        spec = self._specs[name]
        out = torch.empty((stop - start, *spec.shape[1:]), dtype=spec.dtype)
        self._files[name].read_box(spec, (start, *(0 for _ in spec.shape[1:])), out)
        return out


def _specs(reader: SafetensorsReader) -> dict[str, TensorSpec]:
    names = reader.keys()  # a list: the reader is no dict
    return {name: reader.spec(name) for name in names}


def _open_shards(path: Path) -> HfFolder:
    index = path / INDEX_FILE
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in places.values()
    ):
        raise CheckpointError(f"{index} is damaged: its weight_map does not name files beside it")
    specs: dict[str, TensorSpec] = {}
    files: dict[str, SafetensorsReader] = {}
    for file in dict.fromkeys(places.values()):
        if not (path / file).is_file():
            raise CheckpointError(
                f"{path / file} is missing, and {INDEX_FILE} names it; copy it again"
            )
        reader = SafetensorsReader(path / file)
        for name, spec in _specs(reader).items():
            if places.get(name) != file:
                raise CheckpointError(
                    f"{path / file} has {name}, which {INDEX_FILE} does not place there"
                )
            specs[name], files[name] = spec, reader
    missing = sorted(set(places) - set(specs))
    if missing:
        name = missing[0]
        raise CheckpointError(
            f"{path / places[name]} lacks {name}, which {INDEX_FILE} places there"
        )
    return HfFolder(path, specs, files)
