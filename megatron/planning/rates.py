"""How fast one device does the operations of a model: matrix products, fused attention, reading and writing.

Shapes are those of one tensor parallel process of the options given, values are random (zeros draw less power and run
faster than training does). Knows nothing of other processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron.config import Config
from megatron.kernels.attention import AttentionDropout
from megatron.kernels.documents import Documents
from megatron.kernels.registry import Kernels
from megatron.model.gpt import choose_model_kernels
from megatron.planning.attention import BACKWARD_ATTENTION
from megatron.planning.documents import draw_starts, expected_pairs
from megatron.planning.kernels import countable
from megatron.planning.passes import count_call
from megatron.planning.stopwatch import FEWEST, NUM_WARM_UP, Stopwatch

Call = Callable[[], object]
Operation = Callable[..., "Tensor | tuple[Tensor, ...]"]
NUM_CALLS = NUM_WARM_UP + FEWEST  # of an operation, however slow
TRIAL = 256  # rows or positions of the first try, which says what sizes a device can be given


@dataclass
class Rate:
    """Amounts over seconds, summed over operations as often as a model has them."""

    amount: float = 0.0  # FLOPs or bytes
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)  # a second, by operation

    def add(self, name: str, amount: float, seconds: float, times: int = 1) -> None:
        self.amount += times * amount
        self.seconds += times * seconds
        self.parts[name] = amount / seconds

    @property
    def value(self) -> float:
        """Amount a second."""
        return self.amount / self.seconds


@dataclass(frozen=True)
class Bench:
    """The device and the options that a measurement is for."""

    config: Config
    device: torch.device
    stopwatch: Stopwatch

    @property
    def dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.config.precision.compute_dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def tp_size(self) -> int:
        return self.config.parallel.tensor_model_parallel_size

    @property
    def rows(self) -> int:
        """Tokens of a micro-batch that a process computes with."""
        tokens = self.config.training.micro_batch_size * self.config.data.seq_length
        return tokens // self.config.parallel.context_parallel_size

    @property
    def kernels(self) -> Kernels:
        """What training would choose, products in 8 bits left out."""
        return choose_model_kernels(
            self.config.model,
            self.device,
            self.dtype,
            masks_documents=self.config.data.reset_attention_mask,
            seq_length=self.config.data.seq_length,
            splits_sequences=self.config.parallel.context_parallel_size > 1,
        )

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=self.dtype, device=self.device)

    def trial(self, calls: Iterable[Call]) -> float:
        """Time calls in sum, the second time that they run."""
        return sum([self.stopwatch.once(call) for _ in range(2)][-1] for call in calls)

    def affordable(
        self, size: int, cost: Callable[[int], float], num_bytes: Callable[[int], float]
    ) -> int:
        """Halve a size until it costs 1 at most and takes no more than a third of the memory that is free."""
        room = free_bytes(self.device) / 3
        while size > TRIAL and (cost(size) > 1.0 or num_bytes(size) > room):
            size //= 2
        return size


def free_bytes(device: torch.device) -> float:
    """Give the memory of a device that nobody uses, or that this process only keeps for later tensors."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    with open("/proc/meminfo") as file:
        values = {line.split(":")[0]: line.split()[1] for line in file}
    return float(values["MemAvailable"]) * 1024


