"""Exported folders, loaded by transformers."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, GPTBigCodeForCausalLM

from megatron.checkpoint.save import save_checkpoint
from megatron.config import Config, to_json
from megatron.convert import hf_verification
from megatron.convert.hf_export import export_hf, is_export
from megatron.convert.hf_verification import our_logits, verify_hf
from megatron.convert.source import RunSource
from megatron.errors import CheckpointError, ConfigError
from megatron.model.gpt import GPTModel
from tests.convert.runs import (
    MULTI_HEAD,
    MULTI_QUERY,
    STARCODER2,
    VOCAB_SIZE,
    change_config,
    make_run,
    model_config,
)
from tests.grid import grid

HEADS = pytest.mark.parametrize(
    "heads", [MULTI_QUERY, MULTI_HEAD, STARCODER2], ids=["multiquery", "multihead", "starcoder2"]
)


def export(root, folder, dtype=torch.float32, max_shard_bytes=10**9):
    folder.mkdir()
    source = RunSource.open(root)
    return export_hf(
        source, folder, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=lambda _: None
    )


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def train_nothing(rank, root, config, ids):
    """Save a model as training at TP 2 holds it; give rank 0's logits of the whole vocabulary [b, s, v]."""
    context = grid(tp=2)
    model = GPTModel(
        config,
        context,
        layers=range(config.num_layers),
        is_first=True,
        is_last=True,
        seed=3,
        sequence_parallel=False,
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.to_local().add_(0.1 * (1 + rank * (parameter.placements[0].is_shard())))
        logits = model(ids)
    tensors = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    save_checkpoint(root, 1, tensors, state={}, config=to_json(Config(model=config)))
    parts = [torch.empty_like(logits) for _ in range(2)]
    torch.distributed.all_gather(parts, logits.contiguous(), group=context.tp_group)
    return torch.cat(parts, dim=-1).transpose(0, 1)


@HEADS
@pytest.mark.parametrize("is_untied", [False, True], ids=["tied", "untied"])
def test_a_model_trained_at_tp_2_has_the_logits_of_its_export(world, tmp_path, heads, is_untied):
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "init_method_std": 0.3}
    config = model_config(**(sizes | heads), untie_embeddings_and_output_weights=is_untied)
    ids = torch.randint(VOCAB_SIZE, (2, 12), generator=torch.Generator().manual_seed(1))
    ours = world(2).run(train_nothing, tmp_path / "run", config, ids)[0]
    export(tmp_path / "run", tmp_path / "export")
    with torch.no_grad():
        theirs = load(tmp_path / "export")(ids).logits
    assert theirs.shape == (2, 12, VOCAB_SIZE)
    assert theirs.std() > 0.5
    torch.testing.assert_close(theirs, ours[..., :VOCAB_SIZE], rtol=1e-5, atol=1e-5)


@HEADS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_verification_accepts_what_was_exported(tmp_path, heads, dtype):
    make_run(tmp_path / "run", **heads)
    export(tmp_path / "run", tmp_path / "export", dtype)
    assert verify_hf(RunSource.open(tmp_path / "run"), tmp_path / "export", dtype) < 1e-5


def test_verification_refuses_another_model(tmp_path):
    weights = make_run(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "export")
    source = RunSource.open(tmp_path / "run")
    tensors = {f"model.{name}": tensor.clone() for name, tensor in weights.items()}
    tensors["model.layers.1.self_attention.key_value.bias"][7] += 1e-2
    save_checkpoint(tmp_path / "run", 20, tensors, state={}, config=source.reader.config)
    with pytest.raises(CheckpointError, match="is not the model"):
        verify_hf(RunSource.open(tmp_path / "run"), tmp_path / "export", torch.float32)


@pytest.mark.parametrize("window", [None, 65, 79, 81])
def test_verification_refuses_another_window_by_its_logits(tmp_path, monkeypatch, window):
    make_run(tmp_path / "run", **(STARCODER2 | {"window_size": 80, "max_position_embeddings": 100}))
    export(tmp_path / "run", tmp_path / "export")
    source = RunSource.open(tmp_path / "run")
    monkeypatch.setattr(hf_verification, "check_fields", lambda model, folder: None)
    assert verify_hf(source, tmp_path / "export", torch.float32) < 1e-4
    change_json(tmp_path / "export" / "config.json", sliding_window=window)
    with pytest.raises(CheckpointError, match="its logits differ by"):
        verify_hf(source, tmp_path / "export", torch.float32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sliding_window": 4095}, "window_size is 4095 and has to be 4096"),
        ({"sliding_window": None}, "window_size is None and has to be 4096"),
        ({"rope_theta": 700.5001}, r"rotary_base is 700.5001 and has to be 700.5"),
        ({"norm_epsilon": 1.1e-5}, "layernorm_epsilon is 1.1e-05 and has to be 1e-05"),
        ({"max_position_embeddings": 8192}, "max_position_embeddings is 8192"),
    ],
)
def test_verification_refuses_a_config_that_logits_hardly_tell(tmp_path, changes, words):
    sizes = {"window_size": 4096, "max_position_embeddings": 16384}
    make_run(tmp_path / "run", **(STARCODER2 | sizes))
    export(tmp_path / "run", tmp_path / "export")
    change_json(tmp_path / "export" / "config.json", **changes)
    with pytest.raises(CheckpointError, match=words):
        verify_hf(RunSource.open(tmp_path / "run"), tmp_path / "export", torch.float32)


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_our_logits_leave_no_process_group(tmp_path):
    make_run(tmp_path)
    source = RunSource.open(tmp_path)
    ids = torch.arange(5)[None]
    first = our_logits(source.reader, source.config.model, ids, torch.float32)
    assert first.shape == (1, 5, VOCAB_SIZE)
    assert not torch.distributed.is_initialized()


