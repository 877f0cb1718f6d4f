"""The operations of a training step as cases to time: attention, what is fused, products, copies, the optimizer's.

Inputs are what a layer of a model gives its operations, with values of ordinary size: a GPU's clock, and with it its
speed, depends on them. An operation's work is the least that it can do: each tensor read or written once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron.benchmark.kernel_timer import Case, Work
from megatron.errors import ConfigError
from megatron.kernels import cpu_library, cuda_library
from megatron.kernels.attention import AttentionFunction
from megatron.kernels.choice import Situation
from megatron.kernels.cross_entropy import CrossEntropy
from megatron.kernels.documents import Documents
from megatron.kernels.dropout import Dropout, token_keys
from megatron.kernels.fp8_product import fp8_product
from megatron.kernels.linear_product import Product, linear_product
from megatron.kernels.operation_choice import IMPLEMENTATIONS, OPERATIONS
from megatron.model.flops import attended_pairs
from megatron.model.gpt import choose_model_kernels
from megatron.options import ModelConfig

EPSILON = 1e-5


@dataclass(frozen=True)
class Size:
    """The activations of a micro-batch."""

    model: ModelConfig
    seq_length: int
    micro_batch_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def num_tokens(self) -> int:
        return self.seq_length * self.micro_batch_size

    def activations(self, *width: int) -> Tensor:
        """Make [s, b, *width] of normal numbers."""
        return self.tensor(self.seq_length, self.micro_batch_size, *width)

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.dtype, device=self.device)


class _Products(torch.autograd.Function):
    """Gives tensors as if a layer before had made them: an operation may write over them, and no time is spent."""

    @staticmethod
    def forward(ctx: Any, trigger: Tensor, made: Sequence[Tensor]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(trigger)
        return tuple(x.detach() for x in made)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


def _passes(
    operation: Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]],
    activations: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Give an operation's forward pass, and forward and backward, of outputs from activations and weights."""
    trigger = torch.zeros((), device=activations[0].device, requires_grad=True)
    leaves = [weight.requires_grad_() for weight in weights]

    def forward() -> Sequence[Tensor]:
        return operation(_Products.apply(trigger, activations), leaves)

    grads = [torch.randn_like(output) for output in forward()]

    def both() -> object:
        return torch.autograd.grad(forward(), [trigger, *leaves], grads)

    return forward, both


def attention_cases(size: Size, backends: Sequence[str], document_length: int) -> Iterator[Case]:
    """Causal attention by each backend: of whole samples, and of documents of one length."""
    for masks, length in ((False, size.seq_length), (True, document_length)):
        if masks and length >= size.seq_length:
            continue
        num_documents = size.num_tokens / length
        model = size.model
        pairs = num_documents * attended_pairs(length, None) / 2
        # a product of queries and keys, and one of probabilities and values; backward has five
        flops = 2 * 2.0 * pairs * model.num_attention_heads * model.head_dim
        what = f"attention, documents of {length:,}" if masks else "attention"
        for backend in backends:
            function = _attention(size, backend, masks)
            if isinstance(function, str):
                yield impossible(what, backend, function)
                continue
            starts = _starts(size, length) if masks else None

            def prepare(
                function: AttentionFunction = function, starts: Tensor | None = starts
            ) -> tuple[Callable[[], object], Callable[[], object]]:
                return _attention_passes(size, function, starts)

            yield Case(what, backend, Work(flops, 2.5 * flops, "flop"), prepare)


def _attention(size: Size, backend: str, masks_documents: bool) -> AttentionFunction | str:
    """Give a backend's function, or why it cannot run."""
    given: dict[str, Any] = {"attention_backend": backend, "attention_dropout": 0.0}
    model = dataclasses.replace(size.model, **given)
    try:
        return choose_model_kernels(
            model,
            size.device,
            size.dtype,
            masks_documents=masks_documents,
            seq_length=size.seq_length,
        ).attention
    except ConfigError as error:
        words = str(error).removeprefix(f"--attention-backend {backend} ")
        return words.removesuffix("; use --attention-backend auto")


def _starts(size: Size, length: int) -> Tensor:
    positions = torch.arange(size.seq_length)
    return (positions - positions % length).expand(size.micro_batch_size, -1).contiguous()


def _attention_passes(
    size: Size, function: AttentionFunction, starts: Tensor | None
) -> tuple[Callable[[], object], Callable[[], object]]:
    model = size.model
    heads, groups, d = model.num_attention_heads, model.query_groups, model.head_dim
    activations = [size.activations(n, d) for n in (heads, groups, groups)]
    shape = (size.micro_batch_size, size.seq_length)
    documents = Documents.create(starts, size.device, shape=shape, window=None)

    def attend(inputs: Sequence[Tensor], _: Sequence[Tensor]) -> Sequence[Tensor]:
        query, key, value = inputs
        return [function(query, key, value, None, documents)]

    return _passes(attend, activations, [])


