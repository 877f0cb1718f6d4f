"""What Python passes to each CUDA kernel is what csrc/*.cu declares, argument by argument. No GPU is needed.

The wrappers run with tensors of the CPU and call a library that only looks at what it gets. Each argument has to be of
the declared type and be what the C source calls it: two pointers in the wrong order show, as a number does.
"""

import ctypes
import itertools
import re
from ctypes import c_double, c_float, c_int64, c_void_p

import pytest
import torch
from torch import Tensor

from megatron.kernels import cross_entropy, cuda_library
from megatron.kernels.adamw import Rates, Shards, fused_adamw_
from megatron.kernels.bias_dropout_residual import _sum_and_norm_cuda, _sum_backward_cuda, _sum_cuda
from megatron.kernels.bias_gelu import _bias_gelu_backward_cuda, _bias_gelu_cuda
from megatron.kernels.dropout import drop_level, keep_scale
from megatron.kernels.layer_norm import _layer_norm_backward_cuda, _layer_norm_cuda
from megatron.kernels.masked_softmax import _softmax_backward_cuda, _softmax_cuda
from megatron.kernels.multi_tensor import CHUNK_SIZE
from megatron.kernels.square_sum import fused_square_sum
from tests.kernels.cuda_stand_in import STREAM, pretend
from tests.kernels.test_build import FUNCTIONS

BF16 = 1  # csrc/vector.cuh's kind of a tensor
ROWS, COLUMNS = 6, 5
PROBABILITY, EPSILON, SCALE = 0.25, 1e-3, 0.3

# What a pointer of C may point to; void is of the dtype that the kernel is told, here always bf16.
POINTERS = {
    "void": torch.bfloat16,
    "float": torch.float32,
    "double": torch.float64,
    "int64_t": torch.int64,
}
NUMBERS = {"int64_t": c_int64, "float": c_float, "double": c_double}


class Scratch:
    """Stands for memory of which only the kernel knows what it is for."""


