"""Tiled attention as one of the functions of a test, which is skipped where C++ was not compiled."""

import pytest

from megatron.kernels import cpu_library
from megatron.kernels.tiled_attention import tiled_attention

OBSTACLE = cpu_library.obstacle("_cpu_attention")
TILED = pytest.param(
    tiled_attention, marks=pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
)
