"""Both ways of a step of AdamW against torch.optim.AdamW, written out tensor by tensor."""

import math

import pytest
import torch

from megatron.kernels import adamw, cuda_library
from megatron.kernels.adamw import Rates, Shards, adamw_, fused_adamw_
from megatron.kernels.multi_tensor import CHUNK_SIZE

RATES = Rates(learning_rate=1e-2, beta1=0.9, beta2=0.95, epsilon=1e-8)
FACTOR = 0.37
# shards of no row, of one element, of whole chunks and of a piece more
SHAPES = [(5, 7), (0, 3), (CHUNK_SIZE,), (CHUNK_SIZE + 1,), (3, CHUNK_SIZE), (1,), (0,), (131, 129)]
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
]
# of weights and moments in fp32, and of moments in bf16, whose last bit a rounding may turn
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 8e-3, "atol": 1e-8},
}


@pytest.fixture(
    params=[
        pytest.param((adamw_, "cpu"), id="torch"),
        pytest.param((adamw_, "cuda"), id="torch-gpu", marks=pytest.mark.gpu),
        pytest.param((fused_adamw_, "cpu"), id="fused-on-cpu"),
        pytest.param((fused_adamw_, "cuda"), id="fused", marks=pytest.mark.gpu),
    ]
)
def way(request):
    """A function that updates, and the device it does so on."""
    if request.param == (fused_adamw_, "cpu"):
        request.getfixturevalue("cuda_on_cpu")
    elif request.param[0] is fused_adamw_ and (obstacle := cuda_library.obstacle()) is not None:
        pytest.skip(obstacle)
    return request.param


def make(device, dtypes=DTYPES[0], seed=0):
    """Shards with moments of earlier steps; the last gradient starts between two 16-byte boundaries."""
    generator = torch.Generator().manual_seed(seed)

    def draw(scale, dtype=torch.float32):
        return [
            torch.randn(shape, generator=generator).mul(scale).to(device, dtype) for shape in SHAPES
        ]

    weights, gradients = draw(1.0), draw(1.0)
    rows, columns = SHAPES[-1]
    buffer = torch.empty(rows * columns + 1, device=device)
    gradients[-1] = buffer[1:].view(rows, columns).copy_(gradients[-1])
    means, squares = draw(0.1, dtypes[0]), [x.abs() for x in draw(0.1, dtypes[1])]
    return Shards(
        weights, gradients, means, squares, [0.1 if len(shape) > 1 else 0.0 for shape in SHAPES]
    )


def clone(shards):
    return Shards(*([x.clone() for x in tensors] for tensors in shards.lists), shards.weight_decays)


def expected_after(shards, num_steps, gradient_lists):
    """What torch.optim.AdamW makes of the shards in fp64, moments rounded to their dtype after each step."""
    after = clone(shards)
    for i, decay in enumerate(shards.weight_decays):
        dtypes = (shards.exp_avgs[i].dtype, shards.exp_avg_sqs[i].dtype)
        weight = shards.weights[i].cpu().double().requires_grad_()
        optimizer = torch.optim.AdamW(
            [weight],
            lr=RATES.learning_rate,
            betas=(RATES.beta1, RATES.beta2),
            eps=RATES.epsilon,
            weight_decay=decay,
            foreach=False,
        )
        state = {
            "step": torch.tensor(float(num_steps)),
            "exp_avg": shards.exp_avgs[i].cpu().double(),
            "exp_avg_sq": shards.exp_avg_sqs[i].cpu().double(),
        }
        optimizer.state[weight] = state
        for gradients in gradient_lists:
            weight.grad = gradients[i].cpu().double() * FACTOR
            optimizer.step()
            for name, dtype in zip(("exp_avg", "exp_avg_sq"), dtypes, strict=True):
                state[name].copy_(state[name].to(dtype))
        after.weights[i].copy_(weight.detach())
        after.exp_avgs[i].copy_(state["exp_avg"])
        after.exp_avg_sqs[i].copy_(state["exp_avg_sq"])
    return after


