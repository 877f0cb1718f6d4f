"""Checkpoints of BigCode's Megatron-LM, imported."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from megatron.checkpoint import safetensors_file
from megatron.convert.hf_export import export_hf
from megatron.convert.imported import convert
from megatron.convert.megatron_import import open_megatron
from megatron.convert.source import RunSource
from megatron.errors import CheckpointError, ConfigError
from megatron.options import TokenizerConfig
from tests.convert.megatron_checkpoint import (
    PositionEmbeddingType,
    query_key_value,
    write_megatron,
)
from tests.convert.runs import (
    MULTI_HEAD,
    MULTI_QUERY,
    VOCAB_SIZE,
    model_config,
    whole_weights,
    write_tokenizer_files,
)

SMALL = {"tp": 2, "pp": 2}


def make_model(**changes):
    """Four layers of four heads; weights that bfloat16 holds exactly."""
    sizes = {"num_layers": 4, "hidden_size": 24, "ffn_hidden_size": 28, "num_attention_heads": 4}
    config = model_config(**(sizes | changes))
    return config, {name: tensor.bfloat16() for name, tensor in whole_weights(config).items()}


def bring_in(path, save, iteration=None, *, tokenizer=None, accepts_exact_gelu=False):
    convert(
        lambda: open_megatron(
            path, iteration, tokenizer=tokenizer, accepts_exact_gelu=accepts_exact_gelu
        ),
        save,
        overwrite=False,
    )
    return RunSource.open(save)


def assert_equals(source, weights):
    assert set(source.reader.names()) == {f"model.{name}" for name in weights}
    for name, tensor in weights.items():
        stored = source.reader.read(f"model.{name}")
        assert stored.dtype == torch.float32
        assert torch.equal(stored, tensor.float()), name


@pytest.mark.parametrize(
    ("heads", "layout"),
    [
        (MULTI_QUERY, {"tp": 4, "pp": 2}),
        (MULTI_HEAD, {"tp": 2, "pp": 1}),
        (MULTI_HEAD, {"tp": 4, "pp": 4}),
        (MULTI_QUERY, {"tp": 1, "pp": 1}),
        (MULTI_QUERY, {"tp": 2, "pp": 2, "chunks": 2}),
        (MULTI_QUERY, {"tp": 2, "pp": 2, "release": True}),
    ],
)
@pytest.mark.parametrize("is_untied", [False, True], ids=["tied", "untied"])
def test_the_weights_are_those_that_were_cut(tmp_path, monkeypatch, heads, layout, is_untied):
    monkeypatch.setattr(safetensors_file, "BLOCK_BYTES", 500)  # a few rows
    config, weights = make_model(untie_embeddings_and_output_weights=is_untied, **heads)
    write_megatron(tmp_path / "theirs", weights, config, **layout)
    source = bring_in(tmp_path / "theirs", tmp_path / "ours")
    assert_equals(source, weights)
    model = source.config.model
    assert (model.query_groups, model.num_layers) == (config.query_groups, 4)
    assert (model.init_method_std, model.attention_dropout) == (0.0125, 0.2)
    assert source.config.precision.bf16
    assert source.config.data.fim_rate == 0.5
    assert source.reader.iteration == 7
    assert source.reader.state["consumed_samples"] == 700


def test_multi_head_attention_comes_out_as_transformers_has_it(tmp_path):
    # GPTBigCode took Megatron's query_key_value over unchanged.
    config, weights = make_model(**MULTI_HEAD)
    write_megatron(tmp_path / "theirs", weights, config, tp=2)
    source = bring_in(tmp_path / "theirs", tmp_path / "ours")
    out = tmp_path / "export"
    out.mkdir()
    export_hf(source, out, dtype=torch.bfloat16, max_shard_bytes=10**9, progress=lambda _: None)
    tensors = load_file(out / "model.safetensors")
    for kind in ("weight", "bias"):
        expected = query_key_value(weights, 1, kind, config.num_attention_heads)
        assert torch.equal(tensors[f"transformer.h.1.attn.c_attn.{kind}"], expected)


def test_fp32_and_older_names_of_the_stack_are_read(tmp_path):
    config, _ = make_model()
    weights = whole_weights(config)

    def rename(content, tp_rank, pp_rank):
        stack = content["model"]["language_model"].pop("encoder")
        content["model"]["language_model"]["transformer"] = {
            name.replace(".self_attention.", ".attention."): t for name, t in stack.items()
        }

    write_megatron(tmp_path / "theirs", weights, config, change=rename, **SMALL)
    assert_equals(bring_in(tmp_path / "theirs", tmp_path / "ours"), weights)


def test_a_checkpoint_is_found_by_its_folder_and_by_its_iteration(tmp_path):
    config, weights = make_model()
    folder = write_megatron(tmp_path / "theirs", weights, config, tp=1)
    assert_equals(bring_in(folder, tmp_path / "a"), weights)
    (tmp_path / "theirs" / "latest_checkpointed_iteration.txt").write_text("9")
    assert_equals(bring_in(tmp_path / "theirs", tmp_path / "b", 7), weights)
    with pytest.raises(CheckpointError, match="has no iter_0000009"):
        bring_in(tmp_path / "theirs", tmp_path / "c")
    with pytest.raises(ConfigError, match="leave --iteration out"):
        bring_in(folder, tmp_path / "c", 7)
    (tmp_path / "theirs" / "latest_checkpointed_iteration.txt").write_text("nine")
    with pytest.raises(CheckpointError, match="holds 'nine'"):
        bring_in(tmp_path / "theirs", tmp_path / "c")
    with pytest.raises(CheckpointError, match="neither mp_rank_ folders nor a readable"):
        bring_in(tmp_path / "a" / "iter_0000007", tmp_path / "c")
    with pytest.raises(CheckpointError, match="is not a folder"):
        bring_in(tmp_path / "none", tmp_path / "c")


def test_the_tokenizer_says_where_the_vocabulary_ends(tmp_path, capsys):
    config, weights = make_model()
    write_megatron(tmp_path / "theirs", weights, config, tp=1)
    write_tokenizer_files(tmp_path / "tokenizer")
    options = TokenizerConfig(tokenizer_file=str(tmp_path / "tokenizer" / "tokenizer.json"))
    source = bring_in(tmp_path / "theirs", tmp_path / "with", tokenizer=options)
    assert (source.config.model.vocab_size, source.config.model.padded_vocab_size) == (280, 288)
    assert source.tokenizer.vocab_size == VOCAB_SIZE
    assert "no tokenizer" not in capsys.readouterr().out
    source = bring_in(tmp_path / "theirs", tmp_path / "without")
    assert source.config.model.vocab_size == 288
    assert "all 288 rows of the embedding count" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="has 1001 ids and the embedding 288"):
        null = TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=1000)
        bring_in(tmp_path / "theirs", tmp_path / "more", tokenizer=null)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("layers.1.self_attention.key_value.weight", (1, 1)),
        ("layers.0.self_attention.key_value.bias", (1, 0)),
        ("layers.0.post_attention_layernorm.bias", (1, 1)),
        ("layers.1.mlp.dense_4h_to_h.bias", (1, 0)),
        ("final_layernorm.weight", (1, 1)),
    ],
)
def test_copies_that_differ_name_the_rank(tmp_path, name, place):
    config, weights = make_model()

    def disturb(content, tp_rank, pp_rank):
        if (tp_rank, pp_rank) == place:
            content["model"]["language_model"]["encoder"][name].view(-1)[-1] += 1

    write_megatron(tmp_path / "theirs", weights, config, change=disturb, **SMALL)
    with pytest.raises(
        CheckpointError, match=f"mp_rank_01_00{place[1]} and mp_rank_00_00{place[1]}"
    ):
        bring_in(tmp_path / "theirs", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_a_tied_head_that_is_not_the_embedding_names_the_rank(tmp_path):
    config, weights = make_model()

    def disturb(content, tp_rank, pp_rank):
        if (tp_rank, pp_rank) == (1, 1):
            content["model"]["word_embeddings_for_head"]["weight"][0, 0] = 9

    write_megatron(tmp_path / "theirs", weights, config, change=disturb, **SMALL)
    with pytest.raises(CheckpointError, match=r"mp_rank_01_001 and mp_rank_01_000 .*word_embed"):
        bring_in(tmp_path / "theirs", tmp_path / "ours")


def test_copies_of_nan_are_equal(tmp_path):
    config, weights = make_model()
    weights["layers.3.self_attention.key_value.bias"][1] = float("nan")
    write_megatron(tmp_path / "theirs", weights, config, **SMALL)
    source = bring_in(tmp_path / "theirs", tmp_path / "ours")
    assert source.reader.read("model.layers.3.self_attention.key_value.bias")[1].isnan()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"position_embedding_type": PositionEmbeddingType.alibi},
            r"position_embedding_type is .*(3|alibi)",
        ),
        ({"position_embedding_type": "rope"}, "position_embedding_type is 'rope'"),
        ({"use_rotary_position_embeddings": True}, "use_rotary_position_embeddings is True"),
        ({"bias_gelu_fusion": False}, "bias_gelu_fusion is False.*--gelu-as-tanh"),
        ({"glu_activation": "swiglu"}, "glu_activation is 'swiglu'"),
        ({"apply_layernorm_1p": True}, "apply_layernorm_1p is True"),
        ({"attention_head_type": "grouped"}, "attention_head_type is 'grouped'"),
        ({"num_layers": "four"}, "num_layers is 'four'"),
        ({"num_layers": 6}, "has 4 layers and its num_layers is 6"),
        ({"hidden_dropout": 1.5}, "hidden-dropout is 1.5"),
        ({"padded_vocab_size": 280}, r"word_embeddings.weight as \[144, 24\].*\[140, 24\]"),
        ({"max_position_embeddings": 20}, "position_embeddings.weight as"),
        ({"ffn_hidden_size": 30}, "dense_h_to_4h.weight as"),
        ({"untie_embeddings_and_output_weights": True}, "lacks output_layer.weight"),
        ({"attention_head_type": "multihead"}, "lacks .*query_key_value"),
        ({"pipeline_model_parallel_size": 3}, "mp_rank_00_002 is missing"),
        ({"tensor_model_parallel_size": 1}, "mp_rank_01_000 has no place"),
        ({"tensor_model_parallel_size": 10**12}, "mp_rank_02_000 is missing"),
        ({"padded_vocab_size": None}, "padded_vocab_size is None"),
    ],
)
def test_arguments_that_do_not_fit_are_named(tmp_path, changes, words):
    config, weights = make_model()
    write_megatron(tmp_path / "theirs", weights, config, **SMALL, **changes)
    with pytest.raises(CheckpointError, match=words):
        bring_in(tmp_path / "theirs", tmp_path / "ours")


def test_exact_gelu_is_taken_where_that_is_meant(tmp_path):
    config, weights = make_model()
    write_megatron(tmp_path / "theirs", weights, config, tp=1, bias_gelu_fusion=False)
    assert_equals(
        bring_in(tmp_path / "theirs", tmp_path / "ours", accepts_exact_gelu=True), weights
    )


def set_version(content, tp_rank, pp_rank):
    content["checkpoint_version"] = 1.0


def other_iteration(content, tp_rank, pp_rank):
    content["iteration"] += tp_rank


def other_width(content, tp_rank, pp_rank):
    content["args"].hidden_dropout = 0.1 * pp_rank


def no_arguments(content, tp_rank, pp_rank):
    del content["args"]


def no_model(content, tp_rank, pp_rank):
    del content["model"]


def one_more(content, tp_rank, pp_rank):
    content["model"]["language_model"]["encoder"]["layers.0.mlp.gate.weight"] = torch.ones(2)


def one_less(content, tp_rank, pp_rank):
    if tp_rank == 1:
        del content["model"]["language_model"]["encoder"]["layers.1.mlp.dense_h_to_4h.bias"]


def of_integers(content, tp_rank, pp_rank):
    encoder = content["model"]["language_model"]["encoder"]
    encoder["layers.1.mlp.dense_h_to_4h.bias"] = torch.ones(14, dtype=torch.int32)


def holds_itself(content, tp_rank, pp_rank):
    content["model"]["again"] = content["model"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_version, "checkpoint_version 1.0"),
        (other_iteration, "mp_rank_01_000 is of another run or iteration"),
        (other_width, "mp_rank_00_001 is of another run"),
        (no_arguments, "it has no args"),
        (no_model, "it has no model"),
        (one_more, "mlp.gate.weight, which has no place"),
        (one_less, "1 parts of layers.1.mlp.dense_h_to_4h.bias"),
        (of_integers, "in torch.int32"),
        (holds_itself, "has again.again.* which is no tensor"),
    ],
)
def test_files_that_are_not_one_checkpoint_are_refused(tmp_path, change, words):
    config, weights = make_model()
    write_megatron(tmp_path / "theirs", weights, config, change=change, **SMALL)
    with pytest.raises(CheckpointError, match=words):
        bring_in(tmp_path / "theirs", tmp_path / "ours")


def test_a_missing_rank_and_a_missing_file_are_named(tmp_path):
    config, weights = make_model()
    folder = write_megatron(tmp_path / "theirs", weights, config, **SMALL)
    (folder / "mp_rank_00_001" / "model_optim_rng.pt").unlink()
    with pytest.raises(CheckpointError, match=r"mp_rank_00_001.model_optim_rng.pt cannot be read"):
        bring_in(tmp_path / "theirs", tmp_path / "ours")
    shutil.rmtree(folder / "mp_rank_00_001")
    with pytest.raises(CheckpointError, match="TP 2 and PP 2, and mp_rank_00_001 is missing"):
        bring_in(tmp_path / "theirs", tmp_path / "ours")
