"""Models to write with: folders of transformers and runs give the same text as transformers' own generate."""

import contextlib
import logging
from pathlib import Path
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron.convert.source import ModelSource
from megatron.errors import CheckpointError
from megatron.inference import kv_cache, runner
from megatron.inference.kv_cache import CacheShape, KVCache
from megatron.inference.load import predicting_config
from megatron.inference.model_flags import choose_dtype
from megatron.kernels import cuda_library, packed_product, prediction
from megatron.kernels.choice import Situation
from megatron.kernels.packed_product import PackedProduct, PackedProductGelu
from megatron.kernels.registry import choose_kernels
from megatron.options import ModelConfig
from tests.grid import grid
from tests.inference.models import (
    ARCHITECTURES,
    make_model,
    open_engine,
    random_prompt,
    request,
)
from tools import convert_to_hf

PROMPTS = [random_prompt(size) for size in (3, 17, 30)]
TINY = ModelConfig(
    num_layers=1, hidden_size=64, num_attention_heads=1, max_position_embeddings=8, vocab_size=16
)


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


@pytest.mark.parametrize("obstacle", [None, "csrc/*.cu is not compiled here"])
def test_a_gpu_compiles_nothing_for_each_length_of_a_prompt(
    monkeypatch: pytest.MonkeyPatch, obstacle: str | None
) -> None:
    monkeypatch.setattr(cuda_library, "obstacle", lambda: obstacle)
    model = predicting_config(TINY, tp_size=1, attention_backend="auto")
    gpu = Situation("cuda", torch.bfloat16, 64, 0.0, without_library=obstacle)
    chosen = choose_kernels("auto", gpu, model.kernels).choices[2:]
    assert {one.name for one in chosen} == {"reference" if obstacle else "fused"}


def decode_watched(rank, path):
    """Give whether each call of the attention to a cache was inside `without_plans`, and for which device."""
    inside, seen = [], []

    @contextlib.contextmanager
    def enter(device):
        inside.append(device.type)
        yield
        inside.pop()

    true = kv_cache.cached_attention
    with (
        mock.patch.object(runner, "without_plans", enter),
        mock.patch.object(
            kv_cache, "cached_attention", lambda *args: (seen.append(list(inside)), true(*args))[1]
        ),
    ):
        open_engine(path, dtype=torch.float16).run([request("a", PROMPTS[0], max_new_tokens=3)])
    return seen


def test_no_token_waits_for_a_plan(world, tmp_path):
    run = make_model(tmp_path / "run", **ARCHITECTURES["multi-query"])
    (seen,) = world(1).run(decode_watched, run)
    assert seen and all(one == ["cpu"] for one in seen)


def score(rank, path, layout, dtype):
    """Give the log-probabilities of a prompt's tokens, and what is logged."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("megatron")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    scored = request("a", random_prompt(20), logprobs=0, prompt_logprobs=True, max_new_tokens=1)
    (done,) = open_engine(path, grid(**layout), dtype=dtype).run([scored])
    return [one.logprob for one in done.prompt_scores], messages


@pytest.mark.parametrize("kind", ["multi-query", "rotary, no bias, own head"])
@pytest.mark.parametrize(
    "layout, dtype, words",
    [
        ({}, torch.float32, "packed for the CPU's vectors, in float32"),
        ({}, torch.bfloat16, "packed for the CPU's vectors, in bfloat16"),
        ({}, torch.float16, "the dtype is torch.float16"),
        ({"pp": 2}, torch.bfloat16, "packed for the CPU's vectors, in bfloat16"),
        ({"tp": 2}, torch.bfloat16, "by their operations, as 2 processes share each"),
    ],
)
def test_every_way_to_predict_is_logged_and_near_the_one_in_fp32(
    world, tmp_path, kind, layout, dtype, words
):
    if prediction.obstacle(torch.device("cpu"), dtype) and dtype != torch.float16:
        pytest.skip("the CPU has another way for bf16, or the kernel is not compiled")
    changes = ARCHITECTURES[kind] | {"num_attention_heads": 4, "hidden_size": 16}
    path = make_model(tmp_path / "run", **changes)
    ((expected, _),) = world(1).run(score, path, {}, torch.float32)
    for scores, messages in world(2 if layout else 1).run(score, path, layout, dtype):
        assert any(words in message for message in messages)
        assert scores == pytest.approx(expected, abs=1e-6 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("ways", [(), ("prediction",), ("packed_product",)])
def test_auto_is_bf16_where_the_model_and_a_kernel_have_it(monkeypatch, ways):
    for module in (prediction, packed_product):
        name = module.__name__.rsplit(".", 1)[1]
        answer = None if name in ways else "is not here"
        monkeypatch.setattr(module, "obstacle", lambda device, dtype, answer=answer: answer)
    cpu = torch.device("cpu")
    expected = torch.bfloat16 if ways else torch.float32
    assert choose_dtype("auto", torch.bfloat16, cpu) == expected
    assert choose_dtype("auto", torch.float16, cpu) == torch.float32
    assert choose_dtype("bf16", torch.float32, cpu) == torch.bfloat16


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        ModelSource.open(tmp_path / "missing")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors"):
        ModelSource.open(tmp_path)
    with pytest.raises(CheckpointError, match="leave --iteration out"):
        ModelSource.open(tmp_path, 3)


@pytest.mark.parametrize("panel", [None, 16, 64])
def test_the_cache_has_the_size_of_its_key_heads_and_keeps_what_it_holds(panel: int | None) -> None:
    shape = CacheShape(range(3, 5), 2, 6, None, max_rows=10, max_positions=1000, key_panel=panel)
    cache = KVCache(shape, torch.bfloat16, torch.device("cpu"))

    def by_token(keys: torch.Tensor) -> torch.Tensor:
        """[r, k, positions, d], in panels [r, k, p, d, l] or not"""
        return keys if panel is None else keys.transpose(3, 4).flatten(2, 3)

    cache.reserve(3, 500)
    num_keys = 500 if panel is None else 512  # in whole panels
    num_bytes = sum(x.nbytes for x in (*cache.keys.values(), *cache.values.values()))
    # layers, rows, positions, heads, d, bytes
    assert num_bytes == 2 * 3 * (500 + num_keys) * 2 * 6 * 2
    for tensors in (cache.keys, cache.values):
        for layer in (3, 4):
            tensors[layer].normal_()
    before = by_token(cache.keys[4]).clone()
    cache.reserve(4, 600)
    assert (cache.num_rows, cache.num_positions) == (6, 1000)
    keys = by_token(cache.keys[4])
    assert torch.equal(keys[:3, :, :500], before[:, :, :500])
    assert not keys[3:].any() and not keys[:, :, num_keys:].any()
    cache.copy_row(1, 5, 30)
    for copied in (by_token(cache.keys[3]), cache.values[3]):
        assert torch.equal(copied[5, :, :30], copied[1, :, :30])
        assert not copied[5, :, 64:].any()


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
