"""What a choice of kernels may depend on, and what a run logs of it. Chooses nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron.kernels.flash_attention import FlashLibrary


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
    without_cpu_operations: str | None = None  # why csrc/cpu_operations.cpp cannot be
    without_cpu_attention: str | None = None  # why csrc/cpu_attention.cpp cannot be
    flash_library: FlashLibrary | None = None  # that is installed
    has_fp8: bool = False  # --fp8-format
    cpu_kind: str = ""  # as `processor.cpu_kind` names it

    @property
    def hides(self) -> str:
        """What hides more than causality does, by its options; empty if nothing."""
        options = {
            "--reset-attention-mask": self.masks_documents,
            "--window-size": self.has_window,
        }
        return " and ".join(flag for flag, is_given in options.items() if is_given)

    def gpu_before(self, major: int, minor: int) -> str | None:
        """Give the compute capability of a GPU that is older than that one; None if there is no such GPU."""
        if self.capability is None or self.capability >= (major, minor):
            return None
        return ".".join(map(str, self.capability))


@dataclass(frozen=True)
class Choice:
    """One row of the table that a run logs."""

    operation: str
    name: str
    reason: str
