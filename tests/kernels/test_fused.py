"""Fused operations against autograd through their references; their CUDA kernels against the same formulas on the CPU."""

import pytest
import torch
from torch import Tensor, library

from megatron.kernels.bias_dropout_residual import (
    bias_dropout_residual,
    bias_dropout_residual_layer_norm,
    fused_bias_dropout_residual,
    fused_bias_dropout_residual_layer_norm,
)
from megatron.kernels.bias_gelu import bias_gelu, fused_bias_gelu
from megatron.kernels.dropout import Dropout, drop_mask, token_keys
from megatron.kernels.layer_norm import fused_layer_norm, layer_norm

REFERENCE = {
    "norm": layer_norm,
    "gelu": bias_gelu,
    "sum": bias_dropout_residual,
    "sum and norm": bias_dropout_residual_layer_norm,
}
FUSED = {
    "norm": fused_layer_norm,
    "gelu": fused_bias_gelu,
    "sum": fused_bias_dropout_residual,
    "sum and norm": fused_bias_dropout_residual_layer_norm,
}
CASES = {  # the operation, and which of x [s, b, h], bias [h] and so on it is given
    "norm": ("norm", ["x", "weight", "norm_bias"]),
    "gelu": ("gelu", ["x"]),
    "bias gelu": ("gelu", ["x", "bias"]),
    "sum": ("sum", ["x", "residual"]),
    "bias sum": ("sum", ["x", "bias", "residual"]),
    "dropout sum": ("sum", ["x", "residual", "dropout"]),
    "bias dropout sum": ("sum", ["x", "bias", "residual", "dropout"]),
    "sum and norm": ("sum and norm", ["x", "residual", "weight", "norm_bias"]),
    "bias sum and norm": ("sum and norm", ["x", "bias", "residual", "weight", "norm_bias"]),
    "dropout sum and norm": (
        "sum and norm",
        ["x", "residual", "weight", "norm_bias", "dropout"],
    ),
    "bias dropout sum and norm": (
        "sum and norm",
        ["x", "bias", "residual", "weight", "norm_bias", "dropout"],
    ),
}
every_case = pytest.mark.parametrize("operation, given", CASES.values(), ids=CASES)

PROBABILITY, EPSILON = 0.3, 1e-5
# Relative to an element or, where it is nearly 0, to the root mean square of its tensor.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
HALF_AND_SINGLE = [torch.float32, torch.bfloat16, torch.float16]


def row_keys(shape: tuple[int, ...]) -> Tensor:
    return token_keys(torch.arange(7, 7 + shape[1]), torch.arange(shape[0]))