def products_of(config: Config) -> dict[str, tuple[int, int, int]]:
    """Name the products of a model as one tensor parallel process does them: (in, out, how many)."""
    model, tp = config.model, config.parallel.tensor_model_parallel_size
    h, layers = model.hidden_size, model.num_layers
    heads, groups = model.num_attention_heads // tp, max(1, model.query_groups // tp)
    return {
        "query": (h, heads * model.head_dim, layers),
        "key_value": (h, 2 * groups * model.head_dim, layers),
        "dense": (heads * model.head_dim, h, layers),
        "dense_h_to_4h": (h, model.ffn_size // tp, layers),
        "dense_4h_to_h": (model.ffn_size // tp, h, layers),
        "output": (h, model.padded_vocab_size // tp, 1),
    }


def measure_products(bench: Bench, budget: float) -> tuple[Rate, int]:
    """Time the products of a model, forward and the two of backward, and give the rows that they had."""
    products = products_of(bench.config)
    share = budget / len(products)
    in_size, out_size, _ = max(products.values(), key=lambda sizes: sizes[0] * sizes[1])
    trial = bench.trial(_product_calls(bench, TRIAL, in_size, out_size).values())
    rows = bench.affordable(
        bench.rows,
        lambda n: NUM_CALLS * trial * n / TRIAL / share,
        lambda n: 2.0 * n * (in_size + out_size) * bench.dtype.itemsize,
    )
    rate = Rate()
    for name, (in_size, out_size, times) in products.items():
        for direction, call in _product_calls(bench, rows, in_size, out_size).items():
            seconds = bench.stopwatch.median(call, share / 3)
            rate.add(f"{name}_{direction}", 2.0 * rows * in_size * out_size, seconds, times)
    return rate, rows


def _product_calls(bench: Bench, rows: int, in_size: int, out_size: int) -> dict[str, Call]:
    """Give the three products of a linear layer, by the function that training would choose."""
    product = bench.kernels.product
    x, weight = bench.random(rows, in_size), bench.random(out_size, in_size)
    grad = bench.random(rows, out_size)
    input_, weight_ = (tensor.detach().requires_grad_() for tensor in (x, weight))
    of_input, of_weight = product(input_, weight, None, None), product(x, weight_, None, None)
    return {
        "forward": lambda: product(x, weight, None, None),
        "input_gradient": lambda: torch.autograd.grad(of_input, input_, grad, retain_graph=True),
        "weight_gradient": lambda: torch.autograd.grad(of_weight, weight_, grad, retain_graph=True),
    }


@dataclass(frozen=True)
class AttentionRates:
    """What was measured of attention, and on what."""

    forward: Rate
    backward: Rate
    kernel: str
    seq_length: int
    batch_size: int


def measure_attention(bench: Bench, document_length: int | None, budget: float) -> AttentionRates:
    """Time the attention that training would choose, the half of the pairs counted that causality leaves."""
    config, model, kernels = bench.config, bench.config.model, bench.kernels
    b, s = config.training.micro_batch_size, config.data.seq_length
    small = min(TRIAL, s)
    calls, _ = _attention_calls(bench, kernels, document_length, 1, small)
    pairs = expected_pairs(small, document_length, model.window_size)
    seconds_per_pair = bench.trial(calls) / pairs

    def cost(b: int, s: int) -> float:
        pairs = b * expected_pairs(s, document_length, model.window_size)
        return NUM_CALLS * seconds_per_pair * pairs / budget

    def num_bytes(b: int, s: int) -> float:
        return 10.0 * b * s * model.num_attention_heads * model.head_dim * bench.dtype.itemsize

    while b > 1 and (cost(b, s) > 1.0 or num_bytes(b, s) > free_bytes(bench.device) / 3):
        b //= 2
    s = bench.affordable(s, lambda s: cost(b, s), lambda s: num_bytes(b, s))
    (attend, differentiate), flops = _attention_calls(bench, kernels, document_length, b, s)
    forward, backward = Rate(), Rate()
    share = budget / (1.0 + BACKWARD_ATTENTION)
    forward.add("attention_forward", flops, bench.stopwatch.median(attend, share))
    seconds = bench.stopwatch.median(differentiate, BACKWARD_ATTENTION * share)
    backward.add("attention_backward", BACKWARD_ATTENTION * flops, seconds)
    return AttentionRates(forward, backward, kernels.choices[0].name, s, b)


def _attention_calls(
    bench: Bench, kernels: Kernels, document_length: int | None, b: int, s: int
) -> tuple[tuple[Call, Call], float]:
    """Give attention forward and backward for b samples of s tokens, and the FLOPs of forward."""
    model = bench.config.model
    heads = model.num_attention_heads // bench.tp_size
    groups = max(1, model.query_groups // bench.tp_size)
    query = bench.random(s, b, heads, model.head_dim).requires_grad_()
    key, value = (bench.random(s, b, groups, model.head_dim).requires_grad_() for _ in range(2))
    grad = bench.random(s, b, heads * model.head_dim)
    dropout = None
    if model.attention_dropout > 0.0:
        keys = torch.arange(s * b, device=bench.device).view(s, b)
        dropout = AttentionDropout(model.attention_dropout, keys, first_head=0, seed=0)
    documents = _draw_documents(bench, document_length, b, s)
    pairs = b * expected_pairs(s, None, model.window_size)
    if documents is not None:  # of those drawn, as squares count pairs
        seen = torch.arange(s) - documents.host_first_keys + 1
        pairs = float((2 * seen - 1).sum()) * b / len(seen)

    def attend() -> Tensor:
        return kernels.attention(query, key, value, dropout, documents)

    out = attend()

    def differentiate() -> object:
        return torch.autograd.grad(out, (query, key, value), grad, retain_graph=True)

    return (attend, differentiate), 2.0 * heads * model.head_dim * pairs


def _draw_documents(
    bench: Bench, document_length: int | None, num_samples: int, seq_length: int
) -> Documents | None:
    """Lay documents out as far as the options hide them from each other; None where causality is all that hides."""
    starts = None
    if bench.config.data.reset_attention_mask and document_length is not None:
        starts = draw_starts(num_samples, seq_length, document_length)
    window = bench.config.model.window_within(seq_length)
    return Documents.create(starts, bench.device, shape=(num_samples, seq_length), window=window)


def measure_copy(bench: Bench, budget: float) -> float:
    """Give the bytes a second, read and written, of a copy that no cache holds."""
    size = int(min(1 << 29, free_bytes(bench.device) / 8))
    source = torch.ones(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    return 2 * size / bench.stopwatch.median(lambda: target.copy_(source), budget)


def measure_memory(bench: Bench, rows: int, budget: float) -> Rate:
    """Time what a layer does besides products and attention, forward and backward, bytes as a plan counts them.

    rows: as many as the products had, which take longer.
    """
    rate = Rate()
    kernels = bench.kernels
    counted = _memory_calls(bench, countable(kernels), rows)
    calls = _memory_calls(bench, kernels, rows)
    for name, (function, inputs) in calls.items():
        grads = [bench.random(*inputs[0].shape) for _ in _tuple(function(*inputs))]

        def both_ways(
            function: Operation = function,
            inputs: tuple[Tensor, ...] = inputs,
            grads: list[Tensor] = grads,
        ) -> object:
            return torch.autograd.grad(_tuple(function(*inputs)), inputs, grads)

        moved = sum(work.other_bytes for work in count_call(*counted[name]))
        rate.add(name, moved, bench.stopwatch.median(both_ways, budget / len(calls)))
    return rate


def _tuple(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def _memory_calls(
    bench: Bench, kernels: Kernels, rows: int
) -> dict[str, tuple[Operation, tuple[Tensor, ...]]]:
    """Give the operations of a layer and their inputs; the first may be overwritten, and is copied for it."""
    h, ffn = bench.config.model.hidden_size, bench.config.model.ffn_size // bench.tp_size
    epsilon = bench.config.model.layernorm_epsilon
    x, residual, wide = (bench.random(rows, size).requires_grad_() for size in (h, h, ffn))
    weight, norm_bias, bias, wide_bias = (
        bench.random(size).requires_grad_() for size in (h, h, h, ffn)
    )
    return {
        "layer_norm": (
            lambda x, weight, bias: kernels.layer_norm(x, weight, bias, epsilon),
            (x, weight, norm_bias),
        ),
        "bias_gelu": (lambda x, bias: kernels.bias_gelu(x.clone(), bias), (wide, wide_bias)),
        "bias_dropout_residual": (
            lambda x, bias, residual: kernels.bias_dropout_residual(
                x.clone(), bias, residual, None
            ),
            (x, bias, residual),
        ),
        "bias_dropout_residual_layer_norm": (
            lambda x, bias, residual, weight, norm_bias: kernels.bias_dropout_residual_layer_norm(
                x.clone(), bias, residual, None, weight, norm_bias, epsilon
            ),
            (x, bias, residual, weight, norm_bias),
        ),
    }
