"""A folder of transformers as a model of ours: configuration, tokenizer, and rows of its tensors.

Whatever its config.json says that our model does not compute is an error which names the field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from megatron.checkpoint.files import read_json_object
from megatron.checkpoint.safetensors_file import row_blocks
from megatron.config import Config
from megatron.convert.fields import Fields
from megatron.convert.hf_architecture import LM_HEAD, Architecture
from megatron.convert.hf_folder import HfFolder
from megatron.convert.hf_gpt_bigcode import GPT_BIGCODE
from megatron.convert.hf_starcoder2 import STARCODER2
from megatron.convert.imported import GENERATION_CONFIG, Import, ImportedTensor, check_model
from megatron.convert.mapping import MappedTensor, invert
from megatron.errors import CheckpointError
from megatron.options import DataConfig, ModelConfig, PrecisionConfig, TokenizerConfig
from megatron.tokenizer.interface import Tokenizer
from megatron.tokenizer.tokenizer import build_tokenizer

ARCHITECTURES = (GPT_BIGCODE, STARCODER2)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def open_hf(path: Path, *, accepts_exact_gelu: bool) -> Import:
    """Open a folder and check all of it but the values of its weights.

    accepts_exact_gelu: take a model with exact GELU all the same, to be computed with the tanh formula.
    Raises CheckpointError for what is missing, damaged, or beyond our model; DataError for a broken tokenizer.
    """
    folder = HfFolder.open(path)
    fields = Fields(read_json_object(path / "config.json"), str(path / "config.json"))
    architecture = architecture_named(fields)
    model = architecture.read_fields(fields, accepts_exact_gelu)
    check_model(model, fields.where)
    num_rows = model.vocab_size
    options, tokenizer = _tokenizer(path)
    notes = []
    if tokenizer is None:
        notes.append(f"no tokenizer.json in {path}: the checkpoint has no tokenizer")
    else:
        model = replace(model, vocab_size=tokenizer.vocab_size)
        notes += _tokenizer_notes(fields, tokenizer, num_rows)
    weights = _Weights.of(folder, architecture)
    weights.check_sizes(model, num_rows)
    theirs = architecture.map(replace(model, vocab_size=num_rows))
    weights.check_tensors(theirs)
    if not model.untie_embeddings_and_output_weights and LM_HEAD in weights.names:
        weights.check_tied()
    generation = path / GENERATION_CONFIG
    return Import(
        origin=path.absolute().name,
        config=Config(
            model=model,
            precision=weights.precision,
            data=DataConfig(seq_length=model.max_position_embeddings),
            tokenizer=options,
        ),
        tensors=[
            ImportedTensor(tensor.name, tensor.shape, _blocks(folder, tensor))
            for tensor in invert(theirs)
        ],
        tokenizer=tokenizer,
        generation_config=read_json_object(generation) if generation.is_file() else None,
        notes=tuple(notes),
    )


def architecture_named(fields: Fields) -> Architecture:
    """Give the architecture of a config.json. Raises CheckpointError if it is none that is converted."""
    for architecture in ARCHITECTURES:
        if fields.values.get("model_type") == architecture.model_type:
            return architecture
    known = " and ".join(
        f"{one.model_type} ({one.class_name.removesuffix('ForCausalLM')})" for one in ARCHITECTURES
    )
    raise fields.refusal("model_type", f"what is converted is {known}")


def _tokenizer(path: Path) -> tuple[TokenizerConfig, Tokenizer | None]:
    """Load the folder's own tokenizer, if it has one that is read here."""
    if not (path / "tokenizer.json").is_file():
        return TokenizerConfig(), None
    options = TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(path))
    return options, build_tokenizer(options)


