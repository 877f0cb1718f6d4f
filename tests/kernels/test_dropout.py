"""Keyed dropout: the rate is right, neighbours are independent, and only coordinates matter."""

import pytest
import torch

from megatron.kernels.dropout import (
    Dropout,
    drop_mask,
    head_keys,
    keep_,
    keep_bits,
    keep_scale,
    site_keys,
    token_keys,
)

MASK = (1 << 64) - 1


def splitmix(z: int) -> int:
    """The finaliser of splitmix64 from its published definition, in Python's whole numbers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_bits_are_those_of_the_definition_in_whole_numbers():
    gamma, site, samples, positions, channels = 0x9E3779B97F4A7C15, -12345, [3, 10**12], [0, 5], 7
    keys = site_keys(token_keys(torch.tensor(samples), torch.tensor(positions)), site)
    actual = drop_mask(keys, channels, 0.4)
    for i, position in enumerate(positions):
        for j, sample in enumerate(samples):
            key = splitmix((splitmix(sample * gamma & MASK) + position * gamma) & MASK)
            key = splitmix(key ^ (site & MASK))
            for channel in range(channels):
                word = splitmix((key + (channel // 4 + 1) * gamma) & MASK)
                level = (word >> (16 * (channel % 4))) & 0xFFFF
                is_dropped = (level ^ 0x8000) < round(0.4 * 65536)  # compared as signed
                assert actual[i, j, channel].item() == is_dropped


def chi_square(counts: torch.Tensor, expected: float, total: float) -> float:
    return (((counts - expected) ** 2) / (expected * (1 - expected / total))).sum().item()


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_rate_is_right_for_every_channel_position_and_sample(probability):
    samples, positions, channels = 64, 64, 66
    keys = token_keys(torch.arange(samples), torch.arange(positions))
    mask = drop_mask(site_keys(keys, 99), channels, probability).double()  # [s, b, c]
    for dims in ((0, 1), (0, 2), (1, 2)):
        counts = mask.sum(dim=dims)
        total = mask.numel() / len(counts)
        statistic = chi_square(counts, total * probability, total)
        # mean n, standard deviation sqrt(2 n)
        assert abs(statistic - len(counts)) < 4 * (2 * len(counts)) ** 0.5


def test_neighbours_of_every_kind_are_independent():
    keys = token_keys(torch.arange(100, 164), torch.arange(64))
    masks = [drop_mask(site_keys(keys, site), 64, 0.5).double() - 0.5 for site in (7, 8)]
    first = masks[0]
    pairs = {
        "position": (first[1:], first[:-1]),
        "sample": (first[:, 1:], first[:, :-1]),
        "channel": (first[..., 1:], first[..., :-1]),
        "word": (first[..., 4:], first[..., :-4]),
        "site": (first, masks[1]),
    }
    for name, (one, other) in pairs.items():
        correlation = (one * other).mean().item() * 4
        assert abs(correlation) < 4 / one.numel() ** 0.5, name


def test_heads_get_bits_of_their_global_number():
    rows = token_keys(torch.arange(3), torch.arange(5))
    all_heads = head_keys(rows, 0, 6)
    assert torch.equal(head_keys(rows, 2, 3), all_heads[..., 2:5])
    assert len(all_heads.unique()) == all_heads.numel()


def test_kept_elements_are_scaled_so_that_the_mean_stays():
    keys = token_keys(torch.arange(200), torch.arange(50))
    x = torch.ones(50, 200, 40, requires_grad=True)
    out = Dropout(0.3, keys)(x)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.7], rel=1e-4)
    assert abs(out.mean().item() - 1.0) < 4 * (0.3 / 0.7 / out.numel()) ** 0.5
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_probability_is_rounded_and_its_scale_exact():
    assert keep_scale(0.5) == 2.0
    assert keep_scale(0.1) == 65536 / (65536 - 6554)
    keys = token_keys(torch.arange(4), torch.arange(4))
    assert not drop_mask(keys, 100, 1e-6).any()


@pytest.mark.parametrize("probability", [0.0, 1e-5, 0.1, 0.499, 0.5, 0.501, 0.9, 0.99999])
def test_words_of_bits_say_what_the_mask_says(probability):
    keys = token_keys(torch.arange(3), torch.arange(200))  # [200, 3]
    for first, count in ((0, 64), (3, 61), (130, 1)):
        dropped = drop_mask(keys, count, probability, first_channel=first)
        bits = keep_bits(keys, count, probability, first_channel=first)
        assert torch.equal(bits, torch.where(dropped, 0, -1).to(torch.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_keeping_changes_nothing_else(dtype):
    keys = token_keys(torch.arange(2), torch.arange(5))
    x = torch.randn(5, 2, 17).to(dtype)
    x[0, 0, 0], x[1, 0, 0] = float("inf"), float("nan")
    expected = x.masked_fill(drop_mask(keys, 17, 0.5), 0.0)
    actual = keep_(x, keep_bits(keys, 17, 0.5))
    assert actual is x
    assert torch.equal(actual.nan_to_num(7.0), expected.nan_to_num(7.0))
