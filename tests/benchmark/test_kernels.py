"""Every operation can be timed: here on a CPU, at a tiny size, without a look at the figures."""

import argparse
import math

import pytest
import torch

from megatron.benchmark import kernels
from megatron.benchmark.kernel_cases import Size
from megatron.benchmark.kernel_timer import Case, Result, Work, table, time_cases
from megatron.benchmark.optimizer_cases import weight_shapes
from megatron.kernels.operation_choice import OPERATIONS
from megatron.model.flops import num_parameters

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def results() -> dict[tuple[str, str], Result]:
    parser = argparse.ArgumentParser()
    kernels.add_arguments(parser)
    args = parser.parse_args(
        ["--model", "tiny", "--no-compiled", "--document-length", "8", "--micro-batch-size", "2"]
    )
    size = Size(kernels.model_of("tiny", 32), 32, 2, torch.float32, CPU)
    return {
        (r.case.what, r.case.implementation): r
        for r in time_cases(list(kernels.cases(args, size)), CPU)
    }


def test_every_operation_of_the_registry_has_a_row(results) -> None:
    timed = {
        what.split(",")[0] for (what, by), r in results.items() if by == "reference" and r.both
    }
    assert timed >= {operation.name for operation in OPERATIONS}


def test_attention_is_timed_by_each_backend_that_can_run(results) -> None:
    for what in ("attention", "attention, documents of 8"):
        for backend in ("sdpa", "blocked", "explicit"):
            assert results[what, backend].both
        assert "needs a GPU" in results[what, "cudnn"].obstacle


def test_products_count_two_for_backward(results) -> None:
    result = results["product dense, 64 x 256 x 256", "reference"]
    assert result.case.work.forward == 2 * 64 * 256 * 256
    forward, both = result.rates()
    assert forward == pytest.approx(result.case.work.forward / result.forward / 1e9)
    assert both == pytest.approx(3 * result.case.work.forward / result.both / 1e9)


def test_weights_are_those_of_the_model() -> None:
    for name in ("tiny", "1b", "7b"):
        model = kernels.model_of(name, 256)
        assert sum(math.prod(shape) for shape in weight_shapes(model)) == num_parameters(model)


def test_table_compares_with_the_reference_and_says_what_cannot_run() -> None:
    def case(implementation: str) -> Case:
        return Case("norm", implementation, Work(3e9, 6e9, "byte"), lambda: (lambda: None, None))

    text = table(
        [
            Result(case("reference"), 2.0, 6.0),
            Result(case("fused"), 1.0, 3.0),
            Result(case("compiled"), None, None, "does not fit"),
        ]
    )
    _, _, reference, fused, compiled = text.splitlines()
    assert reference == "| norm | reference | 2.000 | 6.000 | 1.5 TB/s | 1.5 TB/s | 1.00 |"
    assert fused == "| norm | fused | 1.000 | 3.000 | 3 TB/s | 3 TB/s | 2.00 |"
    assert compiled == "| norm | compiled | does not fit | | | | |"
