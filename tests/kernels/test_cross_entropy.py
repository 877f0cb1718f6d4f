"""Row statistics and gradient over many blocks of rows, against torch on the whole."""

import pytest
import torch
import torch.nn.functional as F

from megatron.kernels.cross_entropy import _row_blocks, gradient_, row_statistics

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