def _tokenizer_notes(fields: Fields, tokenizer: Tokenizer, num_rows: int) -> list[str]:
    """Say where tokenizer and configuration differ; more tokens than rows are an error."""
    size = tokenizer.vocab_size
    if size > num_rows:
        raise fields.refusal("vocab_size", f"its tokenizer.json has {size} ids")
    notes = []
    if size < num_rows:
        notes.append(
            f"the tokenizer has {size:,} ids and the embedding {num_rows:,} rows: the rest is padding, "
            f"which is kept here and left out of exports"
        )
    eos = fields.values.get("eos_token_id")
    if eos is not None and eos != tokenizer.eod:
        notes.append(
            f"config.json ends texts with id {eos}, the tokenizer with {tokenizer.eod}: the tokenizer's is taken"
        )
    return notes


@dataclass(frozen=True)
class _Weights:
    """The tensors of a folder that are weights, against what its config.json makes of them."""

    folder: HfFolder
    names: set[str]
    word_embeddings: str

    @classmethod
    def of(cls, folder: HfFolder, architecture: Architecture) -> _Weights:
        names = {name for name in folder.names() if not architecture.constants.fullmatch(name)}
        return cls(folder, names, architecture.word_embeddings)

    @property
    def precision(self) -> PrecisionConfig:
        """What the weights were stored in, as the arithmetic that wrote them."""
        dtype = self.folder.dtype(self.word_embeddings)
        return PrecisionConfig(bf16=dtype == torch.bfloat16, fp16=dtype == torch.float16)

    def check_sizes(self, model: ModelConfig, num_rows: int) -> None:
        """Raise CheckpointError for sizes that the weights rule out, before lists of such sizes are made."""
        name, shape = self.word_embeddings, [num_rows, model.hidden_size]
        found = list(self.folder.shape(name)) if name in self.names else "missing"
        if found != shape:
            raise self._other_model(f"{name} is {found} and has to be {shape}")
        if model.num_layers > len(self.names):
            raise self._other_model(
                f"it has {len(self.names)} tensors for {model.num_layers} layers"
            )

    def check_tensors(self, expected: list[MappedTensor]) -> None:
        """Raise CheckpointError for the first tensor that is missing, has no place, or another shape or dtype."""
        shapes = {tensor.name: tensor.shape for tensor in expected}
        missing = [name for name in shapes if name not in self.names]
        # A tied head may be stored too; it is compared with the embedding.
        extra = sorted(self.names - set(shapes) - {LM_HEAD})
        if LM_HEAD in self.names:
            shapes.setdefault(LM_HEAD, shapes[self.word_embeddings])
        if missing:
            raise self._other_model(f"it lacks {missing[0]}")
        if extra:
            raise self._other_model(f"it has {extra[0]}, which has no place in it")
        for name, shape in shapes.items():
            found = self.folder.shape(name)
            if found != shape:
                raise self._other_model(f"{name} is {list(found)} and has to be {list(shape)}")
            if self.folder.dtype(name) not in DTYPES:
                raise CheckpointError(
                    f"{self.folder.path} has {name} in {self.folder.dtype(name)}; weights are read in float32, "
                    f"bfloat16 and float16"
                )

    def check_tied(self) -> None:
        """Raise CheckpointError if a stored LM head is not the embedding that config.json says it is."""
        folder, names = self.folder, (LM_HEAD, self.word_embeddings)
        rows, columns = folder.shape(LM_HEAD)
        for start, stop in row_blocks(0, rows, columns * 4):
            parts = (folder.read(name, start, stop).float() for name in names)
            if not torch.equal(*(part.view(torch.int32) for part in parts)):
                raise CheckpointError(
                    f"{folder.path} has a {LM_HEAD} that differs from {self.word_embeddings}, and its config.json "
                    f"ties the two; where the head is its own, set tie_word_embeddings to false"
                )

    def _other_model(self, problem: str) -> CheckpointError:
        return CheckpointError(
            f"{self.folder.path} does not hold the model of its config.json: {problem}"
        )


def _blocks(folder: HfFolder, tensor: MappedTensor) -> Callable[[], Iterator[Tensor]]:
    def blocks() -> Iterator[Tensor]:
        for rows in tensor.rows:
            row_bytes = 4 * tensor.num_values // tensor.shape[0]
            for start, stop in row_blocks(rows.start, rows.stop, row_bytes):
                yield folder.read(rows.name, start, stop)

    return blocks
