"""Row statistics and gradient over many blocks of rows, against torch on the whole; the CUDA kernels in fp64."""

import pytest
import torch
import torch.nn.functional as F
from torch import library

from megatron.kernels import cuda_library
from megatron.kernels.cross_entropy import (
    FUSED,
    REFERENCE,
    _row_blocks,
    gradient_,
    row_statistics,
)

ROWS, COLUMNS = 800, 3000  # two blocks of rows and a piece


def test_the_sizes_here_make_several_blocks():
    assert len(list(_row_blocks(torch.empty(ROWS, COLUMNS)))) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_valid", [COLUMNS, COLUMNS - 77])
def test_blocks_join_to_the_whole(dtype, num_valid):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, COLUMNS, generator=generator).mul(3).to(dtype)
    columns = torch.randint(0, num_valid, (ROWS,), generator=generator)
    scale = torch.rand(ROWS, generator=generator)
    columns[5] = -1  # elsewhere: no target here

    reference = logits[:, :num_valid].float().requires_grad_()
    expected = reference.logsumexp(dim=1)
    targets = reference.gather(1, columns.clamp(min=0)[:, None])[:, 0] * (columns >= 0)
    ((expected - targets) * scale).sum().backward()

    log_sum_exp, picked = row_statistics(logits, columns, num_valid)
    torch.testing.assert_close(log_sum_exp, expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(picked, targets.detach(), rtol=0, atol=0)

    gradient = gradient_(logits, columns, num_valid, log_sum_exp, scale)
    assert gradient.data_ptr() == logits.data_ptr()
    padded = F.pad(reference.grad, (0, COLUMNS - num_valid))
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 1e-7}
    )
    torch.testing.assert_close(gradient.float(), padded, **tolerance)


def test_a_shard_of_padding_alone_adds_nothing():
    logits = torch.randn(4, 6)
    log_sum_exp, picked = row_statistics(logits, torch.full((4,), -1), 0)
    assert log_sum_exp.tolist() == [float("-inf")] * 4
    assert picked.tolist() == [0.0] * 4
    whole = torch.zeros(4)
    assert not gradient_(logits, torch.full((4,), -1), 0, whole, torch.ones(4)).any()


def draw(rows, width, num_valid, dtype, device="cpu", scale=3.0):
    generator = torch.Generator().manual_seed(rows + width)
    logits = torch.randn(rows, width, generator=generator).mul(scale).to(dtype)
    columns = torch.randint(0, max(num_valid, 1), (rows,), generator=generator)
    columns[::5] = -1
    if num_valid == 0:
        columns.fill_(-1)
    scales = torch.rand(rows, generator=generator)
    scales[::3] = 0.0
    return logits.to(device), columns.to(device), scales.to(device)


def in_fp64(logits, columns, num_valid, scales):
    """Log-sum-exp, logit at the column and gradient, of torch's own functions in fp64 on the CPU."""
    x = logits.cpu().double()[:, :num_valid].requires_grad_()
    columns, scales = columns.cpu(), scales.cpu().double()
    log_sum_exp = torch.logsumexp(x, dim=1)
    has_target = (columns >= 0).nonzero().squeeze(1)
    picked = torch.zeros(len(x), dtype=torch.float64)
    picked[has_target] = x.detach()[has_target, columns[has_target]]
    losses = F.cross_entropy(x[has_target], columns[has_target], reduction="none")
    others = (columns < 0).double() * scales
    ((losses * scales[has_target]).sum() + (log_sum_exp * others).sum()).backward()
    gradient = F.pad(x.grad, (0, logits.size(1) - num_valid))
    return log_sum_exp.detach(), picked, gradient


# of the gradient, which is at most 1: what fp32 loses, what rounding to the dtype of the logits does
GRADIENT_TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-7},
    torch.bfloat16: {"rtol": 8e-3, "atol": 1e-7},
    torch.float16: {"rtol": 2e-3, "atol": 1e-7},
}


def check(kernels, rows, width, num_valid, dtype, device):
    logits, columns, scales = draw(rows, width, num_valid, dtype, device)
    log_sum_exp, picked, gradient = in_fp64(logits, columns, num_valid, scales)
    found = kernels.row_statistics(logits, columns, num_valid)
    assert all(x.dtype == torch.float32 for x in found)
    torch.testing.assert_close(found[0].cpu().double(), log_sum_exp, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1].cpu().double(), picked, rtol=0, atol=0)
    out = kernels.gradient_(logits, columns, num_valid, found[0], scales)
    assert out.data_ptr() == logits.data_ptr()
    torch.testing.assert_close(out.cpu().double(), gradient, **GRADIENT_TOLERANCE[dtype])


