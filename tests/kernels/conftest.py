"""CUDA kernels for tests that run them without a GPU."""

import ctypes

import pytest

from megatron.kernels import bias_dropout_residual, bias_gelu, cross_entropy, layer_norm
from megatron.kernels import masked_softmax as softmax
from tests.kernels.cuda_stand_in import compile_for_cpu, pretend

OPERATORS = (
    bias_dropout_residual._sum,
    bias_dropout_residual._sum_backward,
    bias_dropout_residual._sum_and_norm,
    bias_gelu._bias_gelu,
    bias_gelu._bias_gelu_backward,
    cross_entropy.cross_entropy_statistics,
    cross_entropy.cross_entropy_gradient,
    layer_norm._layer_norm,
    layer_norm.layer_norm_backward,
    softmax._softmax,
    softmax._softmax_backward,
)


@pytest.fixture(scope="session")
def kernels_for_cpu(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels of csrc/*.cu, compiled for this CPU."""
    return compile_for_cpu(tmp_path_factory.mktemp("cuda_on_cpu"))


@pytest.fixture
def cuda_on_cpu(monkeypatch: pytest.MonkeyPatch, kernels_for_cpu: ctypes.CDLL) -> None:
    """Let fused operations compute on tensors of the CPU by their CUDA kernels."""
    pretend(monkeypatch, kernels_for_cpu)
    for operator in OPERATORS:
        implementations = operator._backend_fns
        monkeypatch.setitem(implementations, "cpu", implementations["cuda"])
