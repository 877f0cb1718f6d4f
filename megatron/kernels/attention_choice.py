"""Which attention a model uses: by --attention-backend, each implementation saying itself where it cannot run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from megatron.errors import ConfigError
from megatron.kernels.attention import AttentionFunction, explicit_attention, sdpa_attention
from megatron.kernels.blocked_attention import blocked_attention
from megatron.kernels.choice import Situation
from megatron.kernels.flash_attention import cudnn_attention, flash_attention
from megatron.kernels.tiled_attention import tiled_attention


@dataclass(frozen=True)
class AttentionImplementation:
    """One way to compute attention, with the reasons for and against it."""

    name: str
    function: AttentionFunction
    benefit: str
    obstacle: Callable[[Situation], str | None]  # why it cannot run there, None where it can


def _flash_obstacle(situation: Situation) -> str | None:
    if situation.hides and situation.device_type == "cpu":
        return f"cannot do {situation.hides} on a CPU"
    if situation.hides and situation.attention_dropout > 0:
        return f"has no --attention-dropout with {situation.hides}"
    if situation.device_type == "cpu":
        return "has no dropout on a CPU" if situation.attention_dropout > 0 else None
    if situation.dtype not in (torch.bfloat16, torch.float16):
        return f"needs --bf16 or --fp16 on a GPU, and the dtype is {situation.dtype}"
    if older := situation.gpu_before(8, 0):
        return f"needs compute capability 8.0 (A100), and this GPU has {older}"
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
    if older := situation.gpu_before(9, 0):
        return f"is fast from compute capability 9.0 (H100) on, and this GPU has {older}"
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


def _tiled_obstacle(situation: Situation) -> str | None:
    if situation.device_type != "cpu":
        return "needs a CPU"
    missing = situation.without_cpu_attention
    return None if missing is None else f"cannot run: {missing}"


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
_TILED = AttentionImplementation(
    "tiled",
    tiled_attention,
    "one pass by csrc/, scores stay in the cache, keyed dropout",
    _tiled_obstacle,
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


_IMPLEMENTATIONS = {one.name: one for one in (_CUDNN, _FLASH, _SDPA, _TILED, _BLOCKED, _EXPLICIT)}
ATTENTION_BACKENDS = ("auto", "flash-attn", *_IMPLEMENTATIONS)
BY_TORCH = (_FLASH, _SDPA)  # of whose gradients `fixed_order` can keep the order


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
        return _select_fastest_on_cpu(situation)
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


def _select_fastest_on_cpu(situation: Situation) -> tuple[AttentionImplementation, str]:
    obstacles = [(one, one.obstacle(situation)) for one in CPU_ATTENTION_ORDER]
    chosen = next(one for one, obstacle in obstacles if obstacle is None)
    masks = f", keys hidden by {situation.hides} not touched" if situation.hides else ""
    passed_over = "".join(
        f"; {one.name} {obstacle}" for one, obstacle in obstacles if obstacle is not None
    )
    return chosen, f"fastest on cpu: {chosen.benefit}{masks}{passed_over}"


# What `auto` tries in turn on a GPU; the rest is sdpa's own choice. Packages of FlashAttention have to be asked for:
# which widths and GPUs each takes is theirs to say, and none was measured here.
ATTENTION_ORDER = (_CUDNN, _FLASH)
# On a CPU; the last one runs anywhere. Measured: docs/kernels.md.
CPU_ATTENTION_ORDER = (_TILED, _BLOCKED)