def results(shards):
    return [*shards.weights, *shards.exp_avgs, *shards.exp_avg_sqs]


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("num_steps", [0, 1000])
def test_a_step_equals_torch_in_fp64(way, dtypes, num_steps):
    update, device = way
    shards = make(device, dtypes)
    expected = expected_after(shards, num_steps, [shards.gradients])
    count = torch.tensor(float(num_steps), device=device)
    update(shards, RATES, torch.tensor(FACTOR, device=device), count)
    assert count == num_steps + 1
    for one, other in zip(results(shards), results(expected), strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE[one.dtype])


def test_steps_in_a_row_equal_torch_in_fp64(way):
    update, device = way
    shards = make(device)
    gradient_lists = [make(device, seed=seed).gradients for seed in range(1, 6)]
    expected = expected_after(shards, 0, gradient_lists)
    count = torch.zeros((), device=device)
    for gradients in gradient_lists:
        step = Shards(
            shards.weights, gradients, shards.exp_avgs, shards.exp_avg_sqs, shards.weight_decays
        )
        update(step, RATES, torch.tensor(FACTOR, device=device), count)
    for one, other in zip(results(shards), results(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtypes", [DTYPES[0], DTYPES[3]])
@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
def test_a_factor_that_is_not_finite_leaves_every_bit(way, dtypes, factor):
    update, device = way
    shards = make(device, dtypes)
    before = clone(shards)
    for gradient in shards.gradients:
        gradient.mul_(torch.nan)
    count = torch.tensor(7.0, device=device)
    update(shards, RATES, torch.tensor(factor, device=device), count)
    assert count == 7
    for one, other in zip(results(shards), results(before), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtypes", DTYPES)
def test_two_runs_give_the_same_bits(way, dtypes):
    update, device = way
    runs = []
    for _ in range(2):
        shards = make(device, dtypes)
        count = torch.zeros((), device=device)
        for seed in range(3):
            gradients = make(device, seed=seed).gradients
            step = Shards(*shards.lists[:1], gradients, *shards.lists[2:], shards.weight_decays)
            update(step, RATES, torch.tensor(FACTOR, device=device), count)
        runs.append(results(shards))
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


def test_chunks_of_bf16_moments_are_as_the_whole(monkeypatch):
    whole, parts = make("cpu", DTYPES[3]), make("cpu", DTYPES[3])
    for shards, chunk in ((whole, 1 << 18), (parts, 1024)):
        monkeypatch.setattr(adamw, "_CPU_CHUNK", chunk)
        adamw_(shards, RATES, torch.tensor(FACTOR), torch.zeros(()))
    for one, other in zip(results(whole), results(parts), strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE[one.dtype])


@pytest.mark.gpu
def test_fused_reads_the_gradients_only():
    if (obstacle := cuda_library.obstacle()) is not None:
        pytest.skip(obstacle)
    shards = make("cuda")
    before = clone(shards)
    fused_adamw_(shards, RATES, torch.tensor(FACTOR, device="cuda"), torch.zeros((), device="cuda"))
    assert all(map(torch.equal, shards.gradients, before.gradients))


@pytest.mark.gpu
def test_fused_takes_a_thousand_tensors_of_a_model():
    if (obstacle := cuda_library.obstacle()) is not None:
        pytest.skip(obstacle)
    sizes = [1 + 37 * i % 5000 for i in range(1000)]
    factor, count = torch.tensor(FACTOR, device="cuda"), torch.zeros((), device="cuda")
    lists = [[torch.rand(size, device="cuda") for size in sizes] for _ in range(4)]
    mine, other = Shards(*lists, [0.1] * 1000), clone(Shards(*lists, [0.1] * 1000))
    fused_adamw_(mine, RATES, factor, count.clone())
    adamw_(other, RATES, factor, count)
    for one, two in zip(results(mine), results(other), strict=True):
        torch.testing.assert_close(one, two, **TOLERANCE[torch.float32])
