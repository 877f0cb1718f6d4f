"""The shape of the network, and what is computed again instead of kept. Knows no processes but for one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron.errors import ConfigError
from megatron.option_field import derived, option, require


def pad_vocab_size(vocab_size: int, divisible_by: int, tensor_parallel_size: int) -> int:
    """Round the vocabulary up as Megatron does: to a multiple of divisible_by x tensor_parallel_size."""
    multiple = divisible_by * tensor_parallel_size
    return -(-vocab_size // multiple) * multiple


def read_position_embedding_type(text: str) -> str:
    """Take BigCode's names of position embeddings for Megatron's; any other is left as it is."""
    return {"rotary": "rope", "absolute": "learned_absolute"}.get(text, text)


def read_window(text: str) -> int:
    """Read --window-size: the tokens that one sees, or Megatron's pair of those seen on either side."""
    numbers = text.strip("()[] ").split(",")
    try:
        sizes = [int(number) for number in numbers]
    except ValueError:
        sizes = []
    if len(sizes) == 1:
        return sizes[0]
    if len(sizes) == 2 and sizes[0] >= 0 and sizes[1] == 0:
        return sizes[0] + 1
    raise ConfigError(
        f"--window-size {text}: give the tokens that one attends to, itself included (4096, Hugging Face's "
        f"sliding_window), or Megatron's pair of those before and after it (4095,0); none after, since "
        f"attention is causal; leave the option out to attend to all before (others write that -1,0)"
    )


