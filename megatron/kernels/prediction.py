"""Predicting on a CPU: products with weights that never change, and tokens through the layers of a stage in one call.

A weight is laid out once, in the order in which the kernel of csrc/prediction.cpp reads it, in fp32 or bf16; all else is
fp32. The product is for any number of rows; `Stage` calls one function from token ids to logits, where at one token a step
the calls of a layer's operations would take as long as their work. For prediction only: nothing here is differentiable.
A row's result has the same bits whatever other rows there are, and on any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.kernels import cpu_library
from megatron.kernels.cpu_library import address

try:
    from megatron.kernels import _prediction
except ImportError:  # cpu_library says why
    _prediction = None  # type: ignore[assignment]


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Say why weights cannot be laid out for this there, None where they can."""
    if device.type != "cpu":
        return "is for CPUs"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"is for fp32 and bf16, and the dtype is {dtype}"
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return "does without AMX, which the CPU has for bf16"
    missing = cpu_library.obstacle("_prediction")
    return None if missing is None else f"cannot run: {missing}"


def kinds() -> list[str]:
    """Name the kinds of kernels that the processor runs, the fastest first."""
    return _prediction.kinds()


def highest(x: Tensor, *, kind: str | None = None) -> tuple[Tensor, Tensor]:
    """Give of each row of x [r, c] the highest number, NaN if there is one, and its first place: [r], int64 [r].

    `Tensor.max` gives the same, but for the place of a NaN, which is any; on a CPU in fp32 it takes three times as long.
    """
    if x.dtype != torch.float32 or x.stride(1) != 1 or obstacle(x.device, x.dtype) is not None:
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
        kind or "",
    )
    return best, places


class PanelProduct:
    """A `Product` with one weight and bias, of which it keeps the only copies that are needed."""

    has_gelu = False

    def __init__(self, weight: Tensor, bias: Tensor | None, *, kind: str | None = None) -> None:
        """Lay out a weight [out, in] in fp32 or bf16, whose memory is not needed afterwards. kind: one of `kinds`."""
        assert weight.dtype in (torch.float32, torch.bfloat16)
        self.kind = kind or kinds()[0]
        self.is_bf16 = weight.dtype == torch.bfloat16
        self.out_size, self.in_size = weight.shape
        weight = weight.contiguous()
        panel, inputs = _prediction.panel_size(self.kind), 2 if self.is_bf16 else 1
        size = -(-self.out_size // panel) * -(-self.in_size // inputs) * panel * inputs
        self.weight = torch.empty(size, dtype=weight.dtype)
        self.bias = None if bias is None else bias.to(torch.float32).contiguous()
        assert self.bias is None or self.bias.shape == (self.out_size,)
        _prediction.pack(
            weight.data_ptr(),
            self.out_size,
            self.in_size,
            self.is_bf16,
            self.weight.data_ptr(),
            self.kind,
        )

    def __call__(
        self,
        x: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        gradient_sum: object = None,
    ) -> Tensor:
        """Compute x W^T + bias with the weight and bias kept: x fp32 [..., in] -> [..., out]. No other argument is read."""
        assert x.dtype == torch.float32 and x.size(-1) == self.in_size
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], self.out_size)
        _prediction.multiply(
            x=x.data_ptr(),
            rows=x.numel() // self.in_size,
            weight=self.weight.data_ptr(),
            bias=address(self.bias),
            out=out.data_ptr(),
            in_size=self.in_size,
            out_size=self.out_size,
            is_bf16=self.is_bf16,
            has_gelu=self.has_gelu,
            kind=self.kind,
            threads=torch.get_num_threads(),
        )
        return out


class PanelProductGelu(PanelProduct):
    """The same and its GELU by the tanh formula."""

    has_gelu = True


@dataclass(frozen=True)
class StageLayer:
    """A layer's weights. Norms: weight and bias [h]."""

    input_norm: tuple[Tensor, Tensor]
    query_key_value: PanelProduct  # queries of n heads, then [groups, (key, value), d]
    dense: PanelProduct
    post_attention_norm: tuple[Tensor, Tensor]
    h_to_4h: PanelProductGelu
    dense_4h_to_h: PanelProduct

    def vectors(self) -> tuple[Tensor, ...]:
        """Give what is not in a product."""
        return (*self.input_norm, *self.post_attention_norm)

    def addresses(self) -> list[int]:
        """Give where the kernel finds them, in its order."""
        products = (self.query_key_value, self.dense, self.h_to_4h, self.dense_4h_to_h)
        qkv, dense, up, down = ([p.weight.data_ptr(), address(p.bias)] for p in products)
        first, second = (
            [address(x) for x in norm] for norm in (self.input_norm, self.post_attention_norm)
        )
        return [*first, *qkv, *dense, *second, *up, *down]


