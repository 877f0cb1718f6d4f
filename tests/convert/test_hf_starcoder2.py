"""Starcoder2 folders that transformers wrote, imported and exported again, and the published configurations."""

import pytest
import torch
from transformers import Starcoder2Config, Starcoder2ForCausalLM

from megatron.checkpoint import safetensors_file
from megatron.convert.fields import Fields
from megatron.convert.hf_import import architecture_named
from megatron.convert.hf_verification import verify_hf
from megatron.errors import CheckpointError
from megatron.model.flops import num_parameters
from tests.convert.test_hf_import import (
    NUM_ROWS,
    assert_round_trip,
    bring_in,
    change_config,
    gradients_of_equal_logits,
)
from tests.model.test_transformers import to_starcoder2
from tests.model.tiny import assert_all_close


def make_theirs(folder, *, dtype=torch.float32, **changes):
    """Save a random Starcoder2 as transformers does; give the model."""
    defaults = {
        "vocab_size": NUM_ROWS,
        "hidden_size": 24,
        "intermediate_size": 26,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 12,
        "rope_parameters": {"rope_type": "default", "rope_theta": 999.4420358813},
        "sliding_window": 5,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(2)
    config = Starcoder2Config(**(defaults | changes))
    config._attn_implementation = "eager"
    model = Starcoder2ForCausalLM(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3 + 0.05)
    model.save_pretrained(folder, max_shard_size="8KB")
    return model


VARIANTS = {
    "grouped, tied, window": {},
    "multi-query, untied, no biases": {
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
        "use_bias": False,
        "sliding_window": None,
    },
    "multi-head, heads of another width": {"num_key_value_heads": 4, "head_dim": 8},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_logits_and_all_gradients_are_those_of_transformers(world, tmp_path, changes):
    theirs = make_theirs(tmp_path / "hf", **changes)
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    bring_in(tmp_path / "hf", tmp_path / "ours")
    gradients = gradients_of_equal_logits(world, tmp_path / "ours", theirs)
    renamed = to_starcoder2(gradients, theirs.config.num_key_value_heads, 2)
    assert_all_close(renamed, {name: p.grad for name, p in theirs.named_parameters()})


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_round_trip_is_bit_equal(tmp_path, monkeypatch, changes, dtype):
    monkeypatch.setattr(safetensors_file, "BLOCK_BYTES", 200)  # two rows of fp32
    make_theirs(tmp_path / "hf", dtype=dtype, norm_epsilon=1e-4, residual_dropout=0.3, **changes)
    change_config(tmp_path / "hf", embedding_dropout=0.3)
    source = assert_round_trip(tmp_path, Starcoder2Config, dtype)
    assert verify_hf(source, tmp_path / "hf", torch.float32) < 1e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'.*--gelu-as-tanh"),
        ({"norm_type": "rms_norm"}, "norm_type is 'rms_norm'; norms are LayerNorm"),
        ({"mlp_type": "gated"}, "mlp_type is 'gated'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling: type is 'linear'; rotary positions are not scaled",
        ),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters: rope_type is 'yarn'"),
        ({"rope_parameters": "yarn"}, "rope_parameters is 'yarn'"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "--rotary-base is -1"),
        (
            {"partial_rotary_factor": 0.5},
            "partial_rotary_factor is 0.5; positions rotate the whole",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
            "rope_parameters: partial_rotary_factor is 0.25",
        ),
        ({"logit_scale": 0.0625}, "logit_scale is 0.0625; logits are not scaled"),
        (
            {"layer_types": ["sliding_attention", "full_attention"]},
            "layer_types is .*alike here, and with a sliding_window of 5 they are sliding_attention",
        ),
        ({"layer_types": ["full_attention"] * 2}, "layer_types is .*sliding_window of 5"),
        (
            {"layer_types": ["sliding_attention"] * 2, "sliding_window": None},
            "sliding_window of None they are full_attention",
        ),
        ({"layer_types": "full"}, "layer_types is 'full'"),
        ({"embedding_dropout": 0.3}, "embedding_dropout is 0.3; residual_dropout is 0.0"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"num_key_value_heads": 3}, "--num-query-groups 3"),
        ({"num_key_value_heads": 4}, r"k_proj.weight is \[12, 24\] and has to be \[24, 24\]"),
        ({"head_dim": 5}, "heads are 5 wide"),
        ({"use_bias": False}, "c_fc.bias, which has no place"),
        ({"num_hidden_layers": 3}, "lacks model.layers.2"),
        ({"tie_word_embeddings": False}, "lacks lm_head.weight"),
    ],
)
def test_fields_that_our_model_cannot_honour_are_named(tmp_path, changes, words):
    make_theirs(tmp_path / "hf")
    change_config(tmp_path / "hf", **changes)
    with pytest.raises(CheckpointError, match=words):
        bring_in(tmp_path / "hf", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_fields_that_change_nothing_are_taken(tmp_path):
    make_theirs(tmp_path / "hf")
    rope = {"rope_type": "default", "rope_theta": 700.5, "partial_rotary_factor": 1.0}
    change_config(
        tmp_path / "hf",
        partial_rotary_factor=1,
        rope_parameters=rope,
        logit_scale=1.0,
        layer_types=["sliding_attention"] * 2,
    )
    assert bring_in(tmp_path / "hf", tmp_path / "ours").config.model.window_size == 5


# layers, hidden, heads, groups, MLP, rope_theta; 10^9 parameters with tied embeddings
PUBLISHED = {
    "3b": (30, 3072, 24, 2, 12288, 999999.4420358813, 3.03),
    "7b": (32, 4608, 36, 4, 18432, 1000000, 7.17),
    "15b": (40, 6144, 48, 4, 24576, 100000, 15.66),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_read(name):
    layers, hidden, heads, groups, ffn, base, billions = PUBLISHED[name]
    values = {
        "model_type": "starcoder2",
        "activation_function": "gelu",  # of another architecture: hidden_act decides
        "hidden_act": "gelu_pytorch_tanh",
        "attention_dropout": 0.1,
        "residual_dropout": 0.1,
        "embedding_dropout": 0.1,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "max_position_embeddings": 16384,
        "mlp_type": "default",
        "norm_epsilon": 1e-05,
        "norm_type": "layer_norm",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": groups,
        "rope_theta": base,
        "sliding_window": 4096,
        "use_bias": True,
        "vocab_size": 49152,
    }
    fields = Fields(values, "config.json")
    model = architecture_named(fields).read_fields(fields, False)
    model.check()
    assert (model.head_dim, model.kv_channels, model.rotary_base) == (128, None, base)
    assert (model.window_size, model.query_groups) == (4096, groups)
    assert num_parameters(model) / 1e9 == pytest.approx(billions, abs=0.005)
    written = architecture_named(fields).write_fields(model)
    same = values.keys() & written.keys()
    assert len(same) == 14 and all(written[key] == values[key] for key in same)
