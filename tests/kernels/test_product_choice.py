"""Which product with weights is chosen, and what is refused."""

import pytest
import torch

from megatron.errors import ConfigError
from megatron.kernels.choice import Situation
from megatron.kernels.linear_product import linear_product
from megatron.kernels.onednn_product import FASTER_THAN_MKL, obstacle, onednn_product
from megatron.kernels.registry import choose_kernels

NEEDS_ONEDNN = pytest.mark.skipif(
    obstacle("cpu", torch.float32) is not None, reason="torch is built without oneDNN"
)


def on_cpu(kind="", dtype=torch.float32, **changes):
    return Situation("cpu", dtype, 128, 0.0, cpu_kind=kind, **changes)


@pytest.mark.parametrize(
    ("capability", "name"), [((8, 0), None), ((8, 9), "fp8"), ((9, 0), "fp8"), (None, "fp8")]
)
def test_products_in_8_bits_need_a_gpu_that_has_them(capability, name):
    where = Situation("cuda", torch.bfloat16, 128, 0.0, has_fp8=True, capability=capability)
    if name is None:
        with pytest.raises(ConfigError, match=r"compute capability 8\.9"):
            choose_kernels("auto", where)
    else:
        assert choose_kernels("auto", where).choices[1].name == name


@NEEDS_ONEDNN
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch is built without MKL")
def test_it_is_chosen_where_it_was_measured_to_be_faster_and_nowhere_else():
    kernels = choose_kernels("auto", on_cpu(FASTER_THAN_MKL))
    assert kernels.product is kernels.output_product is onednn_product
    assert "twice MKL" in kernels.choices[1].reason
    others = [on_cpu("GenuineIntel AVX512"), on_cpu(), on_cpu(FASTER_THAN_MKL, torch.bfloat16)]
    for other in others:
        assert choose_kernels("auto", other).product is linear_product


@NEEDS_ONEDNN
def test_what_is_asked_for_by_its_name_is_taken():
    library = choose_kernels("auto", on_cpu(FASTER_THAN_MKL), ["auto", "product=library"])
    assert library.product is linear_product
    assert choose_kernels("auto", on_cpu(), ["product=onednn"]).product is onednn_product


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (Situation("cuda", torch.float32, 128, 0.0), "is for CPUs"),
        (on_cpu(dtype=torch.bfloat16), "is for fp32"),
        (on_cpu(has_fp8=True), "one of them"),
    ],
)
def test_where_it_cannot_be_it_is_refused(where, words):
    with pytest.raises(ConfigError, match=words):
        choose_kernels("auto", where, ["product=onednn"])
