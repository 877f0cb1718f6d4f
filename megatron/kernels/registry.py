"""Which implementation of each operation a model uses: decided once, before the model is built.

An implementation says itself where it cannot run. `auto` takes the first of an ordered list that can; a name
asked for that cannot run is the user's error. Knows nothing of layers or process groups.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron.errors import ConfigError
from megatron.kernels import cross_entropy, onednn_product
from megatron.kernels.attention import AttentionFunction, explicit_attention, sdpa_attention
from megatron.kernels.bias_dropout_residual import (
    bias_dropout_residual,
    bias_dropout_residual_layer_norm,
    fused_bias_dropout_residual,
    fused_bias_dropout_residual_layer_norm,
)
from megatron.kernels.bias_gelu import bias_gelu, fused_bias_gelu
from megatron.kernels.blocked_attention import blocked_attention
from megatron.kernels.compiled import (
    compiled_bias_dropout_residual,
    compiled_bias_dropout_residual_layer_norm,
    compiled_bias_gelu,
    compiled_layer_norm,
)
from megatron.kernels.cross_entropy import CrossEntropy
from megatron.kernels.dropout import Dropout
from megatron.kernels.fixed_order import keeping_order
from megatron.kernels.flash_attention import FlashLibrary, cudnn_attention, flash_attention
from megatron.kernels.fp8_product import fp8_product
from megatron.kernels.layer_norm import fused_layer_norm, layer_norm
from megatron.kernels.linear_product import Product, linear_product
from megatron.kernels.masked_softmax import fused_scaled_masked_softmax, scaled_masked_softmax


@dataclass(frozen=True)
class Situation:
    """What a choice may depend on."""

    device_type: str
    dtype: torch.dtype
    head_dim: int
    attention_dropout: float
    masks_documents: bool = False  # --reset-attention-mask
    has_window: bool = False  # --window-size, shorter than the sequences
    capability: tuple[int, int] | None = None  # of the GPU, as CUDA counts generations
    # --context-parallel-size: queries are a part of the keys' sequence
    splits_sequences: bool = False
    keeps_order: bool = False  # --deterministic-mode
    without_library: str | None = None  # why csrc/*.cu cannot be called
    flash_library: FlashLibrary | None = None  # that is installed
    has_fp8: bool = False  # --fp8-format
    cpu_kind: str = ""  # as `onednn_product.cpu_kind` names it

    @property
    def hides(self) -> str:
        """What hides more than causality does, by its options; empty if nothing."""
        options = {
            "--reset-attention-mask": self.masks_documents,
            "--window-size": self.has_window,
        }
        return " and ".join(flag for flag, is_given in options.items() if is_given)


@dataclass(frozen=True)
class AttentionImplementation:
    """One way to compute attention, with the reasons for and against it."""

    name: str
    function: AttentionFunction
    benefit: str
    obstacle: Callable[[Situation], str | None]  # why it cannot run there, None where it can


@dataclass(frozen=True)
class Choice:
    """One row of the table that a run logs."""

    operation: str
    name: str
    reason: str


@dataclass(frozen=True)
class Kernels:
    """The operations of a transformer layer and of the loss, and why each is the one it is."""

    attention: AttentionFunction
    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    bias_gelu: Callable[[Tensor, Tensor | None], Tensor]
    bias_dropout_residual: Callable[[Tensor, Tensor | None, Tensor, Dropout | None], Tensor]
    # the sum of the one before, and its layer norm
    bias_dropout_residual_layer_norm: Callable[
        [Tensor, Tensor | None, Tensor, Dropout | None, Tensor, Tensor, float],
        tuple[Tensor, Tensor],
    ]
    cross_entropy: CrossEntropy
    product: Product  # with the layers' weights
    output_product: Product  # with the LM head's
    stores_attention_probabilities: bool  # what selective recomputation is there to free
    choices: tuple[Choice, ...]


def _flash_obstacle(situation: Situation) -> str | None:
    if situation.hides and situation.device_type == "cpu":
        return f"cannot do {situation.hides} on a CPU"
    if situation.hides and situation.attention_dropout > 0:
        return f"has no --attention-dropout with {situation.hides}"
    if situation.device_type == "cpu":
        return "has no dropout on a CPU" if situation.attention_dropout > 0 else None
    if situation.dtype not in (torch.bfloat16, torch.float16):
        return f"needs --bf16 or --fp16 on a GPU, and the dtype is {situation.dtype}"
    if situation.capability is not None and situation.capability < (8, 0):
        major, minor = situation.capability
        return f"needs compute capability 8.0 (A100), and this GPU has {major}.{minor}"
    if situation.head_dim > 256:
        return f"takes heads up to 256 wide, and these are {situation.head_dim}"
    if situation.hides and situation.head_dim % 8:
        return (
            f"with {situation.hides} takes heads whose width is a multiple of 8, and these are "
            f"{situation.head_dim}"
        )
    return None


def _cudnn_obstacle(situation: Situation) -> str | None:
    if situation.device_type == "cpu":
        return "needs a GPU"
    if situation.dtype not in (torch.bfloat16, torch.float16):
        return f"needs --bf16 or --fp16, and the dtype is {situation.dtype}"
    if situation.hides:
        return f"cannot do {situation.hides}"
    if situation.splits_sequences:
        return "cannot do --context-parallel-size"
    if situation.keeps_order:
        return "adds gradients in no fixed order (--deterministic-mode)"
    if situation.attention_dropout * 16 % 1:
        # torch from 2.13 on refuses others, before that their rate was another one
        return f"drops by sixteenths, and --attention-dropout is {situation.attention_dropout:g}"
    if situation.capability is not None and situation.capability < (9, 0):
        major, minor = situation.capability
        return f"is fast from compute capability 9.0 (H100) on, and this GPU has {major}.{minor}"
    if situation.head_dim > 128 or situation.head_dim % 8:
        return f"takes heads up to 128 wide by steps of 8, and these are {situation.head_dim}"
    return None


def _library_obstacle(situation: Situation) -> str | None:
    if situation.flash_library is None:
        return (
            "needs a GPU and a package of FlashAttention for it: pip install flash-attn-4 (Hopper, Blackwell) or "
            "flash-attn"
        )
    if situation.dtype not in (torch.bfloat16, torch.float16):
        return f"needs --bf16 or --fp16, and the dtype is {situation.dtype}"
    if situation.attention_dropout > 0:
        return "has no --attention-dropout here"
    if situation.head_dim > 256 or situation.head_dim % 8:
        return f"takes heads up to 256 wide by steps of 8, and these are {situation.head_dim}"
    return None


def _runs_anywhere(situation: Situation) -> None:
    return None


_SDPA = AttentionImplementation(
    "sdpa", sdpa_attention, "torch's fused kernels, K/V shared by heads", _runs_anywhere
)
_FLASH = AttentionImplementation(
    "flash", flash_attention, "FlashAttention in torch", _flash_obstacle
)
_CUDNN = AttentionImplementation(
    "cudnn", cudnn_attention, "cuDNN's fused kernel, K/V shared by heads", _cudnn_obstacle
)
_BLOCKED = AttentionImplementation(
    "blocked",
    blocked_attention,
    "scores stay in the cache, shared K/V heads make large products, keyed dropout",
    _runs_anywhere,
)
_EXPLICIT = AttentionImplementation(
    "explicit", explicit_attention, "reference, softmax in fp32, keyed dropout", _runs_anywhere
)


_IMPLEMENTATIONS = {one.name: one for one in (_CUDNN, _FLASH, _SDPA, _BLOCKED, _EXPLICIT)}
ATTENTION_BACKENDS = ("auto", "flash-attn", *_IMPLEMENTATIONS)


def select_attention(backend: str, situation: Situation) -> tuple[AttentionImplementation, str]:
    """Choose by --attention-backend and give the reason. ConfigError if the one asked for cannot run."""
    if backend == "auto":
        return _select_fastest(situation)
    if backend == "flash-attn":
        return _select_library(situation)
    if backend not in _IMPLEMENTATIONS:
        raise ConfigError(
            f"--attention-backend {backend} is unknown; choose {', '.join(ATTENTION_BACKENDS)}"
        )
    chosen = _IMPLEMENTATIONS[backend]
    _require_none(chosen.obstacle(situation), backend)
    return chosen, f"asked for: {chosen.benefit}"


def _require_none(obstacle: str | None, backend: str) -> None:
    if obstacle is not None:
        raise ConfigError(f"--attention-backend {backend} {obstacle}; use --attention-backend auto")


def _select_library(situation: Situation) -> tuple[AttentionImplementation, str]:
    """Take the package of FlashAttention that is installed, and import it only now."""
    _require_none(_library_obstacle(situation), "flash-attn")
    library = situation.flash_library
    assert library is not None
    benefit = f"the package FlashAttention {library.generation}"
    attend = library.attention(in_fixed_order=situation.keeps_order)
    chosen = AttentionImplementation("flash-attn", attend, benefit, _library_obstacle)
    return chosen, f"asked for: {benefit}"


def _select_fastest(situation: Situation) -> tuple[AttentionImplementation, str]:
    if situation.device_type == "cpu":
        # measured, 8 heads of 32 sharing one, 512 positions, forward + backward: fp32 1.35 x, bf16 2.1 x
        # the speed of SDPA, which has no fused kernel with dropout on a CPU
        masks = f", keys hidden by {situation.hides} not touched" if situation.hides else ""
        return _BLOCKED, f"fastest on cpu: {_BLOCKED.benefit}{masks}"
    passed_over = []
    for one in ATTENTION_ORDER:
        obstacle = one.obstacle(situation)
        if obstacle is None:
            hidden = (
                f" with {situation.hides}, only of what a token sees" if situation.hides else ""
            )
            return one, f"fastest on {situation.device_type}{hidden}: {one.benefit}"
        passed_over.append(f"{one.name} {obstacle}")
    hidden = f"{situation.hides} by a mask of all pairs, slow if long: " if situation.hides else ""
    return _SDPA, f"{hidden}{_SDPA.benefit}; {'; '.join(passed_over)}"


# What `auto` tries in turn on a GPU; the rest is sdpa's own choice. Packages of FlashAttention have to be asked for:
# which widths and GPUs each takes is theirs to say, and none was measured here.
ATTENTION_ORDER = (_CUDNN, _FLASH)
IMPLEMENTATIONS = ("fused", "compiled", "reference")
_PRODUCTS = ("product=auto", "product=library", "product=onednn")


@dataclass(frozen=True)
class _Operation:
    """One operation beside attention, by each of IMPLEMENTATIONS that it has."""

    name: str
    reference: Any
    compiled: Any = None
    fused: Any = None

    def by(self, implementation: str) -> Any:
        """Give an implementation by its name, None where there is none."""
        return {"fused": self.fused, "compiled": self.compiled, "reference": self.reference}[
            implementation
        ]


OPERATIONS = (
    _Operation("layer_norm", layer_norm, compiled_layer_norm, fused_layer_norm),
    _Operation("bias_gelu", bias_gelu, compiled_bias_gelu, fused_bias_gelu),
    _Operation(
        "bias_dropout_residual",
        bias_dropout_residual,
        compiled_bias_dropout_residual,
        fused_bias_dropout_residual,
    ),
    _Operation(
        "bias_dropout_residual_layer_norm",
        bias_dropout_residual_layer_norm,
        compiled_bias_dropout_residual_layer_norm,
        fused_bias_dropout_residual_layer_norm,
    ),
    _Operation("cross_entropy", cross_entropy.REFERENCE, None, cross_entropy.FUSED),
    # of the explicit attention
    _Operation("softmax", scaled_masked_softmax, None, fused_scaled_masked_softmax),
)


def _requested(kernels: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """Read --kernels: of each operation what is asked for, and whether by its name. ConfigError if it says nothing."""
    names = [one.name for one in OPERATIONS]
    wanted = dict.fromkeys(names, ("auto", False))
    wanted["product"] = ("auto", False)
    for item in kernels:
        if item in _PRODUCTS:
            wanted["product"] = (item.partition("=")[2], True)
            continue
        name, is_one, implementation = item.rpartition("=")
        if implementation not in ("auto", *IMPLEMENTATIONS) or (is_one and name not in names):
            raise ConfigError(
                f"--kernels {item}: give auto, {', '.join(IMPLEMENTATIONS)}, or one of them for an operation, "
                f"as in layer_norm=compiled; operations are {', '.join(names)}; or {', '.join(_PRODUCTS)}"
            )
        wanted |= dict.fromkeys([name] if is_one else names, (implementation, bool(is_one)))
    return wanted


def _choose(
    operation: _Operation, wanted: str, is_named: bool, situation: Situation
) -> tuple[Any, Choice]:
    """Choose one operation's implementation. ConfigError if the one asked for cannot run."""
    obstacle = "needs a GPU" if situation.device_type == "cpu" else situation.without_library
    if wanted == "auto":
        wanted, reason = _fastest(operation, obstacle, situation)
    elif operation.by(wanted) is None:
        if is_named:
            raise ConfigError(
                f"--kernels {operation.name}={wanted}: there is none; leave it to auto"
            )
        wanted, reason = "reference", f"there is no {wanted} one"
    elif wanted == "fused" and obstacle is not None:
        given = f"{operation.name}=fused" if is_named else "fused"
        raise ConfigError(f"--kernels {given}: {obstacle}; use --kernels auto")
    else:
        reason = "asked for"
    return operation.by(wanted), Choice(operation.name, wanted, reason)


