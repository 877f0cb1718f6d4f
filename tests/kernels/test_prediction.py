"""Products and stages by csrc/prediction.cpp, with every kind of kernels that the processor runs, against torch."""

import pytest
import torch
import torch.nn.functional as F

from megatron.kernels import cpu_library, prediction
from megatron.kernels.prediction import (
    PanelProduct,
    PanelProductGelu,
    Stage,
    StageEnds,
    StageLayer,
    highest,
)

OBSTACLE = prediction.obstacle(torch.device("cpu"), torch.float32)
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=f"the kernel {OBSTACLE}")
KINDS = prediction.kinds() if OBSTACLE is None else []
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def rounded(x, dtype):
    """What a product multiplies: x itself, or the nearest numbers of bf16."""
    return x.to(dtype).double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    "rows, in_size, out_size", [(1, 5, 3), (1, 300, 299), (7, 33, 70), (67, 300, 64), (3, 128, 33)]
)
def test_a_product_is_that_of_torch(kind, dtype, has_bias, rows, in_size, out_size):
    x, weight = normal(rows, in_size), normal(out_size, in_size).to(dtype)
    bias = normal(out_size) if has_bias else None
    expected = F.linear(rounded(x, dtype), weight.double(), None if bias is None else bias.double())
    out = PanelProduct(weight, bias, kind=kind)(x)
    torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-4)
    active = PanelProductGelu(weight, bias, kind=kind)(x.view(1, rows, in_size))[0]
    expected = F.gelu(expected, approximate="tanh").float()
    torch.testing.assert_close(active, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_a_product_in_bf16_are_rounded_to_even(kind):
    ulp = 2**-8  # of numbers below 1
    x = torch.tensor([1, 3, 1.01, -1, float("inf"), float("nan"), 3e38, 0]) * ulp / 2 + 0.5
    x[4:] = torch.tensor([float("inf"), float("nan"), 3.4028e38, -0.0])
    out = PanelProduct(torch.ones(1, 1, dtype=torch.bfloat16), None, kind=kind)(x.unsqueeze(1))
    torch.testing.assert_close(out[:, 0], x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_gelu_holds_from_end_to_end(kind):
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([0.0, -1e30, 1e30])])
    out = PanelProductGelu(torch.ones(1, 1), None, kind=kind)(x.unsqueeze(1))[:, 0]
    expected = F.gelu(x.double(), approximate="tanh").float()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_any_company_and_on_any_threads(kind, dtype):
    product = PanelProduct(normal(300, 700).to(dtype), normal(300), kind=kind)
    x = normal(70, 700)
    together = product(x)
    for first, last in [(0, 1), (3, 8), (64, 70)]:
        assert torch.equal(product(x[first:last]), together[first:last])
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(product(x), together)
        assert torch.equal(product(x[:1]), together[:1])
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 7, 16, 83])
def test_the_highest_is_found_where_it_first_stands(kind, size):
    x = normal(2 * size, 3 * size)[:, size : 2 * size]  # rows that are apart
    x[0] = x[0].min()
    x[1, size // 2 :] = x[1].max()
    expected = [(row.max().item(), row.tolist().index(row.max().item())) for row in x]
    best, places = highest(x, kind=kind)
    assert list(zip(best.tolist(), places.tolist(), strict=True)) == expected
    for place in {0, size // 2, size - 1}:
        for value in (float("inf"), float("nan")):
            changed = x.clone()
            changed[:, place] = value
            best, places = highest(changed, kind=kind)
            torch.testing.assert_close(best, torch.full_like(best, value), equal_nan=True)
            assert value != value or places.tolist() == [place] * len(x)
    assert highest(torch.full((1, size), float("-inf")), kind=kind)[1].tolist() == [0]


def test_memory_that_is_not_there_is_an_error():
    nothing = dict.fromkeys(("x", "weight", "bias", "out", "rows", "out_size"), 0)
    with pytest.raises(MemoryError):
        prediction._prediction.multiply(
            **nothing, in_size=2**52, is_bf16=False, has_gelu=False, kind=KINDS[0], threads=2
        )


def test_what_cannot_be_laid_out_is_told(monkeypatch):
    assert "fp32 and bf16" in prediction.obstacle(torch.device("cpu"), torch.float16)
    assert "CPU" in prediction.obstacle(torch.device("cuda"), torch.float32)
    with pytest.raises(ValueError, match="does not run avx1024"):
        PanelProduct(normal(2, 2), None, kind="avx1024")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert "AMX" in prediction.obstacle(torch.device("cpu"), torch.bfloat16)
    assert prediction.obstacle(torch.device("cpu"), torch.float32) is None
    monkeypatch.setattr(cpu_library, "obstacle", lambda name: f"{name} is not compiled")
    found = prediction.obstacle(torch.device("cpu"), torch.float32)
    assert found == "cannot run: _prediction is not compiled"


H, F_SIZE, POSITIONS, VOCAB = 40, 72, 50, 90
SHAPES = {
    # heads, groups, head dim, window, whether positions are rotary
    "multi-query": (6, 1, 12, None, False),
    "multi-query, many heads": (9, 1, 40, None, False),
    "multi-head": (3, 3, 32, None, False),
    "grouped, window, rotary": (10, 2, 70, 7, True),
}


class Model:
    """Two layers with embedding and head, and what torch says of them."""

    def __init__(self, shape, kind, dtype=torch.float32):
        self.heads, self.groups, self.d, self.window, self.is_rotary = shape
        self.dtype = dtype
        heads, groups, d = self.heads, self.groups, self.d
        sizes = [(H, (heads + 2 * groups) * d), (heads * d, H), (H, F_SIZE), (F_SIZE, H)]
        self.weights = [
            [
                ((normal(out, size, seed=i) * size**-0.5).to(dtype), normal(out, seed=i))
                for size, out in sizes
            ]
            for i in range(2)
        ]
        # two of each layer, and the final one
        self.norms = [(normal(H, seed=i), normal(H, seed=i + 9)) for i in range(5)]
        self.words, self.head = normal(VOCAB, H), normal(VOCAB, H, seed=7).to(dtype)
        self.positions = None if self.is_rotary else normal(POSITIONS, H)
        layers = []
        for i, weights in enumerate(self.weights):
            qkv, dense, up, down = (
                (PanelProductGelu if n == 2 else PanelProduct)(*both, kind=kind)
                for n, both in enumerate(weights)
            )
            first, second = self.norms[2 * i : 2 * i + 2]
            layers.append(StageLayer(first, qkv, dense, second, up, down))
        self._layers = layers
        self._output = PanelProduct(self.head, None, kind=kind)
        self.stage = self.make()

    def make(self, layers=slice(None), *, is_first=True, is_last=True):
        ends = StageEnds(
            self.words if is_first else None,
            self.positions if is_first else None,
            self.norms[4] if is_last else None,
            self._output if is_last else None,
        )
        return Stage(
            self._layers[layers],
            ends,
            num_heads=self.heads,
            num_groups=self.groups,
            head_dim=self.d,
            window=self.window,
            epsilon=1e-5,
        )

    def cache(self, rows):
        panel = self.stage.key_panel
        cells = ((-(-POSITIONS // panel), self.d, panel), (POSITIONS, self.d))
        return [[normal(rows, self.groups, *size, seed=i) for i in range(2)] for size in cells]

    def rotation(self, positions):
        if not self.is_rotary:
            return None
        angles = positions[:, None] * 0.7 ** torch.arange(self.d // 2)
        return angles.cos().float(), angles.sin().float()

    def product(self, x, both):
        return F.linear(rounded(x, self.dtype), both[0].double(), both[1].double()).float()

    def logits(self, ids):
        """Of all tokens of a text at once: [s, v]."""
        heads, groups, d, s = self.heads, self.groups, self.d, len(ids)
        places = torch.arange(s)
        x = self.words[ids] + (0 if self.positions is None else self.positions[:s])
        distance = places[:, None] - places
        mask = (distance >= 0) & (distance < (self.window or s))
        for i, (qkv, dense, up, down) in enumerate(self.weights):
            first, second = self.norms[2 * i : 2 * i + 2]
            joined = self.product(F.layer_norm(x, (H,), *first, 1e-5), qkv)
            query = joined[:, : heads * d].view(s, heads, d).transpose(0, 1)
            pairs = joined[:, heads * d :].view(s, groups, 2, d).permute(2, 1, 0, 3)
            key, value = pairs[0], pairs[1]
            if self.is_rotary:
                cos, sin = self.rotation(places)
                query, key = turn(query, cos, sin), turn(key, cos, sin)
            wide = [t.repeat_interleave(heads // groups, dim=0) for t in (key, value)]
            context = F.scaled_dot_product_attention(query, *wide, attn_mask=mask)
            x = x + self.product(context.transpose(0, 1).reshape(s, heads * d), dense)
            normed = F.layer_norm(x, (H,), *second, 1e-5)
            x = x + self.product(F.gelu(self.product(normed, up), approximate="tanh"), down)
        x = F.layer_norm(x, (H,), *self.norms[4], 1e-5)
        return self.product(x, (self.head, torch.zeros(VOCAB)))


def turn(x, cos, sin):
    """x [heads, s, d]"""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def text(size):
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, VOCAB, (size,), generator=generator)


def flat(row_positions):
    """[(row, positions)] -> rows and positions of tokens."""
    rows = [row for row, positions in row_positions for _ in positions]
    return torch.tensor(rows), torch.tensor(
        [p for _, positions in row_positions for p in positions]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHAPES)
def test_chunks_and_single_tokens_have_the_logits_of_whole_texts(name, kind):
    model = Model(SHAPES[name], kind)
    texts = {
        1: text(50),
        3: text(9),
        2: text(1),
        0: text(38),
    }  # by row of the cache, of which there are more
    keys, values = model.cache(6)
    expected = {row: model.logits(ids) for row, ids in texts.items()}
    # a chunk of some, another where one is wanted after none or all of its tokens, and then token by token
    steps = [
        ({1: (0, 20), 3: (0, 8), 2: (0, 1)}, [19, 28, 27]),
        ({1: (20, 41)}, []),
        ({0: (0, 37)}, None),
        ({1: (41, 42), 0: (37, 38), 3: (8, 9)}, None),
        *[({1: (at, at + 1)}, None) for at in range(42, 50)],
    ]
    for step, wanted in steps:
        ids = torch.cat([texts[row][slice(*ends)] for row, ends in step.items()])
        rows, positions = flat([(row, range(*ends)) for row, ends in step.items()])
        out = model.stage(
            ids, rows, positions, keys, values, rotation=model.rotation(positions), wanted=wanted
        )
        places = range(len(ids)) if wanted is None else wanted
        assert len(out) == len(places)
        for logits, place in zip(out, places, strict=True):
            row, position = int(rows[place]), int(positions[place])
            torch.testing.assert_close(logits, expected[row][position], rtol=1e-4, atol=1e-4)
    # nothing else in the cache was touched
    before_keys, before_values = model.cache(6)
    for after, before in zip((*keys, *values), (*before_keys, *before_values), strict=True):
        if after.ndim == 5:  # panels [r, g, p, d, l] -> [r, g, p, l, d] -> [r, g, p*l, d]
            after, before = (x.transpose(3, 4).flatten(2, 3) for x in (after, before))
        for row, ids in texts.items():
            before[row, :, : len(ids)] = after[row, :, : len(ids)]
        assert torch.equal(after, before)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_bf16_are_near_the_same_rounding_by_torch(kind):
    model = Model(SHAPES["multi-query"], kind, torch.bfloat16)
    ids = text(30)
    rows, positions = flat([(0, range(30))])
    logits = model.stage(ids, rows, positions, *model.cache(1))
    # an input may fall on the other side of a rounding: 2^-9 of it, in a sum of 40 and more
    torch.testing.assert_close(logits, model.logits(ids), rtol=0, atol=0.1)
    assert (logits - model.logits(ids)).abs().mean() < 0.01


def test_stages_that_share_the_layers_give_what_one_does():
    model = Model(SHAPES["multi-query"], KINDS[0])
    rows, positions = flat([(1, range(9)), (0, range(4))])
    ids = torch.cat([text(9), text(4)])
    expected = model.stage(ids, rows, positions, *model.cache(2), wanted=[8, 12])
    keys, values = model.cache(2)
    first, last = (
        model.make(slice(0, 1), is_last=False),
        model.make(slice(1, 2), is_first=False),
    )
    hidden = first(ids, rows, positions, keys[:1], values[:1])
    assert hidden.shape == (13, H)
    before = hidden.clone()
    found = last(hidden, rows, positions, keys[1:], values[1:], wanted=[8, 12])
    assert torch.equal(found, expected)
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_has_the_same_bits_in_any_company_and_on_any_threads(dtype):
    model = Model(SHAPES["grouped, window, rotary"], KINDS[0], dtype)
    ids = torch.cat([text(40), text(5)])
    rows, positions = flat([(0, range(40)), (1, range(5))])
    rotation = model.rotation(positions)
    together = model.stage(ids, rows, positions, *model.cache(2), rotation=rotation)
    keys, values = model.cache(2)
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for places, wanted in [
            (range(9), None),
            (range(9, 45), [30, 35]),
            (range(44, 45), None),
        ]:
            one = slice(places.start, places.stop)
            turns = tuple(x[one] for x in rotation)
            out = model.stage(
                ids[one], rows[one], positions[one], keys, values, rotation=turns, wanted=wanted
            )
            chosen = together[one] if wanted is None else together[one][wanted]
            assert torch.equal(out, chosen)
    finally:
        torch.set_num_threads(num_threads)


def test_nothing_beyond_the_cache_and_the_embedding_is_touched():
    model = Model(SHAPES["multi-query"], KINDS[0])
    keys, values = model.cache(2)
    one = torch.tensor([1])
    for ids, row, position, wanted in [
        (VOCAB, 0, 0, None),
        (-1, 0, 0, None),
        (0, 2, 0, None),
        (0, -1, 0, None),
        (0, 0, POSITIONS, None),
        (0, 0, -1, None),
        (0, 0, 0, [1]),
    ]:
        with pytest.raises(IndexError, match="not within"):
            model.stage(one * ids, one * row, one * position, keys, values, wanted=wanted)
    for bad in (keys[:1], [keys[0].double(), keys[1]], [keys[0][:, :, :0], keys[1]]):
        with pytest.raises((IndexError, AssertionError)):
            model.stage(one, one, one, bad, values)
