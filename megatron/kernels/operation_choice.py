"""Which implementation of each operation beside attention and products a model uses: by --kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron.errors import ConfigError
from megatron.kernels import cross_entropy
from megatron.kernels.bias_dropout_residual import (
    bias_dropout_residual,
    bias_dropout_residual_layer_norm,
    fused_bias_dropout_residual,
    fused_bias_dropout_residual_layer_norm,
)
from megatron.kernels.bias_gelu import bias_gelu, fused_bias_gelu
from megatron.kernels.choice import Choice, Situation
from megatron.kernels.compiled import (
    compiled_bias_dropout_residual,
    compiled_bias_dropout_residual_layer_norm,
    compiled_bias_gelu,
    compiled_layer_norm,
)
from megatron.kernels.layer_norm import fused_layer_norm, layer_norm
from megatron.kernels.masked_softmax import fused_scaled_masked_softmax, scaled_masked_softmax

IMPLEMENTATIONS = ("fused", "compiled", "reference")
_PRODUCTS = ("product=auto", "product=library", "product=onednn")


@dataclass(frozen=True)
class Operation:
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
    Operation("layer_norm", layer_norm, compiled_layer_norm, fused_layer_norm),
    Operation("bias_gelu", bias_gelu, compiled_bias_gelu, fused_bias_gelu),
    Operation(
        "bias_dropout_residual",
        bias_dropout_residual,
        compiled_bias_dropout_residual,
        fused_bias_dropout_residual,
    ),
    Operation(
        "bias_dropout_residual_layer_norm",
        bias_dropout_residual_layer_norm,
        compiled_bias_dropout_residual_layer_norm,
        fused_bias_dropout_residual_layer_norm,
    ),
    Operation("cross_entropy", cross_entropy.REFERENCE, None, cross_entropy.FUSED),
    # of the explicit attention
    Operation("softmax", scaled_masked_softmax, None, fused_scaled_masked_softmax),
)


def requested(kernels: Sequence[str]) -> dict[str, tuple[str, bool]]:
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


def choose_operation(
    operation: Operation, wanted: str, is_named: bool, situation: Situation
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


def _fastest(operation: Operation, obstacle: str | None, situation: Situation) -> tuple[str, str]:
    if situation.device_type == "cpu":
        return "reference", "fastest on cpu"
    if obstacle is None and operation.fused is not None:
        return "fused", "one pass over memory each way (docs/kernels.md)"
    reason = f"fused cannot: {obstacle}" if operation.fused is not None else "there is no fused one"
    return ("reference" if operation.compiled is None else "compiled"), reason