def _fastest(operation: _Operation, obstacle: str | None, situation: Situation) -> tuple[str, str]:
    if situation.device_type == "cpu":
        return "reference", "fastest on cpu"
    if obstacle is None and operation.fused is not None:
        return "fused", "one pass over memory each way (docs/kernels.md)"
    reason = f"fused cannot: {obstacle}" if operation.fused is not None else "there is no fused one"
    return ("reference" if operation.compiled is None else "compiled"), reason


def _choose_product(wanted: str, situation: Situation) -> tuple[Product, Product, Choice]:
    """Choose how products with the layers' weights and with the LM head's are computed. ConfigError if they cannot be."""
    if situation.has_fp8:
        if situation.capability is not None and situation.capability < (8, 9):
            major, minor = situation.capability
            raise ConfigError(
                f"--fp8-format needs compute capability 8.9 (L40S) or 9.0 (H100), and this GPU has {major}.{minor}; "
                f"leave it out"
            )
        if wanted != "auto":
            raise ConfigError(f"--kernels product={wanted} and --fp8-format: give one of them")
        reason = "asked for: 8 bits forward and for gradients of inputs, weights' in full"
        return fp8_product, linear_product, Choice("product", "fp8", reason)
    obstacle = onednn_product.obstacle(situation.device_type, situation.dtype)
    reason = "asked for" if wanted != "auto" else f"{situation.dtype}, the matrix units'"
    if wanted == "onednn" and obstacle is not None:
        raise ConfigError(f"--kernels product=onednn {obstacle}; use --kernels auto")
    if wanted == "auto" and obstacle is None and onednn_product.is_faster(situation.cpu_kind):
        wanted, reason = "onednn", f"twice MKL's speed in fp32 on {situation.cpu_kind}"
    if wanted == "onednn":
        product = onednn_product.onednn_product
        return product, product, Choice("product", "onednn", reason)
    return linear_product, linear_product, Choice("product", "library", reason)


