"""Calls of the packages of FlashAttention, by modules that have their parameters and compute by the reference."""

import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch

from megatron.kernels.attention import explicit_attention
from megatron.kernels.documents import Documents
from megatron.kernels.flash_attention import FLASH_LIBRARIES

LENGTH, HEADS, GROUPS, WIDTH = 12, 4, 2, 8
WINDOWS = {2: (-1, -1), 3: (-1, -1), 4: (None, None)}  # that do not limit, by generation


def whole(q, k, v, window):
    """Attend to the last keys first: q [b, sq, n, d], k and v [b, sk, g, d] -> [b, sq, n, d]."""
    documents = None
    if window[0] not in (-1, None):
        assert window[1] == 0
        shape, first = (q.size(0), q.size(1)), k.size(1) - q.size(1)
        documents = Documents.create(
            None, q.device, shape=shape, window=window[0] + 1, first_position=first
        )
    out = explicit_attention(*(x.transpose(0, 1) for x in (q, k, v)), None, documents)
    return out.unflatten(2, (q.size(2), q.size(3))).transpose(0, 1)


def packed(q, k, v, q_offsets, k_offsets, longest, window):
    """The same for sequences one after another, q [total, n, d]; offsets int32."""
    parts = []
    for offsets, size in zip((q_offsets, k_offsets), longest, strict=True):
        assert offsets.dtype == torch.int32 and int(offsets.diff().max()) == size
    for (a, b), (c, d) in zip(pairwise(q_offsets), pairwise(k_offsets), strict=True):
        if b > a:  # keys may have no queries
            parts.append(whole(q[None, a:b], k[None, c:d], v[None, c:d], window)[0])
    return torch.cat(parts)


def package(generation, calls):
    """A module of the package's name, whose functions take what its own take and give what they give."""

    def answer(out, causal, deterministic):
        assert causal
        calls.append(deterministic)
        return (out, torch.zeros(1)) if generation == 4 else out

    def flash_attn_func(
        q, k, v, *, softmax_scale=None, causal=False, window_size=WINDOWS[generation],
        softcap=0.0, deterministic=False,
    ):  # fmt: skip
        return answer(whole(q, k, v, window_size), causal, deterministic)

    def flash_attn_varlen_func(
        q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None,
        causal=False, window_size=WINDOWS[generation], softcap=0.0, deterministic=False,
    ):  # fmt: skip
        if window_size != WINDOWS[generation]:
            assert window_size[0] >= 0
        out = packed(q, k, v, cu_seqlens_q, cu_seqlens_k, (max_seqlen_q, max_seqlen_k), window_size)
        return answer(out, causal, deterministic)

    module = ModuleType(str(generation))
    module.flash_attn_func = flash_attn_func
    module.flash_attn_varlen_func = flash_attn_varlen_func
    return module


@pytest.mark.parametrize("in_fixed_order", [False, True])
@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("starts", [None, [0, 0, 0, 3, 3, 3, 3, 3, 8, 8, 8, 11]])
@pytest.mark.parametrize("library", FLASH_LIBRARIES, ids=lambda one: str(one.generation))
def test_each_generation_is_called_by_its_own_parameters(
    monkeypatch, library, starts, window, first, in_fixed_order
):
    calls = []
    monkeypatch.setitem(sys.modules, library.module, package(library.generation, calls))
    if "." in library.module:
        parent = library.module.partition(".")[0]
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    attend = library.attention(in_fixed_order=in_fixed_order)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(length, 2, heads, WIDTH, generator=generator)
        for length, heads in ((LENGTH - first, HEADS), (LENGTH, GROUPS), (LENGTH, GROUPS))
    )
    rows = None if starts is None else torch.tensor([starts, [0] * LENGTH])[:, first:]
    documents = Documents.create(
        rows, query.device, shape=(2, LENGTH - first), window=window, first_position=first
    )
    expected = explicit_attention(query, key, value, None, documents)
    torch.testing.assert_close(attend(query, key, value, None, documents), expected)
    assert calls == [in_fixed_order]
