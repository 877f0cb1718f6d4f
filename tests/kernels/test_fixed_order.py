"""Gradients of attention in a fixed order: torch's switch is on for that part of backward, and on a GPU the bits repeat."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron.kernels.attention import sdpa_attention
from megatron.kernels.choice import Situation
from megatron.kernels.documents import Documents
from megatron.kernels.fixed_order import in_fixed_order, keeping_order, sdpa_in_fixed_order
from megatron.kernels.flash_attention import flash_attention
from megatron.kernels.registry import choose_kernels

SHAPE = (4, 2, 3, 8)


class Spy(torch.autograd.Function):
    """Passes on what it is given, and notes the switch in backward."""

    @staticmethod
    def forward(ctx, x, name, seen):
        ctx.name, ctx.seen = name, seen
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.seen[ctx.name] = torch.are_deterministic_algorithms_enabled()
        return grad, None, None


def spied(x, seen):
    """Give the gradient of x through an attention between two other operations."""

    def attend(query, key, value, dropout, documents=None):
        return Spy.apply(query + key * value, "attention", seen).flatten(2)

    before = Spy.apply(x, "before", seen)
    heads = Spy.apply(before.unsqueeze(3).expand(*SHAPE[:3], 2, SHAPE[3]), "heads", seen)
    key, value = heads.unbind(3)
    context = in_fixed_order(attend)(before * 1, key, value, None)
    return torch.autograd.grad(Spy.apply(context, "after", seen).sum(), x)


@pytest.mark.parametrize("is_on", [False, True])
def test_the_switch_is_on_for_attention_alone(is_on):
    seen = {}
    torch.use_deterministic_algorithms(is_on)
    try:
        spied(torch.randn(SHAPE).requires_grad_(), seen)
        assert torch.are_deterministic_algorithms_enabled() is is_on
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen.pop("attention") is True
    assert set(seen) == {"before", "heads", "after"} and set(seen.values()) == {is_on}


def test_nothing_is_switched_where_there_is_no_gradient_to_come():
    x = torch.randn(SHAPE)
    context = in_fixed_order(lambda q, k, v, dropout, documents=None: q)(x, x, x, None)
    assert context is x and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("backend", "name", "is_wrapped"),
    [("auto", "flash", True), ("sdpa", "sdpa", True), ("explicit", "explicit", False)],
)
def test_a_gpu_takes_an_attention_that_keeps_an_order(backend, name, is_wrapped):
    where = Situation("cuda", torch.bfloat16, 128, 0.0, capability=(9, 0), keeps_order=True)
    kernels = choose_kernels(backend, where)
    assert kernels.choices[0].name == name and "fixed order" in kernels.choices[0].reason
    assert hasattr(kernels.attention, "__wrapped__") is is_wrapped


def test_a_cpu_has_no_other_attention():
    where = Situation("cpu", torch.bfloat16, 128, 0.0, keeps_order=True)
    assert "fixed order" not in choose_kernels("auto", where).choices[0].reason


@pytest.mark.parametrize("num_groups", [1, 3])
def test_torch_attention_in_order_is_the_same_attention(num_groups):
    query, key, value = (torch.randn(9, 2, heads, 8) for heads in (3, num_groups, num_groups))
    with sdpa_kernel(SDPBackend.MATH):
        expected = sdpa_attention(query, key, value, None)
    torch.testing.assert_close(sdpa_in_fixed_order(query, key, value, None), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("has_documents", [False, True])
def test_two_backward_passes_on_a_gpu_give_the_same_bits(has_documents, dtype):
    device, length = torch.device("cuda"), 2048
    starts = torch.zeros(2, length, dtype=torch.int64)
    starts[:, 700:] = 700
    documents = Documents(starts, device) if has_documents else None
    inputs = [
        torch.randn(length, 2, heads, 128, device=device, dtype=dtype).requires_grad_()
        for heads in (8, 1, 1)
    ]
    attend = sdpa_attention if dtype == torch.float32 else flash_attention
    results = []
    for _ in range(3):
        out = keeping_order(attend)(*inputs, None, documents)
        results.append(torch.autograd.grad(out, inputs, torch.ones_like(out)))
    for again in results[1:]:
        assert all(map(torch.equal, results[0], again))
    assert not torch.are_deterministic_algorithms_enabled()