def choose_kernels(
    attention_backend: str, situation: Situation, kernels: Sequence[str] = ("auto",)
) -> Kernels:
    """Choose every operation for a situation. ConfigError if an explicit choice cannot run."""
    attention, reason = select_attention(attention_backend, situation)
    wanted = _requested(kernels)
    product, output_product, product_choice = _choose_product(wanted["product"][0], situation)
    chosen = {one.name: _choose(one, *wanted[one.name], situation) for one in OPERATIONS}
    functions = {name: implementation for name, (implementation, _) in chosen.items()}
    softmax, attend = functions.pop("softmax"), attention.function
    if situation.keeps_order and situation.device_type == "cuda":
        reason += "; gradients in a fixed order"
        attend = keeping_order(attend) if attention in (_FLASH, _SDPA) else attend
    if attention.name == "explicit":
        attend = functools.partial(explicit_attention, softmax=softmax)
    elif wanted["softmax"][1]:
        raise ConfigError(
            f"--kernels softmax={wanted['softmax'][0]}: the softmax is --attention-backend explicit's, and this is "
            f"{attention.name}; leave it out"
        )
    else:
        del chosen["softmax"]
    return Kernels(
        attention=attend,
        **functions,
        product=product,
        output_product=output_product,
        stores_attention_probabilities=attention.name == "explicit",
        choices=(
            Choice("attention", attention.name, reason),
            product_choice,
            *(choice for _, choice in chosen.values()),
        ),
    )
