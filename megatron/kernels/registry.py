"""Which implementation of each operation a model uses: decided once, before the model is built.

An implementation says itself where it cannot run. `auto` takes the first of an ordered list that can; a name
asked for that cannot run is the user's error. Knows nothing of layers or process groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.errors import ConfigError
from megatron.kernels.attention import (
    AttentionFunction,
    explicit_attention,
    flash_attention,
    sdpa_attention,
)
from megatron.kernels.bias_dropout_residual import bias_dropout_residual
from megatron.kernels.bias_gelu import bias_gelu
from megatron.kernels.blocked_attention import blocked_attention
from megatron.kernels.dropout import Dropout
from megatron.kernels.layer_norm import layer_norm


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
    """The operations of a transformer layer, and why each is the one it is."""

    attention: AttentionFunction
    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    bias_gelu: Callable[[Tensor, Tensor | None], Tensor]
    bias_dropout_residual: Callable[[Tensor, Tensor | None, Tensor, Dropout | None], Tensor]
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


def _runs_anywhere(situation: Situation) -> None:
    return None


_SDPA = AttentionImplementation(
    "sdpa", sdpa_attention, "torch's fused kernels, K/V shared by heads", _runs_anywhere
)
_FLASH = AttentionImplementation(
    "flash", flash_attention, "FlashAttention in torch", _flash_obstacle
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


def select_attention(backend: str, situation: Situation) -> tuple[AttentionImplementation, str]:
    """Choose by --attention-backend and give the reason. ConfigError if the one asked for cannot run."""
    if backend == "auto":
        return _select_fastest(situation)
    implementations = {one.name: one for one in (_SDPA, _FLASH, _BLOCKED, _EXPLICIT)}
    if backend not in implementations:
        raise ConfigError(
            f"--attention-backend {backend} is unknown; choose auto, {', '.join(implementations)}"
        )
    chosen = implementations[backend]
    obstacle = chosen.obstacle(situation)
    if obstacle is not None:
        raise ConfigError(f"--attention-backend {backend} {obstacle}; use --attention-backend auto")
    return chosen, f"asked for: {chosen.benefit}"


def _select_fastest(situation: Situation) -> tuple[AttentionImplementation, str]:
    if situation.device_type == "cpu":
        # measured, 8 heads of 32 sharing one, 512 positions, forward + backward: fp32 1.35 x, bf16 2.1 x
        # the speed of SDPA, which has no fused kernel with dropout on a CPU
        masks = f", keys hidden by {situation.hides} not touched" if situation.hides else ""
        return _BLOCKED, f"fastest on cpu: {_BLOCKED.benefit}{masks}"
    if not situation.hides:
        return _SDPA, f"fastest on {situation.device_type}: {_SDPA.benefit}"
    obstacle = _flash_obstacle(situation)
    if obstacle is None:
        return (
            _FLASH,
            f"fastest with {situation.hides}: {_FLASH.benefit}, only of what a token sees",
        )
    return _SDPA, f"{situation.hides} by a mask of all pairs, slow if long: flash {obstacle}"


def choose_kernels(attention_backend: str, situation: Situation) -> Kernels:
    """Choose every operation for a situation. ConfigError if an explicit choice cannot run."""
    attention, reason = select_attention(attention_backend, situation)
    only = "PyTorch reference, the only one so far"
    return Kernels(
        attention=attention.function,
        layer_norm=layer_norm,
        bias_gelu=bias_gelu,
        bias_dropout_residual=bias_dropout_residual,
        stores_attention_probabilities=attention is _EXPLICIT,
        choices=(
            Choice("attention", attention.name, reason),
            Choice("layer_norm", "reference", only),
            Choice("bias_gelu", "reference", only),
            Choice("bias_dropout_residual", "reference", only),
        ),
    )
