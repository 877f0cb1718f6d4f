"""One micro-batch through one stage on the meta device: what stays for backward, what is alive at most, what is done.

The model itself runs, so a change of it changes the counts. Counted are tensors as PyTorch sees them: what a kernel
takes inside for itself is not. Knows nothing of pipelines, of sharded parameters or of how fast anything is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from megatron.parallel.parameter import local_part

# Products, and which input is the left factor.
_EIGHT_BIT = "_scaled_mm"
_PRODUCTS = dict.fromkeys(("mm", "bmm", _EIGHT_BIT), 0)
_PRODUCTS |= dict.fromkeys(("addmm", "addmm_", "baddbmm", "baddbmm_"), 1)


def storage_key(tensor: Tensor) -> int:
    """Name the storage behind a tensor; valid while that lives."""
    return tensor.untyped_storage()._cdata


def held_storages(tensors: list[Tensor]) -> dict[int, int]:
    """Give the bytes of the storages behind tensors, each once, by `storage_key`."""
    return {storage_key(t): t.untyped_storage().nbytes() for t in tensors}


@contextmanager
def saved_for_backward() -> Iterator[list[Tensor]]:
    """Collect the tensors that autograd keeps inside, views of one storage too."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(local_part(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


@dataclass
class Work:
    """What the operations of a pass come to."""

    product_flops: float = 0.0
    eight_bit_flops: float = 0.0  # of products that are not among these
    product_bytes: float = 0.0
    other_bytes: float = 0.0  # read and written by all else that touches memory


@dataclass
class _Recorder(TorchDispatchMode):
    """Sees every operation: adds up its work and follows the storages that it makes until they are freed."""

    work: Work = field(default_factory=Work)
    outside: frozenset[int] = frozenset()  # storages that were there before
    alive: int = 0
    most: int = 0
    _known: dict[int, weakref.ref[torch.UntypedStorage]] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        is_view = not func._schema.is_mutable and {*map(storage_key, outputs)} <= {
            *map(storage_key, inputs)
        }
        name = func._schema.name.removeprefix("aten::")
        if not is_view and "empty" not in name:
            self._add(name, inputs, outputs)
        for tensor in outputs:
            self._follow(tensor)
        return out

    def _add(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        moved = sum(t.numel() * t.element_size() for t in inputs + outputs)
        if name not in _PRODUCTS:
            self.work.other_bytes += moved
            return
        self.work.product_bytes += moved
        flops = 2.0 * outputs[0].numel() * inputs[_PRODUCTS[name]].size(-1)
        if name == _EIGHT_BIT:
            self.work.eight_bit_flops += flops
        else:
            self.work.product_flops += flops

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.outside:
            return
        if key not in self._known:

            def forget(_: Any, key: int = key) -> None:
                self.alive -= self._sizes.pop(key)
                del self._known[key]

            self._known[key] = weakref.ref(storage, forget)
            self._sizes[key] = 0
        self._measure(key, storage)
        if self.alive > self.most:
            for key, known in list(self._known.items()):
                self._measure(key, known())
            self.most = max(self.most, self.alive)

    def _measure(self, key: int, storage: torch.UntypedStorage | None) -> None:
        """Take a storage's size as it is now: what is computed again in backward is let go without an operation."""
        if storage is None:
            return
        size = storage.nbytes()
        self.alive += size - self._sizes[key]
        self._sizes[key] = size


@dataclass(frozen=True)
class StagePass:
    """What a micro-batch costs one stage."""

    saved_bytes: int  # from forward to backward, parameters, inputs and logits left out
    logits_bytes: int  # of that kind too
    work_bytes: int  # alive at most beyond these, in either pass
    forward: Work
    backward: Work


def count_pass(
    module: nn.Module,
    inputs: dict[str, Tensor | None],
    logits_shape: tuple[int, ...] | None,
    *,
    groups: Sequence[Sequence[nn.Parameter]],
    sums: Sequence[Tensor] = (),
) -> StagePass:
    """Run one micro-batch through a module on the meta device, forward and backward.

    inputs: its keyword arguments, x the first one. logits_shape: [s, b, v/t] of the last stage. groups: parameters
    whose gradients go together once all of them are there, as in data parallelism, which adds them to sums of its own.
    sums: tensors that are there before and after.
    """
    given = [t for t in inputs.values() if t is not None]
    outside = held_storages([*map(local_part, module.parameters()), *given, *sums])
    x, others = inputs["x"], {k: v for k, v in inputs.items() if k != "x"}
    handles = [handle for group in groups for handle in _drop_together(group)]
    forward, backward = Work(), Work()
    with _Recorder(work=forward, outside=frozenset(outside)) as recorder:
        with saved_for_backward() as saved:
            out = module(x, **others)
        # a pipeline holds the output until its gradient comes; what came in is the sender's or the loader's
        kept = held_storages([*saved, out])
        total = sum(size for key, size in kept.items() if key not in outside)
        recorder.work = backward
        grad = torch.empty_like(out)
        del saved
        out.backward(grad)
    for handle in handles:
        handle.remove()
    logits = 0
    if logits_shape is not None:
        logits = torch.Size(logits_shape).numel() * next(module.parameters()).element_size()
    return StagePass(
        saved_bytes=total - logits,
        logits_bytes=logits,
        work_bytes=max(0, recorder.most - total),
        forward=forward,
        backward=backward,
    )


def count_call(
    function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> tuple[Work, Work]:
    """Count what a function of tensors does, forward and backward, on copies of them on the meta device."""
    copies = [torch.empty_like(t, device="meta").requires_grad_() for t in inputs]
    forward, backward = Work(), Work()
    with _Recorder(work=forward) as recorder:
        out = function(*copies)
        outputs = out if isinstance(out, tuple) else (out,)
        recorder.work = backward
        torch.autograd.grad(outputs, copies, [torch.empty_like(t) for t in outputs])
    return forward, backward


def _drop_together(group: Sequence[nn.Parameter]) -> list[RemovableHandle]:
    """Let the gradients of a group go when the last of them is there."""
    waiting = set(group)

    def arrive(parameter: Tensor) -> None:
        waiting.discard(cast("nn.Parameter", parameter))
        if not waiting:
            for one in group:
                one.grad = None

    return [parameter.register_post_accumulate_grad_hook(arrive) for parameter in group]
