"""Predicting on a CPU in fp32: products with weights that never change, and one token of each sequence through layers.

A weight is laid out once, in the order in which the kernel of csrc/prediction.cpp reads it. The product is for any number
of rows; `Decoder` calls one function for a whole run of layers, where at one token a step the calls of a layer's operations
would take as long as their work. Measured on one core of an AMD EPYC (Zen 5), weights of 3072 x 768 that are not in a cache:
16 rows 1.4 x the speed of oneDNN's packed weights, 64 rows 1.05 x, 512 rows 0.9 x. For prediction only: nothing here is
differentiable. A row's result has the same bits whatever other rows there are, and on any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

try:
    from megatron.kernels import _prediction
except ImportError:
    _prediction = None  # type: ignore[assignment]


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Say why weights cannot be laid out for this there, None where they can."""
    if device.type != "cpu":
        return "is for CPUs"
    if dtype != torch.float32:
        return f"is for fp32, and the dtype is {dtype}"
    if _prediction is None:
        return "needs megatron/kernels/_prediction, which is not compiled: run make env"
    return None


def widths() -> list[int]:
    """Give how many floats the processor's vectors hold, the widest first."""
    return _prediction.widths()


def highest(x: Tensor, *, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Give of each row of x [r, c] the highest number, NaN if there is one, and its first place: [r], int64 [r].

    `Tensor.max` gives the same, but for the place of a NaN, which is any; on a CPU in fp32 it takes three times as long.
    """
    if obstacle(x.device, x.dtype) is not None or x.stride(1) != 1:
        best, places = x.max(dim=-1)
        return best, places
    rows, columns = x.shape
    best, places = x.new_empty(rows), torch.empty(rows, dtype=torch.int64)
    _prediction.highest(
        x.data_ptr(),
        rows,
        columns,
        x.stride(0),
        best.data_ptr(),
        places.data_ptr(),
        widths()[0] if width is None else width,
    )
    return best, places


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    *,
    first_row: int = 0,
    window: int | None = None,
    width: int | None = None,
) -> Tensor:
    """Attend with queries [s, b, n, d] to what rows of a cache hold up to their positions: [s, b, n*d].

    keys, values: [rows, g, capacity, d], of which rows from first_row on are the b samples'. positions: int64 [s, b]. Every
    token reads the keys that it sees, once for four heads that share them. Measured as above, 16 heads of 128: twice the
    speed of `blocked_attention` for 64 to 2,048 keys, 1.7 x for 4,096.
    """
    s, b, n, d = query.shape
    assert keys.is_contiguous() and values.is_contiguous() and keys.shape == values.shape
    assert keys.dtype == values.dtype == query.dtype == torch.float32
    assert first_row + b <= keys.size(0) and n % keys.size(1) == 0 and keys.size(3) == d
    assert positions.shape == (s, b) and positions.dtype == torch.int64
    assert int(positions.max()) < keys.size(2)
    # a stride of a dim of one says nothing: rows [s*b, n*d] have one that does
    query = query.reshape(s * b, n * d)
    if query.stride(1) != 1:
        query = query.contiguous()
    positions = positions.contiguous()
    out = query.new_empty(s, b, n * d)
    _prediction.attend(
        queries=query.data_ptr(),
        query_stride=query.stride(0),
        tokens=s * b,
        heads=n,
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        positions=positions.data_ptr(),
        num_rows=b,
        first_row=first_row,
        groups=keys.size(1),
        head_dim=d,
        capacity=keys.size(2),
        window=window or 0,
        out=out.data_ptr(),
        width=widths()[0] if width is None else width,
        threads=torch.get_num_threads(),
    )
    return out


class PanelProduct:
    """A `Product` with one weight and bias, of which it keeps the only copies that are needed."""

    has_gelu = False

    def __init__(self, weight: Tensor, bias: Tensor | None, *, width: int | None = None) -> None:
        """Lay out a weight [out, in], whose memory is not needed afterwards. width: one of `widths`, else the first."""
        self.width = widths()[0] if width is None else width
        self.out_size, self.in_size = weight.shape
        weight = weight.to(torch.float32).contiguous()
        panel = _prediction.panel_size(self.width)
        num_panels = -(-self.out_size // panel)
        self.weight = torch.empty(num_panels * panel * self.in_size)
        self.bias = None if bias is None else bias.to(torch.float32).contiguous()
        assert self.bias is None or self.bias.shape == (self.out_size,)
        _prediction.pack(
            weight.data_ptr(), self.out_size, self.in_size, self.weight.data_ptr(), self.width
        )

    def __call__(
        self,
        x: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        gradient_sum: object = None,
    ) -> Tensor:
        """Compute x W^T + bias with the weight and bias kept: x [..., in] -> [..., out]. No other argument is read."""
        assert x.dtype == torch.float32 and x.size(-1) == self.in_size
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], self.out_size)
        _prediction.multiply(
            x.data_ptr(),
            x.numel() // self.in_size,
            self.weight.data_ptr(),
            address(self.bias),
            out.data_ptr(),
            self.in_size,
            self.out_size,
            self.has_gelu,
            self.width,
            torch.get_num_threads(),
        )
        return out


class PanelProductGelu(PanelProduct):
    """The same and its GELU by the tanh formula."""

    has_gelu = True


@dataclass(frozen=True)
class DecoderLayer:
    """A layer's weights. Norms: weight and bias [h]."""

    input_norm: tuple[Tensor, Tensor]
    query_key_value: PanelProduct  # queries of n heads, then [groups, (key, value), d]
    dense: PanelProduct
    post_attention_norm: tuple[Tensor, Tensor]
    h_to_4h: PanelProductGelu
    dense_4h_to_h: PanelProduct

    def addresses(self) -> list[int]:
        """Give where the kernel finds them, in its order."""
        products = (self.query_key_value, self.dense, self.h_to_4h, self.dense_4h_to_h)
        qkv, dense, up, down = ([p.weight.data_ptr(), address(p.bias)] for p in products)
        first, second = (
            [x.data_ptr() for x in norm] for norm in (self.input_norm, self.post_attention_norm)
        )
        return [*first, *qkv, *dense, *second, *up, *down]


class Decoder:
    """Layers that take one token of each sequence, and keep its keys and values with those before it."""

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        *,
        num_heads: int,
        num_groups: int,
        head_dim: int,
        window: int | None,
        epsilon: float,
    ) -> None:
        """layers: of equal sizes, at least one. window: how many tokens one sees, itself included."""
        self._layers = tuple(layers)  # their memory has to stay
        first = self._layers[0]
        for layer in self._layers:
            vectors = (*layer.input_norm, *layer.post_attention_norm)
            assert all(x.is_contiguous() and x.dtype == torch.float32 for x in vectors)
        decoder = _prediction.Decoder(
            hidden_size=first.dense.out_size,
            num_heads=num_heads,
            num_groups=num_groups,
            head_dim=head_dim,
            ffn_size=first.h_to_4h.out_size,
            window=window or 0,
            epsilon=epsilon,
            width=first.dense.width,
            layers=[layer.addresses() for layer in self._layers],
        )
        self._run = decoder.run

    def __call__(
        self,
        x: Tensor,
        lengths: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        rotation: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Give what the last layer gives for x [b, h], a new tensor. Adds to keys and values.

        lengths: int64 [b], tokens before this one. keys, values: of each layer [b or more, g, positions, d], fp32.
        rotation: cos and sin [b, d/2], if positions are rotary.
        """
        capacity = keys[0].size(2)
        assert lengths.shape == (len(x),) and lengths.dtype == torch.int64
        assert len(x) <= len(keys[0]) and int(lengths.max()) < capacity
        assert all(cell.is_contiguous() for cell in (*keys, *values))
        x = x.clone(memory_format=torch.contiguous_format)
        self._run(
            x.data_ptr(),
            len(x),
            lengths.data_ptr(),
            [key.data_ptr() for key in keys],
            [value.data_ptr() for value in values],
            capacity,
            0 if rotation is None else rotation[0].data_ptr(),
            0 if rotation is None else rotation[1].data_ptr(),
            torch.get_num_threads(),
        )
        return x


def address(x: Tensor | None) -> int:
    """Give where a contiguous tensor lies, 0 for none."""
    return 0 if x is None else x.data_ptr()