def test_a_sharded_export_equals_an_unsharded_one(tmp_path):
    make_run(tmp_path / "run")
    one = export(tmp_path / "run", tmp_path / "one")
    many = export(tmp_path / "run", tmp_path / "many", max_shard_bytes=4000)
    assert one.num_weight_files == 1
    assert many.num_weight_files > 3
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    names = {file.name for file in (tmp_path / "many").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == names
    assert f"model-00001-of-{len(names):05d}.safetensors" in names
    assert index["metadata"]["total_size"] == many.num_bytes == one.num_bytes
    expected, loaded = load(tmp_path / "one").state_dict(), load(tmp_path / "many").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in expected.items())


def test_the_dtype_is_that_of_the_files_and_of_the_config(tmp_path):
    weights = make_run(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "export", torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype="auto")
    assert isinstance(loaded, GPTBigCodeForCausalLM)
    assert loaded.dtype == torch.bfloat16
    expected = weights["embedding.word_embeddings.weight"][:VOCAB_SIZE].bfloat16()
    assert torch.equal(loaded.transformer.wte.weight, expected)


def test_values_beyond_fp16_are_refused(tmp_path):
    weights = make_run(tmp_path / "run")
    weights["final_layernorm.bias"][0] = 1e5
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    config = RunSource.open(tmp_path / "run").reader.config
    save_checkpoint(tmp_path / "run", 20, tensors, state={}, config=config)
    with pytest.raises(ConfigError, match=r"final_layernorm\.bias has values beyond .* bf16"):
        export(tmp_path / "run", tmp_path / "export", torch.float16)


def test_the_config_of_a_model_with_rotary_positions_is_starcoder2(tmp_path):
    make_run(tmp_path / "run", **STARCODER2, hidden_dropout=0.2, layernorm_epsilon=1e-4)
    export(tmp_path / "run", tmp_path / "export")
    config = load(tmp_path / "export").config
    expected = {
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 12,
        "intermediate_size": 26,
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "sliding_window": 5,
        "residual_dropout": 0.2,
        "embedding_dropout": 0.2,
        "attention_dropout": 0.1,
        "norm_epsilon": 1e-4,
        "use_bias": True,
        "tie_word_embeddings": True,
        "architectures": ["Starcoder2ForCausalLM"],
    }
    assert {name: getattr(config, name) for name in expected} == expected
    # where transformers 4 looks, too
    assert json.loads((tmp_path / "export" / "config.json").read_text())["rope_theta"] == 700.5
    card = (tmp_path / "export" / "README.md").read_text()
    assert "- starcoder2\n" in card and "`Starcoder2ForCausalLM`" in card
    assert "4 heads of 6, 2 key/value heads, window of 5 tokens" in card
    assert "rotary positions" in card


def test_the_config_says_what_the_model_was(tmp_path):
    make_run(tmp_path / "run", hidden_dropout=0.2, attention_dropout=0.3, layernorm_epsilon=1e-4)
    export(tmp_path / "run", tmp_path / "export")
    config = load(tmp_path / "export").config
    expected = {
        "vocab_size": VOCAB_SIZE,
        "n_positions": 12,
        "n_inner": 26,
        "multi_query": True,
        "activation_function": "gelu_pytorch_tanh",
        "resid_pdrop": 0.2,
        "embd_pdrop": 0.2,
        "attn_pdrop": 0.3,
        "layer_norm_epsilon": 1e-4,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "architectures": ["GPTBigCodeForCausalLM"],
    }
    assert {name: getattr(config, name) for name in expected} == expected
    generation = GenerationConfig.from_pretrained(tmp_path / "export")
    assert (generation.eos_token_id, generation.pad_token_id) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_layers": 3}, "lacks model.layers.2"),
        ({"num_layers": 1}, r"has model.layers.1.*no place"),
        ({"max_position_embeddings": 20}, "position_embeddings.weight is"),
        ({"ffn_hidden_size": 13}, "needs 15 rows of"),
        ({"vocab_size": 500}, "500 in 288 rows"),
        ({"num_layers": "two"}, "config.json"),
        ({"colour": 3}, "colour"),
    ],
)
def test_a_configuration_of_another_model_is_an_error(tmp_path, changes, words):
    make_run(tmp_path / "run")
    change_config(tmp_path / "run", **changes)
    with pytest.raises(CheckpointError, match=words):
        export(tmp_path / "run", tmp_path / "export")


@HEADS
def test_an_export_is_known_from_a_model_that_others_wrote(tmp_path, heads):
    make_run(tmp_path / "run", **heads)
    export(tmp_path / "run", tmp_path / "export", max_shard_bytes=4000)
    assert is_export(tmp_path / "export")
    assert not is_export(tmp_path / "run")
    assert not is_export(tmp_path / "nothing")
    # Fine-tuned from an export, say: transformers keeps every field of config.json.
    load(tmp_path / "export").save_pretrained(tmp_path / "theirs")
    assert not is_export(tmp_path / "theirs")
    shutil.copy(
        tmp_path / "theirs" / "model.safetensors", tmp_path / "export" / "model.safetensors"
    )
    assert not is_export(tmp_path / "export")