# Beyond these no machine holds the model, and sizes in bytes no longer fit the numbers that libraries count them in.
MAX_LAYERS = 100_000
MAX_WIDTH = 1_000_000
MAX_POSITIONS = 1_000_000_000
RECOMPUTABLE = ("core_attn", "layernorm", "mlp_act")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network. Defaults are Megatron's."""

    num_layers: int = option(0, "transformer layers", minimum=1, maximum=MAX_LAYERS)
    hidden_size: int = option(0, "width of the residual stream", minimum=1, maximum=MAX_WIDTH)
    ffn_hidden_size: int | None = option(
        None, "width of the MLP (default 4 x hidden size)", minimum=1, maximum=16 * MAX_WIDTH
    )
    num_attention_heads: int = option(0, "query heads", minimum=1, maximum=MAX_WIDTH)
    kv_channels: int | None = option(
        None, "width of a head (default hidden size / heads)", minimum=1, maximum=MAX_WIDTH
    )
    attention_head_type: Literal["multihead", "multiquery"] = option(
        "multihead", "one key/value head for each query head, or one for all of them"
    )
    num_query_groups: int | None = option(
        None,
        "key/value heads, each shared by heads/groups query heads (grouped attention)",
        minimum=1,
    )
    group_query_attention: bool = option(False, "with --num-query-groups, as in Megatron-LM")
    position_embedding_type: Literal["learned_absolute", "rope"] = option(
        "learned_absolute",
        "a learned vector for each position, added to the embedding, or rotary embeddings of queries and keys "
        "(BigCode's names absolute and rotary are taken too)",
        parse=read_position_embedding_type,
    )
    max_position_embeddings: int = option(
        0,
        "positions, learned or rotary; at least the sequence length",
        minimum=1,
        maximum=MAX_POSITIONS,
    )
    rotary_base: float = option(
        10000.0, "with rope: the longest wavelength is about 2 pi times this", above=1.0
    )
    window_size: int | None = option(
        None,
        "sliding window: a token attends to itself and the N - 1 before it (Hugging Face's sliding_window); "
        "Megatron's pair N-1,0 says the same",
        metavar="N",
        parse=read_window,
        minimum=1,
    )
    layernorm_epsilon: float = option(1e-5, "added to the variance in LayerNorm", above=0.0)
    hidden_dropout: float = option(
        0.1, "dropout after embedding, attention and MLP", minimum=0.0, below=1.0
    )
    attention_dropout: float = option(
        0.1, "dropout of attention probabilities", minimum=0.0, below=1.0
    )
    init_method_std: float = option(
        0.02, "std of initial weights; outputs use std/sqrt(2 layers)", above=0.0
    )
    untie_embeddings_and_output_weights: bool = option(False, "give the LM head its own weight")
    disable_bias_linear: bool = option(False, "no bias in linear layers")
    recompute_granularity: Literal["selective", "full"] | None = option(
        None, "recompute in backward: attention only, or whole layers"
    )
    recompute_modules: tuple[str, ...] | None = option(
        None,
        "with selective: what is computed again, of core_attn (scores of the explicit attention backend; the "
        "default), layernorm (outputs of the norms) and mlp_act (of the MLP's GELU)",
        metavar="MODULE",
    )
    recompute_method: Literal["uniform", "block"] | None = option(
        None,
        "with full: every layer in chunks (uniform), or only the first ones of a stage (block)",
    )
    recompute_num_layers: int | None = option(
        None, "with full: layers a chunk (uniform), or layers recomputed (block)", minimum=1
    )
    attention_backend: Literal[
        "auto", "cudnn", "flash-attn", "flash", "sdpa", "tiled", "blocked", "explicit"
    ] = option(
        "auto",
        "attention kernel; auto takes the fastest that can run and logs why. flash is torch's FlashAttention, "
        "flash-attn the newest installed package of it",
    )
    deterministic_mode: bool = option(
        False,
        "on a GPU, let attention add gradients in a fixed order: a run that goes on repeats every bit. Slower: no cuDNN",
    )
    kernels: tuple[str, ...] = option(
        ("auto",),
        "implementation of the layers' other operations: auto (the fastest measured), fused (of csrc/), compiled "
        "(torch.compile) or reference; OPERATION=IMPLEMENTATION after it for one of them, such as "
        "layer_norm=compiled; product=library (torch's own) or product=onednn (in fp32 on a CPU) for those with "
        "weights",
        metavar="IMPLEMENTATION",
    )
    logits_chunk_size: int | None = option(
        None,
        "tokens whose logits exist at once; those of a micro-batch are then computed again in backward (default: "
        "all, once)",
        minimum=1,
    )
    make_vocab_size_divisible_by: int = option(
        128,
        "vocabulary is padded to this times the tensor parallel size",
        minimum=1,
        maximum=MAX_WIDTH,
    )
    vocab_size: int = derived(0)  # tokens of the tokenizer; set by whoever loads it
    padded_vocab_size: int = derived(0)  # rows of the embedding; pad_vocab_size()

    @property
    def head_dim(self) -> int:
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def has_rotary_positions(self) -> bool:
        return self.position_embedding_type == "rope"

    def window_within(self, seq_length: int) -> int | None:
        """Give --window-size where it hides any token of a sequence, else None."""
        is_narrow = self.window_size is not None and self.window_size < seq_length
        return self.window_size if is_narrow else None

    def recomputes(self, module: str) -> bool:
        """Whether one of RECOMPUTABLE is computed again in backward, by itself and not with its layer."""
        if self.recompute_granularity != "selective":
            return False
        return module in (self.recompute_modules or ("core_attn",))

    @property
    def allows_split_backward(self) -> bool:
        """Whether gradients of inputs and of weights may be computed at different times.

        What is computed again is there for one backward pass: each further one would compute it anew, or miss it.
        """
        recomputes = self.recomputes("layernorm") or self.recomputes("mlp_act")
        recomputes = recomputes or self.logits_chunk_size is not None
        return self.recompute_granularity != "full" and not recomputes

    @property
    def ffn_size(self) -> int:
        return self.ffn_hidden_size or 4 * self.hidden_size

    @property
    def query_groups(self) -> int:
        """Key/value heads: 1 for multi-query, one for each head for multi-head attention."""
        if self.num_query_groups is not None:
            return self.num_query_groups
        return 1 if self.attention_head_type == "multiquery" else self.num_attention_heads

    def check(self) -> None:
        require(
            self.kv_channels is not None or self.hidden_size % self.num_attention_heads == 0,
            f"--hidden-size {self.hidden_size} is not divisible by --num-attention-heads "
            f"{self.num_attention_heads}; change one of them or give --kv-channels",
        )
        require(
            self.num_attention_heads % self.query_groups == 0,
            f"--num-query-groups {self.query_groups} does not divide --num-attention-heads "
            f"{self.num_attention_heads}",
        )
        require(
            self.attention_head_type == "multihead" or self.num_query_groups in (None, 1),
            f"--attention-head-type multiquery has one key/value head, and --num-query-groups asks "
            f"for {self.num_query_groups}; leave one of them out",
        )
        require(
            not self.group_query_attention or self.num_query_groups is not None,
            "--group-query-attention needs --num-query-groups",
        )
        require(
            not self.has_rotary_positions or self.head_dim % 2 == 0,
            f"--position-embedding-type rope turns pairs of channels, and heads are {self.head_dim} wide; give an "
            f"even --kv-channels (default: --hidden-size / --num-attention-heads)",
        )
        require(
            self.has_rotary_positions or self.rotary_base == 10000.0,
            f"--rotary-base {self.rotary_base:g} needs --position-embedding-type rope",
        )
        require(
            self.recompute_granularity == "full"
            or (self.recompute_method is None and self.recompute_num_layers is None),
            "--recompute-method and --recompute-num-layers need --recompute-granularity full",
        )
        require(
            self.recompute_granularity == "selective" or self.recompute_modules is None,
            "--recompute-modules needs --recompute-granularity selective",
        )
        unknown = [name for name in self.recompute_modules or () if name not in RECOMPUTABLE]
        require(
            not unknown,
            f"--recompute-modules {' '.join(unknown)}: what can be computed again is {', '.join(RECOMPUTABLE)}; "
            f"whole layers are with --recompute-granularity full",
        )

    def check_tensor_parallel(self, tp_size: int) -> None:
        """Raise ConfigError unless heads and MLP split evenly over tp_size processes."""
        for flag, size in (
            ("--num-attention-heads", self.num_attention_heads),
            ("--ffn-hidden-size", self.ffn_size),
        ):
            require(
                size % tp_size == 0,
                f"--tensor-model-parallel-size {tp_size} does not divide {flag} {size}; "
                f"change one of them",
            )
