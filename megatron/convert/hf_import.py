"""A GPTBigCode folder of transformers as a model of ours: configuration, tokenizer, and rows of its tensors.

Whatever its config.json says that our model does not compute is an error which names the field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from megatron.checkpoint.files import read_json_object
from megatron.config import Config
from megatron.convert.fields import Fields
from megatron.convert.hf_folder import HfFolder
from megatron.convert.hf_gpt_bigcode import MODEL_TYPE
from megatron.convert.imported import Import, ImportedTensor, check_model, row_blocks
from megatron.convert.mapping import MappedTensor, invert, map_gpt_bigcode
from megatron.convert.source import GENERATION_CONFIG
from megatron.errors import CheckpointError
from megatron.options import DataConfig, ModelConfig, PrecisionConfig, TokenizerConfig
from megatron.tokenizer.tokenizer import Tokenizer, build_tokenizer

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WORD_EMBEDDINGS, LM_HEAD = "transformer.wte.weight", "lm_head.weight"
# transformers' names for the tanh formula; "gelu" is the exact one.
TANH_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
EXACT_GELU = "gelu"
# Constants that earlier versions of transformers stored with the weights: the causal mask and its fill value.
MASK = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
# Fields with one value, or none, that our model can honour, and what another would ask for.
FIXED: tuple[tuple[str, object, str], ...] = (
    ("scale_attn_weights", True, "scores are always divided by the root of the head's width here"),
    ("add_cross_attention", False, "there is no cross-attention here"),
    ("is_encoder_decoder", False, "there is no encoder here"),
    ("quantization_config", None, "quantised weights are not read; convert the original ones"),
    ("pruned_heads", {}, "a model with pruned heads has no place here"),
)


def open_hf(path: Path, *, accepts_exact_gelu: bool) -> Import:
    """Open a folder and check all of it but the values of its weights.

    accepts_exact_gelu: take a model with exact GELU all the same, to be computed with the tanh formula.
    Raises CheckpointError for what is missing, damaged, or beyond our model; DataError for a broken tokenizer.
    """
    folder = HfFolder.open(path)
    fields = Fields(read_json_object(path / "config.json"), str(path / "config.json"))
    model = model_from_gpt_bigcode(fields, accepts_exact_gelu=accepts_exact_gelu)
    num_rows = model.vocab_size
    options, tokenizer = _tokenizer(path)
    notes = []
    if tokenizer is None:
        notes.append(f"no tokenizer.json in {path}: the checkpoint has no tokenizer")
    else:
        model = replace(model, vocab_size=tokenizer.vocab_size)
        notes += _tokenizer_notes(fields, tokenizer, num_rows)
    names = _weight_names(folder)
    _check_sizes(folder, names, model, num_rows)
    theirs = map_gpt_bigcode(replace(model, vocab_size=num_rows))
    _check_tensors(folder, names, theirs)
    if not model.untie_embeddings_and_output_weights and LM_HEAD in names:
        _check_tied(folder)
    generation = path / GENERATION_CONFIG
    return Import(
        origin=path.absolute().name,
        config=Config(
            model=model,
            precision=_precision(folder),
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


def model_from_gpt_bigcode(fields: Fields, *, accepts_exact_gelu: bool) -> ModelConfig:
    """Give the model of a config.json, all rows of its embedding counted as tokens."""
    if fields.values.get("model_type") != MODEL_TYPE:
        raise fields.refusal("model_type", f"what is converted is {MODEL_TYPE} (GPTBigCode)")
    for name, value, what in FIXED:
        fields.require(name, [value], what)
    fields.require(
        "activation_function",
        [*TANH_GELU, *([EXACT_GELU] if accepts_exact_gelu else [])],
        f"the model here has GELU by its tanh formula ({', '.join(TANH_GELU)}); --gelu-as-tanh takes "
        f"{EXACT_GELU!r} as that",
    )
    heads, is_multi_query = fields.whole("n_head"), fields.flag("multi_query", True)
    fields.require(
        "num_key_value_heads",
        [1 if is_multi_query else heads],
        f"multi_query is {is_multi_query} and n_head {heads}",
    )
    dropout = fields.number("resid_pdrop", 0.1)
    if fields.number("embd_pdrop", 0.1) != dropout:
        raise fields.refusal(
            "embd_pdrop",
            f"resid_pdrop is {dropout} and one --hidden-dropout serves both here; dropout matters to "
            f"training only: give both the value to train with",
        )
    rows = fields.whole("vocab_size")
    model = ModelConfig(
        num_layers=fields.whole("n_layer"),
        hidden_size=fields.whole("n_embd"),
        ffn_hidden_size=fields.whole("n_inner", 4 * fields.whole("n_embd")),
        num_attention_heads=heads,
        attention_head_type="multiquery" if is_multi_query else "multihead",
        max_position_embeddings=fields.whole("n_positions"),
        layernorm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        hidden_dropout=dropout,
        attention_dropout=fields.number("attn_pdrop", 0.1),
        init_method_std=fields.number("initializer_range", 0.02),
        untie_embeddings_and_output_weights=not fields.flag("tie_word_embeddings", True),
        vocab_size=rows,
        padded_vocab_size=rows,
    )
    check_model(model, fields.where)
    return model


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


def _weight_names(folder: HfFolder) -> set[str]:
    return {name for name in folder.names() if not MASK.fullmatch(name)}


def _check_sizes(folder: HfFolder, names: set[str], model: ModelConfig, num_rows: int) -> None:
    """Raise CheckpointError for sizes that the weights rule out, before lists of such sizes are made."""
    shape = (num_rows, model.hidden_size)
    found = list(folder.shape(WORD_EMBEDDINGS)) if WORD_EMBEDDINGS in names else "missing"
    if found != list(shape):
        raise CheckpointError(
            f"{folder.path} does not hold the model of its config.json: {WORD_EMBEDDINGS} is {found} and "
            f"has to be {list(shape)}"
        )
    if model.num_layers > len(names):
        raise CheckpointError(
            f"{folder.path} does not hold the model of its config.json: it has {len(names)} tensors for "
            f"{model.num_layers} layers"
        )


def _check_tensors(folder: HfFolder, names: set[str], expected: list[MappedTensor]) -> None:
    """Raise CheckpointError for the first tensor that is missing, has no place, or another shape or dtype."""
    shapes = {tensor.name: tensor.shape for tensor in expected}
    missing = [name for name in shapes if name not in names]
    # A tied head may be stored too; it is compared with the embedding.
    extra = sorted(names - set(shapes) - {LM_HEAD})
    if LM_HEAD in names:
        shapes.setdefault(LM_HEAD, shapes[WORD_EMBEDDINGS])
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which has no place in it"
        raise CheckpointError(
            f"{folder.path} does not hold the model of its config.json: it {what}"
        )
    for name, shape in shapes.items():
        if folder.shape(name) != shape:
            raise CheckpointError(
                f"{folder.path} does not hold the model of its config.json: {name} is "
                f"{list(folder.shape(name))} and has to be {list(shape)}"
            )
        if folder.dtype(name) not in DTYPES:
            raise CheckpointError(
                f"{folder.path} has {name} in {folder.dtype(name)}; weights are read in float32, bfloat16 "
                f"and float16"
            )


def _check_tied(folder: HfFolder) -> None:
    """Raise CheckpointError if a stored LM head is not the embedding that config.json says it is."""
    rows, columns = folder.shape(LM_HEAD)
    for start, stop in row_blocks(0, rows, columns * 4):
        parts = (folder.read(name, start, stop).float() for name in (LM_HEAD, WORD_EMBEDDINGS))
        if not torch.equal(*(part.view(torch.int32) for part in parts)):
            raise CheckpointError(
                f"{folder.path} has a {LM_HEAD} that differs from {WORD_EMBEDDINGS}, and its config.json ties "
                f"the two; where the head is its own, set tie_word_embeddings to false"
            )


def _precision(folder: HfFolder) -> PrecisionConfig:
    """Say what the weights were stored in, as the arithmetic that wrote them."""
    dtype = folder.dtype(WORD_EMBEDDINGS)
    return PrecisionConfig(bf16=dtype == torch.bfloat16, fp16=dtype == torch.float16)


def _blocks(folder: HfFolder, tensor: MappedTensor) -> Callable[[], Iterator[Tensor]]:
    def blocks() -> Iterator[Tensor]:
        for rows in tensor.rows:
            row_bytes = 4 * tensor.num_values // tensor.shape[0]
            for start, stop in row_blocks(rows.start, rows.stop, row_bytes):
                yield folder.read(rows.name, start, stop)

    return blocks