@pytest.mark.parametrize("kernels", [REFERENCE, FUSED], ids=["reference", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_equal_torch_in_fp64(kernels, dtype):
    check(kernels, 13, 301, 290, dtype, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("rows", "width", "num_valid"), [(1, 1, 1), (0, 8, 8), (4, 40, 0), (5, 3001, 2990)]
)
def test_fused_kernels_equal_torch_in_fp64_on_a_cpu(cuda_on_cpu, rows, width, num_valid, dtype):
    check(FUSED, rows, width, num_valid, dtype, "cpu")


def test_operators_keep_the_rules_of_torch_library():
    logits, columns, scales = draw(5, 11, 9, torch.float32)
    tests = ("test_schema", "test_faketensor")
    library.opcheck(
        torch.ops.megatron.cross_entropy_statistics.default, (logits, columns, 9), test_utils=tests
    )
    library.opcheck(
        torch.ops.megatron.cross_entropy_gradient.default,
        (logits, columns, 9, torch.zeros(5), scales),
        test_utils=tests,
    )


@pytest.fixture
def kernels_on_gpu():
    if (obstacle := cuda_library.obstacle()) is not None:
        pytest.skip(obstacle)


SHAPES = [  # rows, width, columns that count
    (1, 1, 1),
    (3, 7, 5),
    (0, 8, 8),
    (4, 40, 0),
    (33, 1001, 1001),
    (17, 8192, 8192),
    (17, 8193, 8190),
    (9, 49152, 49152),
    (9, 49280, 49153),
    (2, 200003, 199999),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "width", "num_valid"), SHAPES)
def test_fused_equals_torch_in_fp64_on_a_gpu(kernels_on_gpu, rows, width, num_valid, dtype):
    check(FUSED, rows, width, num_valid, dtype, "cuda")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device_of_kernels(request):
    """Where the CUDA kernels compute."""
    request.getfixturevalue("cuda_on_cpu" if request.param == "cpu" else "kernels_on_gpu")
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("first", range(8))
def test_fused_takes_rows_that_start_anywhere(device_of_kernels, dtype, first):
    logits, columns, scales = draw(11, 700, 600, dtype, device_of_kernels)
    wide = torch.full((11, 901), 7.0, dtype=dtype, device=device_of_kernels)
    wide[:, first : first + 700] = logits
    log_sum_exp, picked, gradient = in_fp64(logits, columns, 600, scales)
    part = wide[:, first : first + 700]
    found = FUSED.row_statistics(part, columns, 600)
    torch.testing.assert_close(found[0].cpu().double(), log_sum_exp, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1].cpu().double(), picked, rtol=0, atol=0)
    FUSED.gradient_(part, columns, 600, found[0], scales)
    torch.testing.assert_close(part.cpu().double(), gradient, **GRADIENT_TOLERANCE[dtype])
    assert (wide[:, :first] == 7).all() and (wide[:, first + 700 :] == 7).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_gives_the_same_bits_again(kernels_on_gpu, dtype):
    results = []
    for _ in range(2):
        logits, columns, scales = draw(301, 49155, 49152, dtype, "cuda")
        found = FUSED.row_statistics(logits, columns, 49152)
        results.append((*found, FUSED.gradient_(logits, columns, 49152, found[0], scales)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_fused_keeps_large_and_missing_logits_apart(device_of_kernels):
    rows = torch.tensor([[300.0] * 1000, [-3e38] * 1000, [float("-inf")] * 999 + [2.0]])
    logits = rows.to(device_of_kernels, copy=True)
    columns = torch.tensor([0, 1, 999], device=device_of_kernels)
    log_sum_exp, _ = FUSED.row_statistics(logits, columns, 1000)
    expected = rows.double().logsumexp(dim=1).float()
    torch.testing.assert_close(log_sum_exp.cpu(), expected, rtol=1e-6, atol=1e-6)
    logits[0, 500] = float("nan")
    logits[1, 7] = float("inf")
    log_sum_exp, _ = FUSED.row_statistics(logits, columns, 1000)
    assert not log_sum_exp[:2].isfinite().any() and log_sum_exp[2] == 2.0


@pytest.mark.gpu
def test_fused_takes_one_scale_for_all_rows(kernels_on_gpu):
    logits, columns, _ = draw(6, 100, 100, torch.float32, "cuda")
    one = torch.tensor(0.5, device="cuda").expand(6)
    expected = in_fp64(logits, columns, 100, one)[2]
    log_sum_exp, _ = FUSED.row_statistics(logits, columns, 100)
    FUSED.gradient_(logits, columns, 100, log_sum_exp, one)
    torch.testing.assert_close(logits.cpu().double(), expected, **GRADIENT_TOLERANCE[torch.float32])
