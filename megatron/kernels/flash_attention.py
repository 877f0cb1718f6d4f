"""Causal attention by the fused kernels of libraries, each asked for by name: torch's, cuDNN's, and flash-attn's.

They share heads without expanding keys and values and keep no scores. Documents and windows go to the kernels that take
sequences of any lengths one after another, whose cost is that of the pairs seen. Arguments and results are those of
`explicit_attention`. What cannot run where is the registry's knowledge.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron.errors import ConfigError
from megatron.kernels.attention import AttentionDropout, AttentionFunction, sdpa_attention
from megatron.kernels.documents import Documents


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: AttentionDropout | None,
    documents: Documents | None = None,
) -> Tensor:
    """Attend with torch's FlashAttention and nothing else. With documents: on a GPU and without dropout only."""
    if documents is None:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return sdpa_attention(query, key, value, dropout, None)
    assert dropout is None
    from torch.nn.attention.varlen import varlen_attn

    # keys before and after a query's own position; -1: all of its document
    before = -1 if documents.window is None else documents.window - 1
    causal: dict[str, Any] = {"window_size": (before, 0)}
    # Before torch 2.12 there was no such argument, and the kernel shared heads unasked.
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        causal["enable_gqa"] = True
    queries, keys = documents.packed_queries, documents.packed_keys
    context = varlen_attn(
        _packed(query),
        _packed(key),
        _packed(value),
        queries.offsets,
        keys.offsets,
        queries.longest,
        keys.longest,
        **causal,
    )
    assert isinstance(context, Tensor)  # it gives more only if asked to
    return _unpacked(context, query)


def cudnn_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: AttentionDropout | None,
    documents: Documents | None = None,
) -> Tensor:
    """Attend with cuDNN's kernel and nothing else; whole sequences without documents only."""
    assert documents is None and query.size(0) == key.size(0)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa_attention(query, key, value, dropout, None)


def _packed(x: Tensor) -> Tensor:
    """Lay samples one after another: [s, b, heads, d] -> [b*s, heads, d]."""
    return x.transpose(0, 1).flatten(0, 1)


def _unpacked(context: Tensor, query: Tensor) -> Tensor:
    """Undo `_packed` for what queries [s, b, n, d] gave: [b*s, n, d] -> [s, b, n*d]."""
    s, b, n, d = query.shape
    return context.view(b, s, n * d).transpose(0, 1).contiguous()


@dataclass(frozen=True)
class FlashLibrary:
    """A package of FlashAttention, under the name by which it is imported."""

    generation: int
    module: str
    oldest_capability: tuple[int, int]

    def attention(self, *, in_fixed_order: bool = False) -> AttentionFunction:
        """Import the package and give its attention, without dropout. ConfigError if it cannot be imported.

        in_fixed_order: gradients have the same bits at every run.
        """
        try:
            package = importlib.import_module(self.module)
        except ImportError as error:
            raise ConfigError(
                f"--attention-backend flash-attn: {self.module} is installed and cannot be imported ({error}); "
                f"install one built for torch {torch.__version__}, or use --attention-backend auto"
            ) from None
        options = {"causal": True, "deterministic": in_fixed_order}
        whole = functools.partial(package.flash_attn_func, **options)
        packed = functools.partial(package.flash_attn_varlen_func, **options)
        # how "no limit" is written: -1, or None since the fourth generation
        unlimited = None if self.generation >= 4 else -1

        def attend(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            dropout: AttentionDropout | None,
            documents: Documents | None = None,
        ) -> Tensor:
            assert dropout is None
            if documents is None:
                # [s, b, heads, d] -> [b, s, heads, d]; the causal mask is aligned to the last key
                context = _first(whole(*(x.transpose(0, 1) for x in (query, key, value))))
                return context.transpose(0, 1).flatten(2)
            before = unlimited if documents.window is None else documents.window - 1
            queries, keys = documents.packed_queries, documents.packed_keys
            context = packed(
                _packed(query),
                _packed(key),
                _packed(value),
                cu_seqlens_q=queries.offsets,
                cu_seqlens_k=keys.offsets,
                max_seqlen_q=queries.longest,
                max_seqlen_k=keys.longest,
                window_size=(before, 0 if documents.window else unlimited),
            )
            return _unpacked(_first(context), query)

        return attend


def _first(result: Any) -> Tensor:
    """Give the output of a call that may give a log-sum-exp with it."""
    context = result[0] if isinstance(result, tuple) else result
    assert isinstance(context, Tensor)
    return context


# Newest first among those that a GPU of theirs runs fastest; the import names are theirs.
FLASH_LIBRARIES = (
    FlashLibrary(3, "flash_attn_interface", (9, 0)),
    FlashLibrary(4, "flash_attn.cute", (9, 0)),
    FlashLibrary(2, "flash_attn.flash_attn_interface", (8, 0)),
)


def find_flash_library(
    capability: tuple[int, int], is_installed: Callable[[str], bool] | None = None
) -> FlashLibrary | None:
    """Give the best package that is installed and runs on a GPU of this capability, or None."""
    is_there = is_installed or _is_installed
    return next(
        (
            one
            for one in FLASH_LIBRARIES
            if capability >= one.oldest_capability
            # the third is for Hopper alone, the fourth for it and its successors
            and (one.generation != 3 or capability[0] == 9)
            and is_there(one.module)
        ),
        None,
    )


def _is_installed(module: str) -> bool:
    """Look for a module without importing the packages that it lies in: a broken one would raise what it likes."""
    name, _, rest = module.partition(".")
    spec = find_spec(name)
    for part in rest.split(".") if rest else ():
        if spec is None:
            return False
        spec = PathFinder.find_spec(part, spec.submodule_search_locations)
    return spec is not None