@dataclass(frozen=True)
class StageEnds:
    """What is at the start and the end of a stack of layers, where a stage has it."""

    words: Tensor | None = None  # [v, h]
    positions: Tensor | None = None  # [p, h]; None: positions are rotary
    norm: tuple[Tensor, Tensor] | None = None  # the final one, of a stage that gives logits
    output: PanelProduct | None = None


class Stage:
    """Layers that take tokens and keep their keys and values with those before them."""

    def __init__(
        self,
        layers: Sequence[StageLayer],
        ends: StageEnds,
        *,
        num_heads: int,
        num_groups: int,
        head_dim: int,
        window: int | None,
        epsilon: float,
    ) -> None:
        """layers: of equal sizes and dtypes, at least one. window: how many tokens one sees, itself included."""
        self._layers, self._ends = tuple(layers), ends  # their memory has to stay
        first = self._layers[0]
        norm = ends.norm or (None, None)
        vectors = [x for layer in self._layers for x in layer.vectors()]
        for x in (*vectors, ends.words, ends.positions, *norm):
            assert x is None or (x.is_contiguous() and x.dtype == torch.float32)
        assert ends.output is None or ends.output.is_bf16 == first.dense.is_bf16
        self.key_panel = _prediction.panel_size(first.dense.kind)  # tokens
        self._out_size = first.dense.out_size if ends.output is None else ends.output.out_size
        self._stage = _prediction.Stage(
            sizes=_prediction.Sizes(
                hidden_size=first.dense.out_size,
                num_heads=num_heads,
                num_groups=num_groups,
                head_dim=head_dim,
                ffn_size=first.h_to_4h.out_size,
                window=window or 0,
                epsilon=epsilon,
            ),
            is_bf16=first.dense.is_bf16,
            kind=first.dense.kind,
            layers=[layer.addresses() for layer in self._layers],
            embedding=(
                address(ends.words),
                0 if ends.words is None else len(ends.words),
                address(ends.positions),
                0 if ends.positions is None else len(ends.positions),
            ),
            head=(
                address(norm[0]),
                address(norm[1]),
                0 if ends.output is None else ends.output.weight.data_ptr(),
                self._out_size,
            ),
        )

    def __call__(
        self,
        tokens: Tensor,
        rows: Tensor,
        positions: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        *,
        rotation: tuple[Tensor, Tensor] | None = None,
        wanted: Sequence[int] | None = None,
    ) -> Tensor:
        """Run tokens, ids int64 [t] where the stage has the embedding, else hidden states [t, h], each at a row's position.

        rows, positions: int64 [t], in the cache, to which the tokens' keys and values are added. A row is filled up to
        each token's position, if need be by this call. keys: fp32, of each layer [rows, g, positions / key_panel, d,
        key_panel]. values: [rows, g, positions, d]. rotation: cos and sin [t, d/2], if positions are rotary. wanted: the
        tokens for which logits are asked; None: all. Gives logits [wanted, v] where the stage has the head, else hidden states [t, h].
        """
        num_tokens = len(tokens)
        assert tokens.is_contiguous() and rows.shape == positions.shape == (num_tokens,)
        assert tokens.dtype == (torch.float32 if self._ends.words is None else torch.int64)
        assert all(x.is_contiguous() and x.dtype == torch.float32 for x in (*keys, *values))
        capacity = values[0].size(2)
        assert keys[0].shape[2::2] == (-(-capacity // self.key_panel), self.key_panel)
        num_out = num_tokens if wanted is None or self._ends.output is None else len(wanted)
        out = torch.empty(num_out, self._out_size)
        self._stage.run(
            tokens=tokens.data_ptr(),
            num_tokens=num_tokens,
            rows=rows.data_ptr(),
            positions=positions.data_ptr(),
            cache=(
                [x.data_ptr() for x in keys],
                [x.data_ptr() for x in values],
                len(values[0]),
                capacity,
            ),
            rotation=(0, 0)
            if rotation is None
            else (rotation[0].data_ptr(), rotation[1].data_ptr()),
            wanted=wanted,
            out=out.data_ptr(),
            threads=torch.get_num_threads(),
        )
        return out
