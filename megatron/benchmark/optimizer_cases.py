"""What the optimizer does with all weights of a model, as cases to time: AdamW, and what is done with gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from megatron.benchmark.kernel_cases import Size, impossible
from megatron.benchmark.kernel_timer import Case, Work
from megatron.kernels import cuda_library
from megatron.kernels.accumulate import add_product_
from megatron.kernels.adamw import Rates, Shards, adamw_, fused_adamw_
from megatron.kernels.square_sum import fused_square_sum, square_sum
from megatron.model.flops import num_parameters
from megatron.options import ModelConfig


def optimizer_cases(size: Size) -> Iterator[Case]:
    """Both with fp32 weights and gradients, AdamW with moments in fp32 and in bf16; and adding gradients up."""
    count = num_parameters(size.model)
    for moments in (torch.float32, torch.bfloat16):
        # reads weight, gradient and both moments, writes all but the gradient
        traffic = Work(float(count * (3 * 4 + 4 * moments.itemsize)), 0, "byte")
        what = f"AdamW, moments {str(moments).removeprefix('torch.')}"
        yield from _two_ways(size, what, traffic, _adamw(size, moments), adamw_, fused_adamw_)
    traffic = Work(4.0 * count, 0, "byte")
    yield from _two_ways(
        size, "square sum of gradients", traffic, _square_sum(size), square_sum, fused_square_sum
    )
    yield from _weight_gradient_cases(size)


Prepare = Callable[[Any], Callable[[], object]]


def _two_ways(
    size: Size, what: str, traffic: Work, prepare: Prepare, reference: Any, fused: Any
) -> Iterator[Case]:
    yield Case(what, "reference", traffic, lambda: (prepare(reference), None))
    obstacle = cuda_library.obstacle() if size.device.type == "cuda" else "needs a GPU"
    if obstacle is not None:
        yield impossible(what, "fused", obstacle)
    else:
        yield Case(what, "fused", traffic, lambda: (prepare(fused), None))


def _adamw(size: Size, moments: torch.dtype) -> Prepare:
    def prepare(update: Any) -> Callable[[], object]:
        shapes = weight_shapes(size.model)
        shards = Shards(
            _tensors(size, shapes, torch.float32),
            _tensors(size, shapes, torch.float32),
            _tensors(size, shapes, moments),
            [x.abs_() for x in _tensors(size, shapes, moments)],
            [0.1 if len(shape) > 1 else 0.0 for shape in shapes],
        )
        rates = Rates(1e-4, 0.9, 0.95, 1e-8)
        factor, num_steps = (torch.ones((), device=size.device) for _ in range(2))
        return lambda: update(shards, rates, factor, num_steps)

    return prepare


def _square_sum(size: Size) -> Prepare:
    def prepare(add_up: Any) -> Callable[[], object]:
        gradients = _tensors(size, weight_shapes(size.model), torch.float32)
        weights = [1.0] * len(gradients)
        return lambda: add_up(gradients, weights, size.device)

    return prepare


def _weight_gradient_cases(size: Size) -> Iterator[Case]:
    """The gradient of the MLP's first weight, added to its sum in fp32: by itself, and by the product that makes it."""
    rows, h, f = size.num_tokens, size.model.hidden_size, size.model.ffn_size

    def prepare(add: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], object]:
        grad, x = _tensors(size, [(rows, f), (rows, h)], size.dtype)
        total = torch.zeros(f, h, device=size.device)
        return lambda: add(total, grad.t(), x)

    what, work = "weight gradient into its sum in fp32", Work(2.0 * rows * h * f, 0, "flop")
    yield Case(
        what,
        "reference",
        work,
        lambda: (prepare(lambda total, left, right: total.add_(left @ right)), None),
    )
    yield Case(what, "fused", work, lambda: (prepare(add_product_), None))


def _tensors(size: Size, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, device=size.device) * 0.01 for shape in shapes]


def weight_shapes(model: ModelConfig) -> list[tuple[int, ...]]:
    """Give the shapes of all weights of a model with biases, learned positions and a tied embedding."""
    h, f, d = model.hidden_size, model.ffn_size, model.head_dim
    queries, key_values = model.num_attention_heads * d, 2 * model.query_groups * d
    matrices = [(queries, h), (key_values, h), (h, queries), (f, h), (h, f)]
    vectors = [(rows,) for rows, _ in matrices] + 4 * [(h,)]
    tables = [(model.padded_vocab_size, h), (model.max_position_embeddings, h)]
    return [*tables, *model.num_layers * [*matrices, *vectors], (h,), (h,)]