def draw(given: list[str], shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors by name, those of floating point requiring gradients."""
    generator = torch.Generator().manual_seed(shape[-1])
    inputs = {}
    for name in given:
        if name == "dropout":
            inputs[name] = row_keys(shape)
            continue
        size = shape if name in ("x", "residual") else shape[-1:]
        inputs[name] = torch.randn(size, generator=generator).to(dtype).requires_grad_()
    return inputs


def call(
    functions: dict, operation: str, inputs: dict[str, Tensor], probability: float = PROBABILITY
) -> tuple[Tensor, ...]:
    """Call an operation with what it is given."""
    bias, residual = inputs.get("bias"), inputs.get("residual")
    dropout = Dropout(probability, inputs["dropout"]) if "dropout" in inputs else None
    # a reference may overwrite x
    x = inputs["x"] * 1 if functions is REFERENCE else inputs["x"]
    norm = [inputs[name] for name in ("weight", "norm_bias") if name in inputs]
    arguments = {
        "norm": (x, *norm, EPSILON),
        "gelu": (x, bias),
        "sum": (x, bias, residual, dropout),
        "sum and norm": (x, bias, residual, dropout, *norm, EPSILON),
    }
    result = functions[operation](*arguments[operation])
    return result if isinstance(result, tuple) else (result,)


def compute(
    functions: dict, operation: str, inputs: dict[str, Tensor], outputs: slice = slice(None)
) -> dict[str, Tensor]:
    """Give the results, and the gradients of a weighted sum of some of them."""
    results = call(functions, operation, inputs)
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=torch.float64, device=results[0].device)
    for result in results[outputs]:
        weights = torch.randn(result.shape, generator=generator).to(result)
        total = total + (result * weights).sum(dtype=torch.float64)
    leaves = {name: x for name, x in inputs.items() if x.requires_grad}
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    given = {f"d_{name}": x for name, x in zip(leaves, gradients, strict=True) if x is not None}
    return {f"result {number}": x for number, x in enumerate(results)} | given


def assert_near(actual: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    assert actual.keys() == expected.keys()
    for name, other in expected.items():
        one, other = actual[name].detach().cpu().double(), other.detach().cpu().double()
        atol = TOLERANCE[dtype] * other.square().mean().sqrt().item()
        torch.testing.assert_close(
            one,
            other,
            rtol=TOLERANCE[dtype],
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_values_and_gradients_are_those_of_the_reference(operation, given, dtype):
    inputs = draw(given, (5, 3, 7), dtype)
    before = {name: x.detach().clone() for name, x in inputs.items()}
    actual = compute(FUSED, operation, inputs)
    for name, x in inputs.items():
        assert torch.equal(x, before[name]), f"{name} was overwritten"
    wide = {
        name: x.detach().double().requires_grad_() if x.is_floating_point() else x
        for name, x in inputs.items()
    }
    assert_near(actual, compute(REFERENCE, operation, wide), dtype)
    assert all(x.dtype == dtype for x in actual.values())


@pytest.mark.parametrize("name", [name for name in CASES if "and norm" in name])
@pytest.mark.parametrize("outputs", [slice(0, 1), slice(1, 2)], ids=["sum", "norm"])
def test_either_result_alone_may_be_used(outputs, name):
    operation, given = CASES[name]
    inputs = draw(given, (5, 3, 7), torch.float64)
    actual = compute(FUSED, operation, inputs, outputs)
    assert_near(actual, compute(REFERENCE, operation, inputs, outputs), torch.float64)


def test_gradient_that_x_and_residual_share_is_one_tensor():
    for given, is_shared in ((["x", "residual"], True), (["x", "residual", "dropout"], False)):
        for operation, norm in (("sum", []), ("sum and norm", ["weight", "norm_bias"])):
            gradients = compute(FUSED, operation, draw(given + norm, (5, 3, 7), torch.float32))
            pointers = gradients["d_x"].data_ptr(), gradients["d_residual"].data_ptr()
            assert (pointers[0] == pointers[1]) == is_shared


@every_case
def test_operators_keep_the_rules_of_torch(operation, given):
    """No argument changed or returned, shapes known without data, gradients that a compiler can trace."""
    inputs = draw(given, (3, 2, 5), torch.float32)
    x, bias, residual = (inputs.get(name) for name in ("x", "bias", "residual"))
    keys, weight, norm_bias = (inputs.get(name) for name in ("dropout", "weight", "norm_bias"))
    probability = 0.0 if keys is None else PROBABILITY
    operators, arguments = (
        torch.ops.megatron,
        {
            "norm": (x, weight, norm_bias, EPSILON),
            "gelu": (x, bias),
            "sum": (x, bias, residual, keys, probability),
            "sum and norm": (x, bias, residual, keys, weight, norm_bias),
        }[operation],
    )
    operator, keywords = {
        "norm": (operators.layer_norm, {}),
        "gelu": (operators.bias_gelu, {}),
        "sum": (operators.bias_dropout_residual, {}),
        "sum and norm": (
            operators.bias_dropout_residual_layer_norm,
            {"probability": probability, "epsilon": EPSILON},
        ),
    }[operation]
    library.opcheck(operator.default, arguments, keywords)


@pytest.mark.parametrize("has_dropout", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_backward_operators_keep_the_rules_of_torch(has_bias, has_dropout):
    x, dy = torch.randn(2, 3, 2, 5)
    weight, mean, rstd = torch.randn(5), torch.randn(3, 2), torch.rand(3, 2)
    keys, probability = (row_keys((3, 2)), PROBABILITY) if has_dropout else (None, 0.0)
    operators = torch.ops.megatron
    library.opcheck(operators.bias_gelu_backward.default, (dy, x, weight if has_bias else None))
    library.opcheck(
        operators.bias_dropout_residual_backward.default, (dy, keys, probability, has_bias)
    )
    for d_total in (None, dy):
        library.opcheck(
            operators.layer_norm_backward.default,
            (dy, d_total, x, mean, rstd, weight, keys),
            {"probability": probability, "has_bias": has_bias},
        )


@every_case
def test_a_compiler_sees_one_graph(operation, given):
    inputs = draw(given, (5, 3, 7), torch.float32)
    torch.compiler.reset()  # it counts how often one line of source is compiled
    compiled = torch.compile(
        lambda inputs: compute_doubled(operation, inputs), fullgraph=True, backend="aot_eager"
    )
    expected = compute_doubled(operation, inputs)
    actual = compiled(inputs)
    leaves = [x for x in inputs.values() if x.requires_grad]
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, leaves)
    )


def compute_doubled(operation: str, inputs: dict[str, Tensor]) -> Tensor:
    return sum((2 * result).square().sum() for result in call(FUSED, operation, inputs))


def on_gpu(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach().cuda().requires_grad_(x.requires_grad) for name, x in inputs.items()}


def assert_gpu_equals_cpu(operation: str, inputs: dict[str, Tensor]) -> None:
    """fp32 against fp64; half precision against itself, whose sum is rounded before it is normalised."""
    dtype = inputs["x"].dtype
    actual = compute(FUSED, operation, on_gpu(inputs))
    if dtype == torch.float32:
        inputs = {
            name: x.detach().double().requires_grad_() if x.requires_grad else x
            for name, x in inputs.items()
        }
    assert_near(actual, compute(FUSED, operation, inputs), dtype)


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("width", [7, 100, 2047, 2048, 6144, 12288])
def test_kernels_compute_what_the_cpu_does(width, dtype, operation, given):
    assert_gpu_equals_cpu(operation, draw(given, (37, 3, width), dtype))


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 1, 2048), (20000, 5, 8), (3001, 1, 512), (9, 1, 40000), (9, 1, 40001)],
    ids=str,
)
def test_kernels_take_few_and_many_rows_and_wide_ones(shape, operation, given):
    """A row beyond what registers and shared memory hold is read again instead."""
    assert_gpu_equals_cpu(operation, draw(given, shape, torch.bfloat16))


@pytest.mark.gpu
@every_case
def test_kernels_take_no_rows(operation, given):
    inputs = on_gpu(draw(given, (0, 3, 64), torch.bfloat16))
    for name, x in compute(FUSED, operation, inputs).items():
        assert x.numel() == 0 or not x.any(), name


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_kernels_take_views_and_odd_addresses(dtype, operation, given):
    inputs = on_gpu(draw(given, (37, 3, 128), dtype))
    expected = compute(FUSED, operation, inputs)
    for view in (strided, shifted):
        viewed = {
            name: view(x.detach()).requires_grad_(x.requires_grad) for name, x in inputs.items()
        }
        actual = compute(FUSED, operation, viewed)
        assert_near(actual, expected, dtype)


def strided(x: Tensor) -> Tensor:
    return x if x.ndim == 1 else x.transpose(0, 1).contiguous().transpose(0, 1)


def shifted(x: Tensor) -> Tensor:
    """The same numbers one element after an address of 16 bytes."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize("width", [2048, 2047, 40000])
def test_two_runs_give_the_same_bits(width, operation, given):
    inputs = on_gpu(draw(given, (333, 3, width), torch.bfloat16))
    first, second = (compute(FUSED, operation, inputs) for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.gpu
@pytest.mark.parametrize("probability", [0.1, 0.5])
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("width", [7, 100, 2047, 2048, 40000])
@pytest.mark.parametrize("operation", ["sum", "sum and norm"])
def test_kernels_drop_what_the_reference_drops(operation, width, dtype, probability):
    shape = (19, 3, width)
    ones = torch.ones(shape, dtype=dtype, device="cuda")
    vector = torch.ones(width, dtype=dtype, device="cuda")
    inputs = {
        "x": ones.requires_grad_(),
        "residual": torch.zeros_like(ones),
        "weight": vector,
        "norm_bias": vector,
        "dropout": row_keys(shape).cuda(),
    }
    dropped = drop_mask(row_keys(shape), width, probability).cuda()
    results = call(FUSED, operation, inputs, probability)
    assert torch.equal(results[0] == 0, dropped)
    # the norm's gradient could be 0 by chance: only the sum's is looked at
    (gradient,) = torch.autograd.grad(results[0].sum(), inputs["x"], retain_graph=True)
    assert torch.equal(gradient == 0, dropped)
    if operation == "sum and norm":
        weights = torch.randn(shape, device="cuda").to(dtype)
        (gradient,) = torch.autograd.grad(
            (results[1] * weights).sum() + results[0].sum(), inputs["x"]
        )
        assert not gradient[dropped].any()


@pytest.mark.gpu
@pytest.mark.parametrize("operation", ["norm", "gelu", "sum"])
def test_kernels_take_more_than_two_to_the_31_elements(operation):
    rows, width = (1 << 31) // 4096 + 3, 4096
    x = torch.empty(rows, width, dtype=torch.bfloat16, device="cuda").normal_().requires_grad_()
    vector = torch.ones(width, dtype=torch.bfloat16, device="cuda")
    keys = torch.arange(rows, device="cuda")

    def run(x: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        inputs = {"x": x, "weight": vector, "norm_bias": vector, "bias": vector, "dropout": keys}
        if operation == "sum":
            inputs["residual"] = x.detach()
        (result,) = call(FUSED, operation, inputs)
        return result, torch.autograd.grad(result, x, x.detach())[0]

    expected = run(x[-5:].detach().requires_grad_(), keys[-5:])
    for whole, last in zip(run(x, keys), expected, strict=True):
        assert torch.equal(whole[-5:], last)
