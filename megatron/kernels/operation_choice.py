"""Which implementation of each operation beside attention and products a model uses: by --kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from megatron.kernels.cpu_cross_entropy import CPU_CROSS_ENTROPY
from megatron.kernels.cpu_operations import (
    DTYPES,
    cpu_bias_dropout_residual,
    cpu_bias_dropout_residual_layer_norm,
    cpu_bias_gelu,
    cpu_layer_norm,
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
    fused: Any = None  # csrc/*.cu
    fused_on_cpu: Any = None  # csrc/cpu_operations.cpp

    def by(self, implementation: str, device_type: str) -> Any:
        """Give an implementation by its name, None where there is none."""
        fused = self.fused_on_cpu if device_type == "cpu" else self.fused
        return {"fused": fused, "compiled": self.compiled, "reference": self.reference}[
            implementation
        ]

    def fused_obstacle(self, situation: Situation) -> str | None:
        """Say why the fused implementation cannot run there, None where it can."""
        if self.by("fused", situation.device_type) is None:
            return "there is none" if self.fused is None else "needs a GPU"
        if situation.device_type != "cpu":
            return situation.without_library
        if situation.without_cpu_operations is None and situation.dtype not in DTYPES:
            return f"C++ for CPUs computes in fp32 and bf16, and the dtype is {situation.dtype}"
        return situation.without_cpu_operations


OPERATIONS = (
    Operation("layer_norm", layer_norm, compiled_layer_norm, fused_layer_norm, cpu_layer_norm),
    Operation("bias_gelu", bias_gelu, compiled_bias_gelu, fused_bias_gelu, cpu_bias_gelu),
    Operation(
        "bias_dropout_residual",
        bias_dropout_residual,
        compiled_bias_dropout_residual,
        fused_bias_dropout_residual,
        cpu_bias_dropout_residual,
    ),
    Operation(
        "bias_dropout_residual_layer_norm",
        bias_dropout_residual_layer_norm,
        compiled_bias_dropout_residual_layer_norm,
        fused_bias_dropout_residual_layer_norm,
        cpu_bias_dropout_residual_layer_norm,
    ),
    Operation(
        "cross_entropy", cross_entropy.REFERENCE, None, cross_entropy.FUSED, CPU_CROSS_ENTROPY
    ),
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


def choose_operations(
    wanted: Mapping[str, tuple[str, bool]],
    situation: Situation,
    operations: Sequence[Operation] = OPERATIONS,
) -> dict[str, tuple[Any, Choice]]:
    """Choose an implementation of each operation, by `requested`. ConfigError if one asked for cannot run.

    `fused` or `compiled` for all leaves those that have none to the reference; one at least has to be fused.
    """
    chosen = {one.name: _choose(one, *wanted[one.name], situation) for one in operations}
    names = {choice.name for _, choice in chosen.values()}
    if "fused" not in names and ("fused", False) in wanted.values():
        raise ConfigError("--kernels fused: needs a GPU; use --kernels auto")
    return chosen


def _choose(
    operation: Operation, wanted: str, is_named: bool, situation: Situation
) -> tuple[Any, Choice]:
    if wanted == "auto":
        wanted, reason = _fastest(operation, situation)
        return operation.by(wanted, situation.device_type), Choice(operation.name, wanted, reason)
    function = operation.by(wanted, situation.device_type)
    if function is None and not is_named:
        reason = f"there is no {wanted} one on {situation.device_type}"
        return operation.reference, Choice(operation.name, "reference", reason)
    obstacle = "there is none" if function is None else None
    if wanted == "fused":
        obstacle = operation.fused_obstacle(situation)
    if obstacle is not None:
        given = f"{operation.name}={wanted}" if is_named else wanted
        instead = "leave it to auto" if is_named else "use --kernels auto"
        raise ConfigError(f"--kernels {given}: {obstacle}; {instead}")
    return function, Choice(operation.name, wanted, "asked for")


def _fastest(operation: Operation, situation: Situation) -> tuple[str, str]:
    obstacle = operation.fused_obstacle(situation)
    if obstacle is None:
        return "fused", "one pass over memory each way (docs/kernels.md)"
    has_fused = operation.by("fused", situation.device_type) is not None
    if situation.device_type == "cpu":
        return "reference", f"fused cannot: {obstacle}" if has_fused else "fastest on cpu"
    reason = f"fused cannot: {obstacle}" if has_fused else "there is no fused one"
    return ("reference" if operation.compiled is None else "compiled"), reason
