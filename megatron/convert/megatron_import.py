"""A checkpoint of BigCode's Megatron-LM as a model of ours: the parts of all ranks put together.

Which dim of a tensor is cut over tensor parallel ranks, and which tensors every rank has a copy of, follows from
Megatron's layers. Optimizer state is not read: it is laid out for one TP and PP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from megatron.checkpoint.safetensors_file import row_blocks
from megatron.convert.imported import Import, ImportedTensor
from megatron.convert.megatron_args import config_from_args, model_from_args
from megatron.convert.megatron_ranks import Part, find_folder, gather, read_grid
from megatron.errors import CheckpointError, ConfigError
from megatron.options import ModelConfig, TokenizerConfig
from megatron.tokenizer.tokenizer import build_tokenizer

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WORD_EMBEDDINGS, TIED_HEAD = "embedding.word_embeddings.weight", "word_embeddings_for_head.weight"


def open_megatron(
    path: Path,
    iteration: int | None,
    *,
    tokenizer: TokenizerConfig | None,
    accepts_exact_gelu: bool,
) -> Import:
    """Open a run's folder or one of its checkpoints and check all of it but the values of its weights.

    tokenizer: the one that the model was trained with; without it every row of the embedding counts as a token.
    Raises CheckpointError for what is missing, damaged, refused, or beyond our model.
    """
    folder = find_folder(path, iteration)
    grid = read_grid(folder)
    first = grid[0][0]
    model = model_from_args(first.arguments, accepts_exact_gelu=accepts_exact_gelu)
    for rank in (rank for stage in grid for rank in stage):
        same = model_from_args(rank.arguments, accepts_exact_gelu=accepts_exact_gelu)
        if same != model or rank.iteration != first.iteration:
            raise CheckpointError(
                f"{folder / rank.name} is of another run or iteration than {first.name}; copy all ranks "
                f"of one checkpoint"
            )
    parts = gather(folder, grid, model.num_layers)
    tensors = _tensors(folder, model, parts)
    config = config_from_args(first.arguments, model)
    notes, built = [], None
    if tokenizer is None:
        notes.append(
            f"no tokenizer given (--tokenizer-file): all {model.vocab_size:,} rows of the embedding count as tokens"
        )
    else:
        built = build_tokenizer(tokenizer)
        if built.vocab_size > model.vocab_size:
            raise ConfigError(
                f"the tokenizer has {built.vocab_size} ids and the embedding {model.vocab_size} rows; give the "
                f"tokenizer that the model was trained with"
            )
        config = replace(
            config, model=replace(model, vocab_size=built.vocab_size), tokenizer=tokenizer
        )
    consumed = first.arguments.values.get("consumed_train_samples")
    return Import(
        origin=f"{folder.absolute().parent.name}/{folder.name}",
        config=config,
        tensors=tensors,
        iteration=first.iteration,
        consumed_samples=consumed if type(consumed) is int and consumed > 0 else 0,
        tokenizer=built,
        notes=tuple(notes),
    )


Split = Literal["rows", "columns", "copies"]


def _tensors(
    folder: Path, model: ModelConfig, parts: dict[str, list[Part]]
) -> list[ImportedTensor]:
    """Describe our tensors as parts of theirs; raise CheckpointError unless every part has its use and shape."""
    merge = _Merge(folder, parts)
    vocab, hidden = model.padded_vocab_size, model.hidden_size
    projection = model.num_attention_heads * model.head_dim
    has_bias = not model.disable_bias_linear
    is_tied = not model.untie_embeddings_and_output_weights
    result = [
        merge.take(
            WORD_EMBEDDINGS,
            (vocab, hidden),
            "rows",
            # Behind a pipeline the last stage has a copy of its own.
            copy=TIED_HEAD if is_tied and TIED_HEAD in parts else None,
        ),
        merge.take(
            "embedding.position_embeddings.weight",
            (model.max_position_embeddings, hidden),
            "copies",
        ),
    ]

    def linear(name: str, rows: int, columns: int, split: Split) -> Iterator[ImportedTensor]:
        yield merge.take(f"{name}.weight", (rows, columns), split)
        if has_bias:
            yield merge.take(f"{name}.bias", (rows,), "rows" if split == "rows" else "copies")

    def norm(name: str) -> Iterator[ImportedTensor]:
        for kind in ("weight", "bias"):
            yield merge.take(f"{name}.{kind}", (hidden,), "copies")

    for number in range(model.num_layers):
        layer = f"layers.{number}"
        attention = f"{layer}.self_attention"
        result += norm(f"{layer}.input_layernorm")
        if model.attention_head_type == "multiquery":
            result += linear(f"{attention}.query", projection, hidden, "rows")
            result += linear(f"{attention}.key_value", 2 * model.head_dim, hidden, "copies")
        else:
            for kind, columns in (("weight", (hidden,)), ("bias", ())):
                if kind == "weight" or has_bias:
                    result += merge.split_heads(
                        attention, kind, columns, model.num_attention_heads, model.head_dim
                    )
        result += linear(f"{attention}.dense", hidden, projection, "columns")
        result += norm(f"{layer}.post_attention_layernorm")
        result += linear(f"{layer}.mlp.dense_h_to_4h", model.ffn_size, hidden, "rows")
        result += linear(f"{layer}.mlp.dense_4h_to_h", hidden, model.ffn_size, "columns")
    result += norm("final_layernorm")
    if not is_tied:
        result.append(merge.take("output_layer.weight", (vocab, hidden), "rows"))
    merge.check_all_used()
    return result


class _Merge:
    """Puts the parts of tensor parallel ranks together."""

    def __init__(self, folder: Path, parts: dict[str, list[Part]]) -> None:
        self._folder, self._parts = folder, parts
        self._unused = set(parts)

    def take(
        self, name: str, shape: tuple[int, ...], split: Split, *, copy: str | None = None
    ) -> ImportedTensor:
        """Describe the tensor of a name and whole shape. copy: another name that holds the same values."""
        part_shape = list(shape)
        if split != "copies":
            part_shape[split == "columns"] //= self._tp_size
        parts = self._checked(name, tuple(part_shape), shape)
        copies = self._checked(copy, tuple(part_shape), shape) if copy is not None else []
        blocks: Callable[[], Iterator[Tensor]]
        if split == "columns":
            blocks = lambda: _columns(parts)  # noqa: E731
        elif split == "copies":
            blocks = lambda: _same(name, parts)  # noqa: E731
        else:
            groups = (
                list(zip(parts, copies, strict=True)) if copies else [(part,) for part in parts]
            )
            blocks = lambda: (block for group in groups for block in _same(name, group))  # noqa: E731
        return ImportedTensor(name, shape, blocks)

    def split_heads(
        self, attention: str, kind: str, columns: tuple[int, ...], num_heads: int, head_dim: int
    ) -> list[ImportedTensor]:
        """Describe query and key_value of query_key_value, whose rows are [heads, (query, key, value), d]."""
        name, d = f"{attention}.query_key_value.{kind}", head_dim
        whole = (3 * num_heads * d, *columns)
        parts = self._checked(name, (whole[0] // self._tp_size, *columns), whole)

        def rows_of(first: int, count: int) -> Callable[[], Iterator[Tensor]]:
            def blocks() -> Iterator[Tensor]:
                for part in parts:
                    for head in range(0, part.tensor.shape[0], 3 * d):
                        yield part.tensor.read(head + first, head + first + count)

            return blocks

        return [
            ImportedTensor(f"{attention}.query.{kind}", (num_heads * d, *columns), rows_of(0, d)),
            ImportedTensor(
                f"{attention}.key_value.{kind}", (2 * num_heads * d, *columns), rows_of(d, 2 * d)
            ),
        ]

    def check_all_used(self) -> None:
        """Raise CheckpointError for a tensor that has no place in the model."""
        if self._unused:
            name = min(self._unused)
            raise CheckpointError(
                f"{self._folder / self._parts[name][0].rank} has {name}, which has no place in the model of its args"
            )

    @property
    def _tp_size(self) -> int:
        return len(next(iter(self._parts.values())))

    def _checked(self, name: str, shape: tuple[int, ...], whole: tuple[int, ...]) -> list[Part]:
        """Give the parts of a name, all of the shape and of a dtype that is read."""
        if name not in self._parts:
            raise CheckpointError(f"{self._folder} lacks {name}, which the model of its args has")
        self._unused.discard(name)
        for part in self._parts[name]:
            found = part.tensor
            is_even = all(size % own == 0 for size, own in zip(whole, shape, strict=True) if own)
            if found.shape != shape or not is_even or found.dtype not in DTYPES:
                raise CheckpointError(
                    f"{self._folder / part.rank} has {name} as {list(found.shape)} in {found.dtype}; by its args "
                    f"it is {list(shape)} of {list(whole)}, in float32, bfloat16 or float16"
                )
        return self._parts[name]


def _blocks_of(part: Part, num_parts: int = 1) -> Iterator[tuple[int, int]]:
    """Cut the rows of a part into runs that are small for num_parts of it together."""
    rows = part.tensor.shape[0]
    row_bytes = 4 * num_parts * (part.tensor.shape[1] if len(part.tensor.shape) > 1 else 1)
    return row_blocks(0, rows, row_bytes)


def _columns(parts: Sequence[Part]) -> Iterator[Tensor]:
    """Give the rows of parts that lie side by side."""
    for start, stop in _blocks_of(parts[0], len(parts)):
        yield torch.cat([part.tensor.read(start, stop) for part in parts], dim=1)


def _same(name: str, copies: Sequence[Part]) -> Iterator[Tensor]:
    """Give the rows of the first copy, having seen that all copies have the same bits."""
    for start, stop in _blocks_of(copies[0], len(copies)):
        first = copies[0].tensor.read(start, stop)
        for other in copies[1:]:
            # bits, so that nan equals nan; contiguous, as the file may hold a view
            values = other.tensor.read(start, stop)
            if values.dtype != first.dtype or not torch.equal(*map(_bits, (values, first))):
                raise CheckpointError(
                    f"{other.rank} and {copies[0].rank} have different values of {name}, of which every rank "
                    f"holds a copy: the checkpoint is damaged, or its ranks had drifted apart; copy it again"
                )
        yield first


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)
