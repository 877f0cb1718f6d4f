"""Folders that transformers wrote, imported: the same numbers, and whatever does not fit refused by name."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig, GPTBigCodeConfig, GPTBigCodeForCausalLM

from megatron.checkpoint import safetensors_file
from megatron.checkpoint.layout import find_checkpoint
from megatron.checkpoint.load import load_checkpoint
from megatron.convert.hf_export import export_hf
from megatron.convert.hf_import import open_hf
from megatron.convert.hf_verification import verify_hf
from megatron.convert.imported import convert
from megatron.convert.source import RunSource
from megatron.errors import CheckpointError, DataError
from tests.convert.runs import (
    MULTI_HEAD,
    MULTI_QUERY,
    STARCODER2,
    VOCAB_SIZE,
    make_run,
    write_tokenizer_files,
)
from tests.model.test_transformers import to_bigcode
from tests.model.tiny import assert_all_close, make_context, make_model, whole

NUM_ROWS = 53


def make_theirs(folder, *, dtype=torch.float32, shard_size="1GB", **changes):
    """Save a random GPTBigCode as transformers does; give the model."""
    defaults = {
        "vocab_size": NUM_ROWS,
        "n_positions": 12,
        "n_embd": 15,
        "n_layer": 2,
        "n_head": 3,
        "n_inner": 26,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(2)
    model = GPTBigCodeForCausalLM(GPTBigCodeConfig(**(defaults | changes))).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3 + 0.05)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


def bring_in(folder, save, *, accepts_exact_gelu=False):
    convert(
        lambda: open_hf(folder, accepts_exact_gelu=accepts_exact_gelu),
        save,
        overwrite=False,
    )
    return RunSource.open(save)


def export(source, folder, dtype):
    folder.mkdir()
    export_hf(source, folder, dtype=dtype, max_shard_bytes=10**9, progress=lambda _: None)


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def our_logits_and_gradients(rank, root, ids, labels):
    """Load an import as training does; give logits [b, s, v] and gradients of the mean loss by name."""
    source = RunSource.open(root)
    model = make_model(source.config.model, make_context(1))
    weights = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    load_checkpoint(find_checkpoint(root), weights)
    logits = model(ids).transpose(0, 1).detach()
    model(ids, labels=labels).mean().backward()
    return logits, {name: whole(parameter.grad) for name, parameter in model.named_parameters()}


def gradients_of_equal_logits(world, root, theirs):
    """Compare an import with the model it was made of, and give our gradients; theirs are left in the model."""
    generator = torch.Generator().manual_seed(4)
    ids, labels = torch.randint(NUM_ROWS, (2, 2, 12), generator=generator)
    logits, gradients = world(1).run(our_logits_and_gradients, root, ids, labels)[0]
    expected = theirs(ids).logits
    F.cross_entropy(expected.flatten(0, 1), labels.flatten()).backward()
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    return gradients


def weights_of(folder):
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_round_trip(folder, config_class, dtype):
    """Bring FOLDER/hf in, export it, and bring that in: equal bits and an equal configuration each time."""
    source = bring_in(folder / "hf", folder / "ours")
    assert source.config.precision.compute_dtype == str(dtype).removeprefix("torch.")
    export(source, folder / "back", dtype)
    first, second = weights_of(folder / "hf"), weights_of(folder / "back")
    assert first.keys() == second.keys()
    assert all(first[n].dtype == second[n].dtype == dtype for n in first)
    assert all(torch.equal(first[name], second[name]) for name in first)
    original = config_class.from_pretrained(folder / "hf").to_dict()
    returned = config_class.from_pretrained(folder / "back").to_dict()
    assert returned | {"_name_or_path": ""} == original | {"_name_or_path": ""}
    again = bring_in(folder / "back", folder / "again")
    assert set(again.reader.names()) == set(source.reader.names())
    for name in source.reader.names():
        assert torch.equal(again.reader.read(name), source.reader.read(name))
    return source


@pytest.mark.parametrize("multi_query", [True, False], ids=["multiquery", "multihead"])
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_logits_and_all_gradients_are_those_of_transformers(world, tmp_path, multi_query, is_tied):
    theirs = make_theirs(
        tmp_path / "hf", multi_query=multi_query, tie_word_embeddings=is_tied, shard_size="4KB"
    )
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    source = bring_in(tmp_path / "hf", tmp_path / "ours")
    gradients = gradients_of_equal_logits(world, tmp_path / "ours", theirs)
    renamed = to_bigcode(gradients, multi_query, 2)
    if not is_tied:
        renamed["lm_head.weight"] = gradients["output_layer.weight"]
    assert_all_close(renamed, {name: p.grad for name, p in theirs.named_parameters()})
    assert source.config.model.hidden_dropout == 0.0


@pytest.mark.parametrize("multi_query", [True, False], ids=["multiquery", "multihead"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_round_trip_is_bit_equal(tmp_path, monkeypatch, multi_query, dtype):
    monkeypatch.setattr(safetensors_file, "BLOCK_BYTES", 200)  # three rows of fp32
    make_theirs(tmp_path / "hf", multi_query=multi_query, dtype=dtype, layer_norm_epsilon=1e-4)
    assert_round_trip(tmp_path, GPTBigCodeConfig, dtype)


@pytest.mark.parametrize("changes", [MULTI_QUERY, MULTI_HEAD, STARCODER2])
def test_a_run_of_ours_comes_back_from_its_export(tmp_path, changes):
    weights = make_run(tmp_path / "run", **changes, init_method_std=0.03)
    export(RunSource.open(tmp_path / "run"), tmp_path / "a", torch.float32)
    source = bring_in(tmp_path / "a", tmp_path / "back")
    for name, tensor in weights.items():
        rows = VOCAB_SIZE if "word_embeddings" in name else None  # padding is not exported
        assert torch.equal(source.reader.read(f"model.{name}"), tensor[:rows])
    export(source, tmp_path / "b", torch.float32)
    for file in (tmp_path / "a").iterdir():
        if file.name != "README.md":
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    card = (tmp_path / "b" / "README.md").read_text()
    assert "| converted from | a |" in card
    assert "| steps |" not in card
    model, old = source.config.model, RunSource.open(tmp_path / "run").config.model
    names = ("vocab_size", "ffn_size", "query_groups", "init_method_std", "layernorm_epsilon")
    names += ("head_dim", "position_embedding_type", "rotary_base", "window_size")
    assert all(getattr(model, name) == getattr(old, name) for name in names)


def test_tokenizer_and_generation_config_come_along(tmp_path):
    make_theirs(tmp_path / "hf", vocab_size=VOCAB_SIZE)
    write_tokenizer_files(tmp_path / "tok")
    shutil.copyfile(tmp_path / "tok" / "tokenizer.json", tmp_path / "hf" / "tokenizer.json")
    (tmp_path / "hf" / "tokenizer_config.json").write_text('{"eos_token": "<fim_pad>"}')
    generation = GenerationConfig(bos_token_id=0, eos_token_id=[0, 4], max_new_tokens=9)
    generation.save_pretrained(tmp_path / "hf")
    source = bring_in(tmp_path / "hf", tmp_path / "ours")
    shutil.rmtree(tmp_path / "hf")
    assert source.tokenizer.eod == 4
    assert source.config.tokenizer.tokenizer_type == "HuggingFaceTokenizer"
    assert RunSource.open(tmp_path / "ours").tokenizer.vocab_size == VOCAB_SIZE
    export(source, tmp_path / "back", torch.float32)
    carried = GenerationConfig.from_pretrained(tmp_path / "back")
    assert (carried.eos_token_id, carried.max_new_tokens) == ([0, 4], 9)
    assert AutoTokenizer.from_pretrained(tmp_path / "back").eos_token == "<fim_pad>"


def test_rows_beyond_the_tokenizer_are_padding(tmp_path, capsys):
    make_theirs(tmp_path / "hf", vocab_size=300)
    write_tokenizer_files(tmp_path / "tok")
    shutil.copyfile(tmp_path / "tok" / "tokenizer.json", tmp_path / "hf" / "tokenizer.json")
    source = bring_in(tmp_path / "hf", tmp_path / "ours")
    assert (source.config.model.vocab_size, source.config.model.padded_vocab_size) == (280, 300)
    assert "280 ids and the embedding 300 rows" in capsys.readouterr().out
    assert verify_hf(source, tmp_path / "hf", torch.float32) < 1e-5
    make_theirs(tmp_path / "small", vocab_size=270)
    shutil.copyfile(tmp_path / "tok" / "tokenizer.json", tmp_path / "small" / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"vocab_size is 270; its tokenizer.json has 280 ids"):
        bring_in(tmp_path / "small", tmp_path / "none")
    (tmp_path / "small" / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="no model with a vocab"):
        bring_in(tmp_path / "small", tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, r"model_type is 'gpt2'.*GPTBigCode.*Starcoder2"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'.*--gelu-as-tanh"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"embd_pdrop": 0.3}, "embd_pdrop is 0.3; resid_pdrop is 0.0"),
        ({"layer_norm_epsilon": 0}, "layernorm-epsilon is 0"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon is 'small'"),
        ({"multi_query": 1}, "multi_query is 1"),
        ({"num_key_value_heads": 2}, "num_key_value_heads is 2"),
        ({"n_head": 4}, "15 is not divisible by --num-attention-heads 4"),
        ({"n_embd": None}, "n_embd is None"),
        ({"n_embd": 15.0}, "n_embd is 15.0"),
        ({"n_layer": 3}, "lacks transformer.h.2.ln_1.weight"),
        ({"n_layer": 10**12}, "--num-layers is 1000000000000; allowed"),
        ({"n_embd": 10**9, "n_head": 10**9}, "--hidden-size is 1000000000; allowed"),
        ({"n_layer": 1}, "has transformer.h.1.* no place"),
        ({"n_inner": 30}, r"h.0.mlp.c_fc.weight is \[26, 15\] and has to be \[30, 15\]"),
        ({"n_inner": None}, r"has to be \[60, 15\]"),
        ({"n_positions": 10}, "wpe.weight is"),
        ({"vocab_size": 54}, "wte.weight is"),
        ({"multi_query": False, "num_key_value_heads": 3}, "c_attn.weight is"),
        ({"tie_word_embeddings": False}, "lacks lm_head.weight"),
    ],
)
def test_fields_that_our_model_cannot_honour_are_named(tmp_path, changes, words):
    make_theirs(tmp_path / "hf")
    change_config(tmp_path / "hf", **changes)
    with pytest.raises(CheckpointError, match=words):
        bring_in(tmp_path / "hf", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_exact_gelu_is_taken_where_that_is_meant(tmp_path):
    make_theirs(tmp_path / "hf", activation_function="gelu")
    source = bring_in(tmp_path / "hf", tmp_path / "ours", accepts_exact_gelu=True)
    with pytest.raises(CheckpointError, match="is not the model"):
        verify_hf(source, tmp_path / "hf", torch.float32)
    change_config(tmp_path / "hf", activation_function="gelu_new")
    assert verify_hf(source, tmp_path / "hf", torch.float32) < 1e-5


def rewrite(folder, change):
    """Change the tensors of a folder of one file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def stored_head(tensors):
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()