def impossible(what: str, implementation: str, obstacle: str) -> Case:
    """Stand in the table for what cannot run, with the reason."""

    def prepare() -> tuple[Callable[[], object], None]:
        raise ConfigError(obstacle)

    return Case(what, implementation, Work(0, 0, "flop"), prepare)


def operation_cases(size: Size, implementations: Sequence[str] = IMPLEMENTATIONS) -> Iterator[Case]:
    """Every operation of the registry that is known here, by each implementation that it has."""
    situation = Situation(
        size.device.type,
        size.dtype,
        size.model.head_dim,
        attention_dropout=0.0,
        without_library=cuda_library.obstacle(),
        without_cpu_operations=cpu_library.obstacle("_cpu_operations"),
    )
    for operation in OPERATIONS:
        if operation.name not in _OPERATIONS:
            continue
        for dropout in _DROPOUTS.get(operation.name, (0.0,)):
            what = operation.name + (f", dropout {dropout:g}" if dropout else "")
            for name in reversed(implementations):
                function = operation.by(name, size.device.type)
                obstacle = operation.fused_obstacle(situation) if name == "fused" else None
                if obstacle is not None:
                    yield impossible(what, name, obstacle)
                    continue
                if function is None:
                    continue
                yield _OPERATIONS[operation.name](size, what, name, function, dropout)


def _layer_norm(size: Size, what: str, name: str, function: Any, _: float) -> Case:
    h = size.model.hidden_size

    def prepare() -> tuple[Callable[[], object], Callable[[], object]]:
        return _passes(
            lambda x, w: [function(x[0], w[0], w[1], EPSILON)],
            [size.activations(h)],
            [size.tensor(h), size.tensor(h)],
        )

    return Case(what, name, _traffic(size, h, 2, 3), prepare)


def _bias_gelu(size: Size, what: str, name: str, function: Any, _: float) -> Case:
    f = size.model.ffn_size

    def prepare() -> tuple[Callable[[], object], Callable[[], object]]:
        return _passes(
            lambda x, w: [function(x[0], w[0])], [size.activations(f)], [size.tensor(f) * 0.01]
        )

    return Case(what, name, _traffic(size, f, 2, 3), prepare)


def _bias_dropout_residual(size: Size, what: str, name: str, function: Any, p: float) -> Case:
    h, dropout = size.model.hidden_size, _dropout(size, p)

    def prepare() -> tuple[Callable[[], object], Callable[[], object]]:
        return _passes(
            lambda x, w: [function(x[0], w[0], x[1], dropout)],
            [size.activations(h), size.activations(h)],
            [size.tensor(h) * 0.01],
        )

    # without dropout backward only sums the bias's gradient
    return Case(what, name, _traffic(size, h, 3, 2 if p else 1), prepare)


def _residual_and_norm(size: Size, what: str, name: str, function: Any, p: float) -> Case:
    h, dropout = size.model.hidden_size, _dropout(size, p)

    def prepare() -> tuple[Callable[[], object], Callable[[], object]]:
        return _passes(
            lambda x, w: function(x[0], w[0], x[1], dropout, w[1], w[2], EPSILON),
            [size.activations(h), size.activations(h)],
            [size.tensor(h) * 0.01, size.tensor(h), size.tensor(h)],
        )

    return Case(what, name, _traffic(size, h, 4, 5 if p else 4), prepare)


def _cross_entropy(size: Size, what: str, name: str, function: CrossEntropy, _: float) -> Case:
    rows, v = size.num_tokens, size.model.padded_vocab_size

    def prepare() -> tuple[Callable[[], object], Callable[[], object]]:
        logits, labels = size.tensor(rows, v), _labels(size)
        scale = torch.full((rows,), 1.0 / rows, device=size.device)

        def forward() -> Tensor:
            return function.row_statistics(logits, labels, v)[0]

        return forward, lambda: function.gradient_(logits, labels, v, forward(), scale)

    return Case(what, name, _traffic(size, v, 1, 2), prepare)


