"""Products and decoding by csrc/prediction.cpp, with every width of vectors that the processor has, against torch."""

import pytest
import torch
import torch.nn.functional as F

from megatron.kernels import prediction
from megatron.kernels.prediction import (
    Decoder,
    DecoderLayer,
    PanelProduct,
    PanelProductGelu,
    attend,
    highest,
)

OBSTACLE = prediction.obstacle(torch.device("cpu"), torch.float32)
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=f"the kernel {OBSTACLE}")
WIDTHS = prediction.widths() if OBSTACLE is None else [0]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    "rows, in_size, out_size", [(1, 5, 3), (7, 33, 70), (67, 300, 64), (3, 128, 33)]
)
def test_a_product_is_that_of_torch(width, has_bias, rows, in_size, out_size):
    x, weight = normal(rows, in_size), normal(out_size, in_size)
    bias = normal(out_size) if has_bias else None
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    out = PanelProduct(weight, bias, width=width)(x)
    torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-4)
    active = PanelProductGelu(weight, bias, width=width)(x.view(1, rows, in_size))[0]
    expected = F.gelu(expected, approximate="tanh").float()
    torch.testing.assert_close(active, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("width", WIDTHS)
def test_gelu_holds_from_end_to_end(width):
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([0.0, -1e30, 1e30])])
    out = PanelProductGelu(torch.ones(1, 1), None, width=width)(x.unsqueeze(1))[:, 0]
    expected = F.gelu(x.double(), approximate="tanh").float()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_has_the_same_bits_in_any_company_and_on_any_threads(width):
    product = PanelProduct(normal(96, 700), normal(96), width=width)
    x = normal(70, 700)
    together = product(x)
    for first, last in [(0, 1), (3, 8), (64, 70)]:
        assert torch.equal(product(x[first:last]), together[first:last])
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(product(x), together)
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("size", [1, 7, 16, 83])
def test_the_highest_is_found_where_it_first_stands(width, size):
    x = normal(2 * size, 3 * size)[:, size : 2 * size]  # rows that are apart
    x[0] = x[0].min()
    x[1, size // 2 :] = x[1].max()
    expected = [(row.max().item(), row.tolist().index(row.max().item())) for row in x]
    best, places = highest(x, width=width)
    assert list(zip(best.tolist(), places.tolist(), strict=True)) == expected
    for place in {0, size // 2, size - 1}:
        for value in (float("inf"), float("nan")):
            changed = x.clone()
            changed[:, place] = value
            best, places = highest(changed, width=width)
            torch.testing.assert_close(best, torch.full_like(best, value), equal_nan=True)
            assert value != value or places.tolist() == [place] * len(x)
    assert highest(torch.full((1, size), float("-inf")), width=width)[1].tolist() == [0]


def test_what_cannot_be_laid_out_is_told():
    assert "fp32" in prediction.obstacle(torch.device("cpu"), torch.bfloat16)
    assert "CPU" in prediction.obstacle(torch.device("cuda"), torch.float32)
    with pytest.raises(ValueError, match="width"):
        PanelProduct(normal(2, 2), None, width=5)


H, F_SIZE, POSITIONS = 40, 72, 50
# heads, groups, head dim, window, whether positions are rotary
KINDS = {
    "multi-query": (6, 1, 12, None, False),
    "multi-head": (3, 3, 32, None, False),
    "grouped, window, rotary": (10, 2, 70, 7, True),
}


def make_layer(heads, groups, d, width, seed):
    sizes = {
        "qkv": (H, (heads + 2 * groups) * d),
        "dense": (heads * d, H),
        "up": (H, F_SIZE),
        "down": (F_SIZE, H),
    }
    weights = {
        name: (normal(out, size, seed=seed) * size**-0.5, normal(out, seed=seed))
        for name, (size, out) in sizes.items()
    }
    norms = [(normal(H, seed=seed + i), normal(H, seed=seed + i + 9)) for i in range(2)]
    products = {
        name: (PanelProductGelu if name == "up" else PanelProduct)(*both, width=width)
        for name, both in weights.items()
    }
    layer = DecoderLayer(
        norms[0], products["qkv"], products["dense"], norms[1], products["up"], products["down"]
    )
    return layer, weights, norms


def turn(x, cos, sin):
    """x [heads, d]"""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def reference(x, weights, norms, keys, values, kind, rotation):
    """One row of one layer by torch: x [h], keys and values [g, tokens before, d]."""
    heads, groups, d, window, _ = kind
    qkv = F.linear(F.layer_norm(x, (H,), *norms[0], 1e-5), *weights["qkv"])
    query, key_value = qkv[: heads * d].view(heads, d), qkv[heads * d :].view(groups, 2, d)
    key, value = key_value.unbind(1)
    if rotation is not None:
        query, key = turn(query, *rotation), turn(key, *rotation)
    keys, values = torch.cat([keys, key[:, None]], 1), torch.cat([values, value[:, None]], 1)
    seen = slice(-window if window else None, None)
    wide = [t[:, seen].repeat_interleave(heads // groups, dim=0) for t in (keys, values)]
    context = F.scaled_dot_product_attention(query[:, None], *wide).reshape(heads * d)
    x = x + F.linear(context, *weights["dense"])
    active = F.gelu(
        F.linear(F.layer_norm(x, (H,), *norms[1], 1e-5), *weights["up"]), approximate="tanh"
    )
    return x + F.linear(active, *weights["down"]), key, value


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("lengths", [[0], [49], [3, 0, 25, 11, 7, 40, 1, 2, 30]])
def test_a_token_goes_through_layers_as_by_torch(name, width, lengths):
    heads, groups, d, window, is_rotary = KINDS[name]
    made = [make_layer(heads, groups, d, width, seed) for seed in (1, 2)]
    decoder = Decoder(
        [layer for layer, _, _ in made],
        num_heads=heads,
        num_groups=groups,
        head_dim=d,
        window=window,
        epsilon=1e-5,
    )
    x, rows = normal(len(lengths), H), len(lengths) + 2
    keys = [normal(rows, groups, POSITIONS, d, seed=i) for i in range(2)]
    values = [normal(rows, groups, POSITIONS, d, seed=i + 5) for i in range(2)]
    before = [t.clone() for t in (*keys, *values)]
    angles = normal(len(lengths), d // 2)
    rotation = (angles.cos(), angles.sin()) if is_rotary else None
    out = decoder(x, torch.tensor(lengths), keys, values, rotation)

    for row, length in enumerate(lengths):
        expected = x[row]
        turned = None if rotation is None else (rotation[0][row], rotation[1][row])
        for i, (_, weights, norms) in enumerate(made):
            past = [t[row, :, :length] for t in (before[i], before[2 + i])]
            expected, key, value = reference(expected, weights, norms, *past, KINDS[name], turned)
            torch.testing.assert_close(keys[i][row, :, length], key, **TOLERANCE)
            torch.testing.assert_close(values[i][row, :, length], value, **TOLERANCE)
        torch.testing.assert_close(out[row], expected, **TOLERANCE)
    # nothing else in the cache was touched
    for tensor, old in zip((*keys, *values), before, strict=True):
        for row, length in enumerate(lengths):
            old[row, :, length] = tensor[row, :, length]
        assert torch.equal(tensor, old)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", KINDS)
def test_a_chunk_attends_to_the_cells_of_its_rows(name, width):
    heads, groups, d, window, _ = KINDS[name]
    s, b, first_row, first = 9, 2, 1, 5
    keys, values = (normal(4, groups, POSITIONS, d, seed=i) for i in range(2))
    joined = normal(s, b, (heads + 1) * d)  # queries are a part of it
    query = joined[..., : heads * d].unflatten(-1, (heads, d))
    positions = torch.arange(first, first + s).unsqueeze(1).expand(s, b)
    options = {"first_row": first_row, "window": window, "width": width}
    out = attend(query, keys, values, positions, **options)
    distance = positions[:, :1] - torch.arange(POSITIONS)
    mask = (distance >= 0) & (distance < (window or POSITIONS))
    rows = slice(first_row, first_row + b)
    wide = [t[rows].repeat_interleave(heads // groups, dim=1) for t in (keys, values)]
    expected = F.scaled_dot_product_attention(query.permute(1, 2, 0, 3), *wide, attn_mask=mask)
    torch.testing.assert_close(out, expected.permute(2, 0, 1, 3).flatten(2), **TOLERANCE)
    turned = attend(query.flip(0), keys, values, positions.flip(0), **options)
    assert torch.equal(turned.flip(0), out)


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (3, 2)])
def test_queries_are_read_however_they_lie(shape):
    b, s = shape
    keys, values = (normal(b, 2, POSITIONS, 5, seed=i) for i in range(2))
    positions = torch.arange(s).unsqueeze(1).expand(s, b)
    query = normal(s, b, 4, 5)
    expected = attend(query, keys, values, positions)
    for order in [(1, 0, 2, 3), (0, 1, 3, 2), (3, 2, 1, 0)]:
        inverse = [order.index(dim) for dim in range(4)]
        memory = torch.empty([query.size(dim) for dim in order])
        lying = memory.permute(inverse).copy_(query)
        assert torch.equal(attend(lying, keys, values, positions), expected)


def test_no_cell_beyond_a_cache_is_touched():
    keys, values = (normal(2, 1, 4, 5, seed=i) for i in range(2))
    query = normal(1, 2, 2, 5)
    for positions, first_row in [(4, 0), (3, 1)]:
        with pytest.raises(AssertionError):
            attend(query, keys, values, torch.full((1, 2), positions), first_row=first_row)
    layer = make_layer(2, 1, 5, WIDTHS[0], 1)[0]
    decoder = Decoder([layer], num_heads=2, num_groups=1, head_dim=5, window=None, epsilon=1e-5)
    for lengths in ([3, 4], [1, 1, 1]):
        with pytest.raises(AssertionError):
            decoder(normal(len(lengths), H), torch.tensor(lengths), [keys], [values], None)


def test_decoding_on_several_threads_gives_the_same_bits():
    made = [make_layer(6, 1, 12, WIDTHS[0], seed)[0] for seed in (1, 2)]
    decoder = Decoder(made, num_heads=6, num_groups=1, head_dim=12, window=None, epsilon=1e-5)
    lengths, num_threads, outs = torch.tensor([4, 9, 2]), torch.get_num_threads(), []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            cache = [normal(3, 1, POSITIONS, 12) for _ in range(4)]
            outs.append(decoder(normal(3, H), lengths, cache[:2], cache[2:], None))
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(outs[0], outs[1])
