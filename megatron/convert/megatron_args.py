"""The arguments that BigCode's Megatron-LM keeps in a checkpoint, as a configuration of ours.

Whatever they say that our model does not compute is an error which names the argument.
"""

from __future__ import annotations

from megatron.config import Config
from megatron.convert.fields import Fields
from megatron.convert.imported import check_model
from megatron.convert.torch_file import Inert
from megatron.options import DataConfig, ModelConfig, PrecisionConfig

# Arguments with one value, or none, that our model can honour.
FIXED: tuple[tuple[str, object, str], ...] = (
    (
        "use_rotary_position_embeddings",
        False,
        "only learned, absolute positions are read from such checkpoints",
    ),
    (
        "add_position_embedding",
        True,
        "only learned, absolute positions are read from such checkpoints",
    ),
    ("apply_residual_connection_post_layernorm", False, "residuals go around LayerNorm here"),
    ("apply_layernorm_1p", False, "LayerNorm's weight is not stored minus one here"),
    ("normalization", "LayerNorm", "norms are LayerNorm here"),
    ("swiglu", False, "the MLP has no gate here"),
    ("squared_relu", False, "the activation is GELU here"),
    ("num_experts", None, "there are no experts here"),
    ("embed_layernorm", False, "there is no norm after the embedding here"),
    ("group_query_attention", False, "BigCode's checkpoints are multi-head or multi-query"),
    ("retro_add_retriever", False, "there is no retriever here"),
    ("glu_activation", None, "the MLP has no gate here"),
)
LEARNED_POSITIONS = ("absolute", "learned_absolute")
LEARNED_POSITIONS_IN_ENUM = (2,)  # BigCode's PositionEmbeddingType.absolute


def model_from_args(fields: Fields, *, accepts_exact_gelu: bool) -> ModelConfig:
    """Give the model of a rank's arguments, all rows of its embedding counted as tokens."""
    for name, value, what in FIXED:
        fields.require(name, [value], what)
    _check_positions(fields)
    is_tanh = fields.flag("bias_gelu_fusion", False) or fields.flag("openai_gelu", False)
    if not is_tanh and not accepts_exact_gelu:
        raise fields.refusal(
            "bias_gelu_fusion",
            "it computed exact GELU and the model here has the tanh formula; --gelu-as-tanh takes it as that",
        )
    hidden, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    head_type = fields.values.get("attention_head_type") or "multihead"
    fields.require("attention_head_type", ["multihead", "multiquery"], "heads are one of the two")
    rows = fields.whole("padded_vocab_size")
    channels = fields.whole("kv_channels", max(1, hidden // heads))
    model = ModelConfig(
        num_layers=fields.whole("num_layers"),
        hidden_size=hidden,
        ffn_hidden_size=fields.whole("ffn_hidden_size", 4 * hidden),
        num_attention_heads=heads,
        kv_channels=None if channels * heads == hidden else channels,
        attention_head_type="multiquery" if head_type == "multiquery" else "multihead",
        max_position_embeddings=fields.whole("max_position_embeddings"),
        layernorm_epsilon=fields.number("layernorm_epsilon", 1e-5),
        hidden_dropout=fields.number("hidden_dropout", 0.1),
        attention_dropout=fields.number("attention_dropout", 0.1),
        init_method_std=fields.number("init_method_std", 0.02),
        untie_embeddings_and_output_weights=fields.flag(
            "untie_embeddings_and_output_weights", False
        ),
        disable_bias_linear=not fields.flag("add_bias_linear", True),
        make_vocab_size_divisible_by=fields.whole("make_vocab_size_divisible_by", 128),
        vocab_size=rows,
        padded_vocab_size=rows,
    )
    check_model(model, fields.where)
    return model


def config_from_args(fields: Fields, model: ModelConfig) -> Config:
    """Give the configuration of the run that wrote the checkpoint, without its paths."""
    return Config(
        model=model,
        precision=PrecisionConfig(bf16=fields.flag("bf16", False), fp16=fields.flag("fp16", False)),
        data=DataConfig(
            seq_length=fields.whole("seq_length", model.max_position_embeddings),
            fim_rate=fields.number("fim_rate", 0.0),
            fim_spm_rate=fields.number("fim_spm_rate", 0.5),
        ),
    )


def _check_positions(fields: Fields) -> None:
    name = "position_embedding_type"
    value = fields.values.get(name)
    if isinstance(value, Inert):
        # By value, or as Python 3.11.0 to 3.11.3 do: getattr of the class, and the name.
        is_by_name = value.origin.endswith(".getattr") and value.arguments[1:] != ()
        name_in_enum = value.arguments[1] if is_by_name else None
        is_learned = (
            value.arguments == LEARNED_POSITIONS_IN_ENUM or name_in_enum in LEARNED_POSITIONS
        )
    else:
        is_learned = value is None or value in LEARNED_POSITIONS
    if not is_learned:
        raise fields.refusal(
            name, "only learned, absolute positions are read from such checkpoints"
        )