def _softmax(size: Size, what: str, name: str, function: Any, _: float) -> Case:
    """Of one sample: all scores at once are much."""
    n, s = size.model.num_attention_heads, size.seq_length

    def prepare() -> tuple[Callable[[], object], Callable[[], object]]:
        scores = [size.tensor(1, n, s, s)]
        return _passes(lambda x, _: [function(x[0], size.model.head_dim**-0.5, None)], scores, [])

    num_bytes = float(n * s * s * size.dtype.itemsize)
    # half of the scores, of the gradients and of the probabilities need not be read
    return Case(what, name, Work(1.5 * num_bytes, 2 * num_bytes, "byte"), prepare)


def torch_cross_entropy_cases(size: Size, with_compiled: bool) -> Iterator[Case]:
    """PyTorch's own cross entropy of whole logits, as it is and compiled."""

    def plain(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels)

    functions: dict[str, Any] = {"torch": plain}
    if with_compiled:
        functions["torch, compiled"] = torch.compile(plain, dynamic=False)
    for name, function in functions.items():

        def prepare(
            function: Any = function,
        ) -> tuple[Callable[[], object], Callable[[], object]]:
            labels = _labels(size)
            logits = size.tensor(size.num_tokens, size.model.padded_vocab_size)
            return _passes(lambda x, _: [function(x[0], labels)], [logits], [])

        work = _traffic(size, size.model.padded_vocab_size, 1, 2)
        yield Case("cross_entropy", name, work, prepare)


_OPERATIONS: dict[str, Callable[[Size, str, str, Any, float], Case]] = {
    "layer_norm": _layer_norm,
    "bias_gelu": _bias_gelu,
    "bias_dropout_residual": _bias_dropout_residual,
    "bias_dropout_residual_layer_norm": _residual_and_norm,
    "cross_entropy": _cross_entropy,
    "softmax": _softmax,
}
_DROPOUTS = {
    "bias_dropout_residual": (0.0, 0.1),
    "bias_dropout_residual_layer_norm": (0.0, 0.1),
}


def _labels(size: Size) -> Tensor:
    return torch.randint(size.model.vocab_size, (size.num_tokens,), device=size.device)


def _dropout(size: Size, probability: float) -> Dropout | None:
    if probability == 0.0:
        return None
    samples = torch.arange(size.micro_batch_size, device=size.device)
    positions = torch.arange(size.seq_length, device=size.device)
    return Dropout(probability, token_keys(samples, positions))


def _traffic(size: Size, width: int, forward: int, backward: int) -> Work:
    """Give the bytes of so many tensors [s, b, width] a pass."""
    num_bytes = size.num_tokens * width * size.dtype.itemsize
    return Work(float(forward * num_bytes), float(backward * num_bytes), "byte")


def product_cases(size: Size) -> Iterator[Case]:
    """The products of a layer and the LM head: forward, and the gradients of inputs and of weights."""
    model = size.model
    heads = model.num_attention_heads * model.head_dim
    shapes = {
        "query": (model.hidden_size, heads),
        "key_value": (model.hidden_size, 2 * model.query_groups * model.head_dim),
        "dense": (heads, model.hidden_size),
        "dense_h_to_4h": (model.hidden_size, model.ffn_size),
        "dense_4h_to_h": (model.ffn_size, model.hidden_size),
        "LM head": (model.hidden_size, model.padded_vocab_size),
    }
    for name, (width, out) in shapes.items():
        what = f"product {name}, {size.num_tokens:,} x {width:,} x {out:,}"
        flops = 2.0 * size.num_tokens * width * out
        work = Work(flops, 2 * flops, "flop")
        yield Case(what, "reference", work, _product_passes(size, linear_product, width, out))
        if size.device.type != "cuda" or torch.cuda.get_device_capability() < (8, 9):
            yield impossible(what, "fp8", "needs a GPU of compute capability 8.9")
            continue
        yield Case(what, "fp8", work, _product_passes(size, fp8_product, width, out))


def _product_passes(
    size: Size, product: Product, width: int, out: int
) -> Callable[[], tuple[Callable[[], object], Callable[[], object]]]:
    def prepare() -> tuple[Callable[[], object], Callable[[], object]]:
        weight = size.tensor(out, width) * width**-0.5
        return _passes(
            lambda x, w: [product(x[0], w[0], None, None)], [size.activations(width)], [weight]
        )

    return prepare


def copy_case(size: Size) -> Case:
    """A copy of a large tensor: the bandwidth that there is."""
    num_elements = 1 << (30 if size.device.type == "cuda" else 24)

    def prepare() -> tuple[Callable[[], object], None]:
        source = torch.ones(num_elements, dtype=torch.uint8, device=size.device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source), None

    return Case(
        f"copy of {num_elements / 1e6:,.0f} MB",
        "torch",
        Work(2.0 * num_elements, 0, "byte"),
        prepare,
    )