def test_a_tied_head_and_masks_may_be_stored(tmp_path):
    make_theirs(tmp_path / "hf")

    def add(tensors):
        stored_head(tensors)
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 12, 12, dtype=torch.bool)
        tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)

    rewrite(tmp_path / "hf", add)
    bring_in(tmp_path / "hf", tmp_path / "ours")


def other_head(tensors):
    stored_head(tensors)
    tensors["lm_head.weight"][3, 1] += 1e-3


def other_shape(tensors):
    tensors["transformer.ln_f.bias"] = torch.ones(16)


def other_dtype(tensors):
    tensors["transformer.ln_f.bias"] = torch.ones(15, dtype=torch.float64)


def one_more(tensors):
    tensors["transformer.h.0.mlp.gate.weight"] = torch.ones(2)


def one_less(tensors):
    del tensors["transformer.h.1.attn.c_attn.bias"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_head, "lm_head.weight that differs"),
        (other_shape, r"ln_f.bias is \[16\] and has to be \[15\]"),
        (other_dtype, "ln_f.bias in torch.float64"),
        (one_more, "mlp.gate.weight, which has no place"),
        (one_less, "lacks transformer.h.1.attn.c_attn.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, words):
    make_theirs(tmp_path / "hf")
    rewrite(tmp_path / "hf", change)
    with pytest.raises(CheckpointError, match=words):
        bring_in(tmp_path / "hf", tmp_path / "ours")


def test_files_that_are_missing_or_cut_short_are_named(tmp_path):
    make_theirs(tmp_path / "hf", shard_size="4KB")
    shards = sorted((tmp_path / "hf").glob("model-*.safetensors"))
    whole_shard = shards[1].read_bytes()
    shards[1].write_bytes(whole_shard[:-5])
    with pytest.raises(CheckpointError, match=rf"{shards[1].name} is damaged"):
        bring_in(tmp_path / "hf", tmp_path / "ours")
    shutil.copyfile(shards[0], shards[1])
    with pytest.raises(CheckpointError, match=rf"{shards[1].name} has .* does not place there"):
        bring_in(tmp_path / "hf", tmp_path / "ours")
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=rf"{shards[1].name} is missing"):
        bring_in(tmp_path / "hf", tmp_path / "ours")
    shards[1].write_bytes(whole_shard)
    index = tmp_path / "hf" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["transformer.more"] = shards[1].name
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"{shards[1].name} lacks transformer.more"):
        bring_in(tmp_path / "hf", tmp_path / "ours")
    content["weight_map"]["transformer.more"] = "../other.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="does not name files beside it"):
        bring_in(tmp_path / "hf", tmp_path / "ours")
    index.write_text("{")
    with pytest.raises(CheckpointError, match=r"index.json is damaged"):
        bring_in(tmp_path / "hf", tmp_path / "ours")
    index.unlink()
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor"):
        bring_in(tmp_path / "hf", tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_a_pickle_is_refused_with_the_way_out(tmp_path):
    model = make_theirs(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin, a pickle.*save_pretrained"):
        bring_in(tmp_path / "hf", tmp_path / "ours")
