"""Letting go of an output that can be computed again, and getting it back when backward needs it.

Finer than `torch.utils.checkpoint`: the consumers of the output do not run again, only what makes it does. The memory
of the output goes back as soon as its consumers have run forward, though autograd still holds the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def recompute_in_backward(
    output: Tensor, compute: Callable[[], Tensor], consumers: Sequence[Tensor]
) -> None:
    """Free output, which nothing but the autograd graph needs any more, until a gradient reaches its consumers.

    compute: gives the same bits again, from tensors that are kept; it runs without autograd, once, and issues its
    collectives in backward. consumers: every result of an operation that saved output; one that is overwritten later
    must not be a view, which would lose its place in the graph. Does nothing where there is no gradient to come.
    """
    if not any(consumer.requires_grad for consumer in consumers):
        return
    kept = output.detach()  # shares the memory that autograd's own references have
    size = kept.untyped_storage().nbytes()
    kept.untyped_storage().resize_(0)
    # Emptied when done: hooks live as long as the graph, which is longer than what backward has used in it.
    pending = [(kept, compute)]

    def restore(_: Tensor) -> None:
        if not pending:
            return
        kept, compute = pending.pop()
        with torch.no_grad():
            again = compute()
            kept.untyped_storage().resize_(size)
            # not an in-place change as autograd counts them: these are the bits that it saved
            kept.data.copy_(again)

    for consumer in consumers:
        consumer.register_hook(restore)
