"""Models to write with: folders of transformers and runs give the same text as transformers' own generate."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron.convert.model_source import ModelSource
from megatron.errors import CheckpointError
from megatron.inference.kv_cache import CacheShape, KVCache
from megatron.kernels import packed_product
from megatron.kernels.packed_product import PackedProduct, PackedProductGelu
from tests.inference.models import (
    ARCHITECTURES,
    make_model,
    open_engine,
    random_prompt,
    request,
)
from tools import convert_to_hf

PROMPTS = [random_prompt(size) for size in (3, 17, 30)]


def write(rank, path):
    requests = [request(str(n), prompt, max_new_tokens=20) for n, prompt in enumerate(PROMPTS)]
    return [done.token_ids for done in open_engine(path).run(requests)]


@pytest.mark.parametrize("kind", ["multi-query", "multi-head", "grouped, rotary, window"])
def test_runs_and_exports_write_what_transformers_does(world, tmp_path, kind):
    run, export = make_model(tmp_path / "run", **ARCHITECTURES[kind]), tmp_path / "export"
    convert_to_hf.main(["--load", str(run), "--save", str(export)])
    model = AutoModelForCausalLM.from_pretrained(export, torch_dtype=torch.float32)
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=20,
            min_new_tokens=20,
            eos_token_id=None,
            pad_token_id=0,
        )
        expected.append(tuple(written[0, len(prompt) :].tolist()))
    for path in (run, export):
        (ours,) = world(1).run(write, path)
        assert ours == expected


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        ModelSource.open(tmp_path / "missing")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors"):
        ModelSource.open(tmp_path)
    with pytest.raises(CheckpointError, match="leave --iteration out"):
        ModelSource.open(tmp_path, 3)


def test_the_cache_has_the_size_of_its_key_heads_and_keeps_what_it_holds() -> None:
    shape = CacheShape(range(3, 5), 2, 6, None, max_rows=10, max_positions=1000)
    cache = KVCache(shape, torch.bfloat16, torch.device("cpu"))
    cache.reserve(3, 500)
    assert (
        cache.num_bytes == 2 * 2 * 3 * 500 * 2 * 6 * 2
    )  # (k, v), layers, rows, positions, heads, d, bytes
    for tensors in (cache.keys, cache.values):
        for layer in (3, 4):
            tensors[layer].normal_()
    before = cache.keys[4].clone()
    cache.reserve(4, 600)
    assert (cache.num_rows, cache.num_positions) == (6, 1000)
    assert torch.equal(cache.keys[4][:3, :, :500], before)
    assert not cache.keys[4][3:].any() and not cache.keys[4][:, :, 500:].any()
    cache.copy_row(1, 5, 30)
    assert torch.equal(cache.values[3][5, :, :30], cache.values[3][1, :, :30])
    assert not cache.values[3][5, :, 30:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_weight_gives_the_product(dtype: torch.dtype) -> None:
    reason = packed_product.obstacle(torch.device("cpu"), dtype)
    if reason is not None:
        pytest.skip(f"packing {reason}")
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((33, 17), (33,), (2, 5, 17))
    )
    expected = (x.double() @ weight.double().t() + bias.double()).to(dtype)
    packed = PackedProduct(weight, bias)
    before = weight.clone()
    weight.zero_()
    torch.testing.assert_close(packed(x), expected)
    weight.copy_(before)
    active = PackedProductGelu(weight, bias)
    wide = (x.double() @ weight.double().t() + bias.double()).float()
    expected = torch.nn.functional.gelu(wide, approximate="tanh").to(dtype)
    tolerance = {"rtol": 1e-5, "atol": 2e-6} if dtype == torch.float32 else {}
    torch.testing.assert_close(active(x), expected, **tolerance or {"rtol": 1.6e-2, "atol": 1e-2})
    torch.testing.assert_close(active(x[:1, :1]), active(x)[:1, :1], rtol=1.6e-2, atol=1e-5)