class Library:
    """Takes any call, remembers what it was given and says that all went well."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[ctypes._SimpleCData, ...]]] = []

    def __getattr__(self, name):
        def function(*args):
            self.calls.append((name, args))
            return 0

        return function


@pytest.fixture
def called(monkeypatch):
    """Calls of kernels, and what `launch` was given for them."""
    library, given = Library(), []
    to_c = cuda_library._argument

    def look(value):
        given.append(value)
        return to_c(value)

    monkeypatch.setattr(cuda_library, "_argument", look)
    pretend(monkeypatch, library)
    return library.calls, given


def bf16(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def fp32(*shape: int) -> Tensor:
    return torch.zeros(shape)


def matrix() -> Tensor:
    """Some [2, 3, COLUMNS], of ROWS rows."""
    return bf16(2, 3, COLUMNS)


SIZES = {"rows": ROWS, "columns": COLUMNS, "dtype": BF16}
DROPS = {"level": drop_level(PROBABILITY), "scale": keep_scale(PROBABILITY)}
DROPS_NOTHING = {"row_keys": None, "level": 0, "scale": 1.0}
SUM_SCRATCH = {"scratch": Scratch, "scratch_size": ROWS * COLUMNS}
NO_SCRATCH = {"scratch": None, "scratch_size": 0}


def row_keys() -> Tensor:
    return torch.zeros(2, 3, dtype=torch.int64)


def bias_gelu(has_options: bool):
    x, bias = matrix(), bf16(COLUMNS) if has_options else None
    return {"x": x, "bias": bias, "y": _bias_gelu_cuda(x, bias), **SIZES}


def bias_gelu_backward(has_options: bool):
    dy, x, bias = matrix(), matrix(), bf16(COLUMNS) if has_options else None
    dx, d_bias = _bias_gelu_backward_cuda(dy, x, bias)
    sums = {"d_bias": d_bias, **SUM_SCRATCH} if has_options else {"d_bias": None, **NO_SCRATCH}
    return {"dy": dy, "x": x, "bias": bias, "dx": dx, **sums, **SIZES}


def bias_dropout_residual(has_options: bool):
    x, residual, bias, keys = matrix(), matrix(), None, None
    if has_options:
        bias, keys = bf16(COLUMNS), row_keys()
    total = _sum_cuda(x, bias, residual, keys, PROBABILITY)
    drops = {"row_keys": keys, **DROPS} if has_options else DROPS_NOTHING
    return {"x": x, "bias": bias, "residual": residual, "total": total, **drops, **SIZES}


def bias_dropout_residual_backward(has_options: bool):
    dy = matrix()
    if not has_options:
        _sum_backward_cuda(dy, None, PROBABILITY, False)
        return {"dy": dy, "dx": None, "d_bias": None, **DROPS_NOTHING, **NO_SCRATCH, **SIZES}
    keys = row_keys()
    dx, d_bias = _sum_backward_cuda(dy, keys, PROBABILITY, True)
    drops = {"row_keys": keys, **DROPS}
    return {"dy": dy, "dx": dx, "d_bias": d_bias, **drops, **SUM_SCRATCH, **SIZES}


def bias_dropout_residual_layer_norm(has_options: bool):
    x, residual, weight, norm_bias = matrix(), matrix(), bf16(COLUMNS), bf16(COLUMNS)
    bias, keys = (bf16(COLUMNS), row_keys()) if has_options else (None, None)
    total, normed, mean, rstd = _sum_and_norm_cuda(
        x, bias, residual, keys, weight, norm_bias, probability=PROBABILITY, epsilon=EPSILON
    )
    drops = {"row_keys": keys, **DROPS} if has_options else DROPS_NOTHING
    inputs = {"x": x, "bias": bias, "residual": residual, "weight": weight, "norm_bias": norm_bias}
    outputs = {"total": total, "normed": normed, "mean": mean, "rstd": rstd}
    return {**inputs, **outputs, **drops, "epsilon": EPSILON, **SIZES}


def layer_norm(has_options: bool):
    x, weight, bias = matrix(), bf16(COLUMNS), bf16(COLUMNS)
    normed, mean, rstd = _layer_norm_cuda(x, weight, bias, EPSILON)
    outputs = {"normed": normed, "mean": mean, "rstd": rstd}
    return {"x": x, "weight": weight, "bias": bias, **outputs, "epsilon": EPSILON, **SIZES}


def layer_norm_backward(has_options: bool):
    d_normed, total, mean, rstd = matrix(), matrix(), fp32(2, 3), fp32(2, 3)
    weight = bf16(COLUMNS)
    d_total, keys = (matrix(), row_keys()) if has_options else (None, None)
    d_residual, dx, d_weight, d_norm_bias, d_bias = _layer_norm_backward_cuda(
        d_normed,
        d_total,
        total,
        mean,
        rstd,
        weight,
        keys,
        probability=PROBABILITY,
        has_bias=has_options,
    )
    inputs = {"d_normed": d_normed, "d_total": d_total, "total": total, "weight": weight}
    outputs = {"d_residual": d_residual, "d_weight": d_weight, "d_norm_bias": d_norm_bias}
    optional = {"dx": None, "d_bias": None, **DROPS_NOTHING}
    if has_options:
        optional = {"dx": dx, "d_bias": d_bias, "row_keys": keys, **DROPS}
    statistics = {"mean": mean, "rstd": rstd}
    return {**inputs, **statistics, **outputs, **optional, **SUM_SCRATCH, **SIZES}


def scaled_masked_softmax(has_options: bool):
    scores = bf16(2, 3, 4, 7)
    first_keys = torch.zeros(2, 4, dtype=torch.int64) if has_options else None
    probabilities = _softmax_cuda(scores, SCALE, first_keys)
    return {"scores": scores, "probabilities": probabilities, **softmax_arguments(first_keys)}


def scaled_masked_softmax_backward(has_options: bool):
    d_probabilities, probabilities = bf16(2, 3, 4, 7), bf16(2, 3, 4, 7)
    first_keys = torch.zeros(2, 4, dtype=torch.int64) if has_options else None
    d_scores = _softmax_backward_cuda(d_probabilities, probabilities, SCALE, first_keys)
    return {
        "d_probabilities": d_probabilities,
        "probabilities": probabilities,
        "d_scores": d_scores,
        **softmax_arguments(first_keys),
    }


def softmax_arguments(first_keys: Tensor | None):
    sizes = {"samples": 2, "heads": 3, "queries": 4, "keys": 7, "dtype": BF16}
    num_first_keys = 1 if first_keys is None else 2
    return {"scale": SCALE, "first_keys": first_keys, "num_first_keys": num_first_keys, **sizes}


def padded_logits() -> Tensor:
    """Logits [ROWS, 8] whose rows are 11 apart."""
    return bf16(ROWS, 11)[:, :8]


LOGITS = {"dtype": BF16, "rows": ROWS, "stride": 11, "num_valid": 7}


def cross_entropy_statistics(has_options: bool):
    logits, columns = padded_logits(), torch.zeros(ROWS, dtype=torch.int64)
    log_sum_exp, picked = cross_entropy.cross_entropy_statistics._init_fn(logits, columns, 7)
    outputs = {"log_sum_exp": log_sum_exp, "picked": picked}
    return {"logits": logits, "columns": columns, **outputs, **LOGITS}


def cross_entropy_gradient(has_options: bool):
    logits, columns = padded_logits(), torch.zeros(ROWS, dtype=torch.int64)
    log_sum_exp, scale = fp32(ROWS), fp32(ROWS)
    cross_entropy.cross_entropy_gradient._init_fn(logits, columns, 7, log_sum_exp, scale)
    inputs = {"logits": logits, "columns": columns, "log_sum_exp": log_sum_exp, "scale": scale}
    return {**inputs, "width": 8, **LOGITS}


# three tensors, the second of which has a chunk and a piece
TABLE = {"rows": Scratch, "num_tensors": 3, "chunk_size": CHUNK_SIZE, "num_chunks": 4}
TENSOR_SIZES = (3, CHUNK_SIZE + 1, 2)
ADAMW_DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float32)


def adamw(has_options: bool):
    lists = [[torch.zeros(size, dtype=dtype) for size in TENSOR_SIZES] for dtype in ADAMW_DTYPES]
    factor, num_steps = fp32(), fp32()
    fused_adamw_(Shards(*lists, [0.1, 0.2, 0.3]), Rates(0.01, 0.9, 0.95, 1e-8), factor, num_steps)
    rates = {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8}
    state = {"step": Scratch, "num_steps": num_steps, "factor": factor}
    return {**TABLE, **state, **rates, "mean_dtype": 1, "square_dtype": 0}


def square_sum(has_options: bool):
    tensors = [bf16(size) for size in TENSOR_SIZES]
    total = fused_square_sum(tensors, [1.0, 0.5, 1.0], torch.device("cpu"))
    return {**TABLE, "dtype": BF16, "sums": Scratch, "total": total}


# Each calls one kernel, with all that may be absent or without, and gives its arguments by their names in C.
CALLS = {
    function.__name__: function
    for function in (
        adamw,
        bias_dropout_residual,
        bias_dropout_residual_backward,
        bias_dropout_residual_layer_norm,
        bias_gelu,
        bias_gelu_backward,
        cross_entropy_gradient,
        cross_entropy_statistics,
        layer_norm,
        layer_norm_backward,
        scaled_masked_softmax,
        scaled_masked_softmax_backward,
        square_sum,
    )
}


def check_argument(declared: str, given, passed, expected) -> None:
    """Hold one argument against its declaration in C and against what it should be."""
    kind = re.sub(r"^const ", "", declared)
    if not kind.endswith("*"):
        assert type(passed) is NUMBERS[kind]
        assert passed.value == NUMBERS[kind](expected).value
        return
    assert type(passed) is c_void_p
    if expected is None:
        assert given is None and passed.value is None
        return
    assert given is not None and given.dtype == POINTERS[kind.removesuffix("*")]
    assert passed.value == given.data_ptr() != 0
    assert expected is Scratch or expected.data_ptr() == passed.value


def check_call(parameters: str, given: list, passed: list, expected: dict) -> None:
    declared = [parameter.strip().rsplit(" ", 1) for parameter in parameters.split(",")]
    assert len(passed) == len(declared) == len(given) + 1
    assert expected.keys() == {name for _, name in declared[:-1]}
    for (kind, name), one, argument in zip(declared[:-1], given, passed[:-1], strict=True):
        try:
            check_argument(kind, one, argument, expected[name])
        except (AssertionError, KeyError) as error:
            raise AssertionError(f"{kind} {name} was given {one!r} as {argument}") from error
    assert declared[-1][0] == "cudaStream_t"
    assert type(passed[-1]) is c_void_p and passed[-1].value == STREAM


def call(called, name: str, has_options: bool):
    """Call a kernel once and give what `launch` got, what it passed on, and what that should be."""
    calls, given = called
    calls.clear(), given.clear()
    expected = CALLS[name](has_options)
    ((called_name, passed),) = calls
    assert called_name == name
    return list(given), list(passed), expected


def test_every_function_is_called_here():
    assert CALLS.keys() == {name for name, _ in FUNCTIONS}


@pytest.mark.parametrize("has_options", [True, False], ids=["all", "without options"])
@pytest.mark.parametrize("name, parameters", FUNCTIONS, ids=[name for name, _ in FUNCTIONS])
def test_functions_get_what_they_declare(called, name, parameters, has_options):
    check_call(parameters, *call(called, name, has_options))


@pytest.mark.parametrize(
    "change",
    [
        {"bias": bf16(COLUMNS + 1)},
        {"bias": fp32(COLUMNS)},
        {"weight": fp32(COLUMNS)},
        {"residual": bf16(2, 2, COLUMNS)},
        {"residual": fp32(2, 3, COLUMNS)},
        {"row_keys": row_keys()[:1]},
        {"row_keys": row_keys().int()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_memory_is_read_that_is_not_the_inputs(called, change):
    names = ("x", "bias", "residual", "row_keys", "weight", "norm_bias")
    right = (matrix(), bf16(COLUMNS), matrix(), row_keys(), bf16(COLUMNS), bf16(COLUMNS))
    given = dict(zip(names, right, strict=True)) | change
    with pytest.raises(AssertionError):
        _sum_and_norm_cuda(*given.values(), probability=PROBABILITY, epsilon=EPSILON)
    alone = [given[name] for name in names[:4]]
    if "weight" not in change:
        with pytest.raises(AssertionError):
            _sum_cuda(*alone, PROBABILITY)
    if "bias" in change:
        with pytest.raises(AssertionError):
            _bias_gelu_cuda(given["x"], given["bias"])
    if "weight" in change:
        with pytest.raises(AssertionError):
            _layer_norm_cuda(given["x"], given["weight"], given["norm_bias"], EPSILON)
    assert called[0] == []


def altered(given: list, passed: list):
    """Give the arguments with two of them swapped, with one missing and with one of another type, in all ways."""
    for i, j in itertools.combinations(range(len(given)), 2):
        order = list(range(len(passed)))
        order[i], order[j] = j, i
        yield f"{i} and {j} swapped", [given[k] for k in order[:-1]], [passed[k] for k in order]
    for i, argument in enumerate(passed[:-1]):
        yield f"{i} missing", given[:i] + given[i + 1 :], passed[:i] + passed[i + 1 :]
        other = c_float if type(argument) is c_double else c_double
        retyped = [*passed[:i], other(argument.value or 0), *passed[i + 1 :]]
        yield f"{i} of another type", given, retyped


@pytest.mark.parametrize("name, parameters", FUNCTIONS, ids=[name for name, _ in FUNCTIONS])
def test_any_wrong_argument_would_show(called, name, parameters):
    unseen = []
    for has_options in (True, False):
        given, passed, expected = call(called, name, has_options)
        unseen.append(set())
        for change, *arguments in altered(given, passed):
            try:
                check_call(parameters, *arguments, expected)
            except AssertionError:
                continue
            unseen[-1].add(change)
    # what happens to be equal, or absent, is so in one of the two calls only
    assert unseen[0] & unseen[1] == set()
