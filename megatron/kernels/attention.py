"""Causal attention over [s, b, heads, d], with fewer key/value heads than query heads where they are shared.

The queries are the last rows of the keys, or all of them: query i of sq attends to the keys up to sk - sq + i of sk.
So a part of a sequence attends to all that came before it, wherever the rest is computed.

Two ways to compute one function; `blocked_attention` and `flash_attention` have others. Keys and values are not
expanded to the number of query heads: the heads of a group are folded into rows (explicit), or the kernel reads shared
heads itself (sdpa). Where samples hold documents that must not see each other, or a window ends what a token sees, both
take a mask of all pairs, and sdpa expands keys and values.

Attention dropout of `explicit` is keyed by (sample, head, query position, key position) and so is the same under
every layout. The fused kernels draw from a generator that is seeded for each call from (site, first sample, first
head): recomputation and a resumed run repeat it, another tensor parallel size does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from megatron.kernels.documents import Documents
from megatron.kernels.dropout import Dropout, head_keys
from megatron.kernels.masked_softmax import scaled_masked_softmax


@dataclass(frozen=True)
class AttentionDropout:
    """Dropout of attention probabilities in one layer for one micro-batch."""

    probability: float
    row_keys: Tensor  # int64 [sq, b]: of the query tokens at this site
    first_head: int  # of this process, counted over all of them
    seed: int  # for kernels that draw from a generator


AttentionFunction = Callable[
    [Tensor, Tensor, Tensor, AttentionDropout | None, Documents | None], Tensor
]
# scores [b, n, sq, sk], scale, first keys int64 [b or 1, sq] or None -> probabilities, as `scaled_masked_softmax`
Softmax = Callable[[Tensor, float, Tensor | None], Tensor]


@contextmanager
def _seeded(device: torch.device, dropout: AttentionDropout | None) -> Iterator[None]:
    """Make the default generator a function of dropout's seed inside, and untouched after."""
    if dropout is None:
        yield
        return
    is_cuda = device.type == "cuda"
    generator = torch.cuda.default_generators[device.index] if is_cuda else torch.default_generator
    state = generator.get_state()
    generator.manual_seed(dropout.seed)
    try:
        yield
    finally:
        generator.set_state(state)


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: AttentionDropout | None,
    documents: Documents | None = None,
    softmax: Softmax = scaled_masked_softmax,
) -> Tensor:
    """Attend with the probabilities in memory, softmax in fp32: the reference of the others.

    query [sq, b, n, d], key and value [sk, b, g, d] with g dividing n and sq <= sk -> [sq, b, n*d]. Without documents
    each sample is one, without a window.
    """
    sq, b, n, d = query.shape
    sk, _, g, _ = key.shape
    rows = query.view(sq, b, g, n // g, d).permute(1, 2, 3, 0, 4)  # [b, g, n/g, sq, d]
    rows = rows.reshape(b * g, n // g * sq, d)
    keys = key.permute(1, 2, 3, 0).reshape(b * g, d, sk)
    values = value.permute(1, 2, 0, 3).reshape(b * g, sk, d)

    scores = torch.bmm(rows, keys).view(b, n, sq, sk)
    first_keys = None if documents is None else documents.first_keys
    probabilities = softmax(scores, 1.0 / math.sqrt(d), first_keys)
    if dropout is not None:
        heads = head_keys(dropout.row_keys, dropout.first_head, n)  # [sq, b, n]
        keyed = Dropout(dropout.probability, heads.permute(1, 2, 0))
        probabilities = keyed(probabilities)
    context = torch.bmm(probabilities.view(b * g, n // g * sq, sk), values).view(b, n, sq, d)
    return context.permute(2, 0, 1, 3).reshape(sq, b, n * d)  # [b, n, sq, d] -> [sq, b, n*d]


def sdpa_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: AttentionDropout | None,
    documents: Documents | None = None,
) -> Tensor:
    """Attend with torch's fused kernels. Arguments as `explicit_attention`."""
    sq, b, n, d = query.shape
    sk = key.size(0)
    mask: Tensor | None = None
    if documents is not None:
        mask = documents.mask
    elif sq < sk:
        mask = causal_lower_right(sq, sk)  # no tensor of all pairs, where FlashAttention can run
    if mask is not None:
        key, value = expand_heads(key, n), expand_heads(value, n)
    with _seeded(query.device, dropout):
        context = F.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),  # [sq, b, n, d] -> [b, n, sq, d]
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            attn_mask=mask,
            dropout_p=0.0 if dropout is None else dropout.probability,
            is_causal=mask is None,
            enable_gqa=key.size(2) != n,
        )
    return context.permute(2, 0, 1, 3).reshape(sq, b, n * d)  # [b, n, sq, d] -> [sq, b, n*d]


def expand_heads(x: Tensor, num_heads: int) -> Tensor:
    """Give every query head its key head: [s, b, g, d] -> [s, b, n, d], a view where one serves all.

    torch's fused kernels that take a mask share no heads: it would leave them for one that keeps all scores.
    """
    s, b, g, d = x.shape
    return x.unsqueeze(3).expand(s, b, g, num_heads // g, d).flatten(2, 3)
