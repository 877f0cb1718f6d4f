"""The model is GPTBigCode or Starcoder2 of `transformers`: equal logits and equal gradients of every weight."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from tests.model.tiny import (
    TOLERANCE,
    assert_all_close,
    make_context,
    make_model,
    randomize,
    tiny_batch,
    tiny_config,
    whole_gradients,
)

HEADS, HEAD_DIM, HIDDEN = 3, 5, 15


def to_bigcode(weights: dict, multi_query: bool, num_layers: int) -> dict:
    """Our names and layouts -> those of GPTBigCode."""
    ours = {name: tensor.detach() for name, tensor in weights.items()}
    theirs = {
        "transformer.wte.weight": ours["embedding.word_embeddings.weight"],
        "transformer.wpe.weight": ours["embedding.position_embeddings.weight"],
        "transformer.ln_f.weight": ours["final_layernorm.weight"],
        "transformer.ln_f.bias": ours["final_layernorm.bias"],
    }
    modules = {
        "ln_1": "input_layernorm",
        "attn.c_proj": "self_attention.dense",
        "ln_2": "post_attention_layernorm",
        "mlp.c_fc": "mlp.dense_h_to_4h",
        "mlp.c_proj": "mlp.dense_4h_to_h",
    }
    for layer in range(num_layers):
        for kind in ("weight", "bias"):
            for name, our_name in modules.items():
                theirs[f"transformer.h.{layer}.{name}.{kind}"] = ours[
                    f"layers.{layer}.{our_name}.{kind}"
                ]
            query = ours[f"layers.{layer}.self_attention.query.{kind}"]
            key_value = ours[f"layers.{layer}.self_attention.key_value.{kind}"]
            if multi_query:
                joined = torch.cat([query, key_value])
            else:  # one head after another, each query, key, value
                rest = query.shape[1:]
                query = query.view(HEADS, 1, HEAD_DIM, *rest)
                key_value = key_value.view(HEADS, 2, HEAD_DIM, *rest)
                joined = torch.cat([query, key_value], dim=1).reshape(-1, *rest)
            theirs[f"transformer.h.{layer}.attn.c_attn.{kind}"] = joined
    return theirs


def check_against_bigcode(rank, multi_query):
    config = tiny_config(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        kv_channels=None,
        attention_head_type="multiquery" if multi_query else "multihead",
        ffn_hidden_size=33,
    )
    model = make_model(config, make_context(1))
    randomize(model)
    reference = GPTBigCodeForCausalLM(
        GPTBigCodeConfig(
            vocab_size=config.vocab_size,
            n_positions=config.max_position_embeddings,
            n_embd=HIDDEN,
            n_layer=config.num_layers,
            n_head=HEADS,
            n_inner=33,
            multi_query=multi_query,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    check_against(
        model, reference, lambda weights: to_bigcode(weights, multi_query, config.num_layers)
    )


def check_against(model, reference, translate):
    """Compare logits, losses and gradients; translate: our weights or gradients -> theirs."""
    weights = {name: parameter.to_local() for name, parameter in model.named_parameters()}
    missing, unexpected = reference.load_state_dict(translate(weights), strict=False)
    assert not unexpected
    assert missing in ([], ["lm_head.weight"])  # tied

    tokens, labels, loss_weights, _ = tiny_batch()
    # not counted from 0, and other steps than 1; with its mask given, theirs takes them for no boundaries
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [9, 1, 2, 2, 0, 5, 10, 7]])
    positions = torch.cat([positions, positions[:1] + 3])
    expected = reference(
        tokens, position_ids=positions, attention_mask=torch.ones_like(tokens)
    ).logits  # [b, s, v]
    losses = F.cross_entropy(expected.transpose(1, 2), labels, reduction="none")
    (losses * loss_weights).sum().backward()

    logits = model(tokens, position_ids=positions)  # [s, b, v]
    torch.testing.assert_close(logits.transpose(0, 1), expected, **TOLERANCE)
    ours = model(tokens, labels=labels, position_ids=positions)
    torch.testing.assert_close(ours, losses, **TOLERANCE)
    (ours * loss_weights).sum().backward()
    assert_all_close(
        translate(whole_gradients(model)),
        {name: parameter.grad for name, parameter in reference.named_parameters()},
    )


@pytest.mark.parametrize("multi_query", [True, False])
def test_logits_and_gradients_equal_gpt_bigcode(world, multi_query):
    world(1).run(check_against_bigcode, multi_query)


def to_starcoder2(weights: dict, groups: int, num_layers: int) -> dict:
    """Our names and layouts -> those of Starcoder2."""
    ours = {name: tensor.detach() for name, tensor in weights.items()}
    theirs = {"model.embed_tokens.weight": ours["embedding.word_embeddings.weight"]}
    if "output_layer.weight" in ours:
        theirs["lm_head.weight"] = ours["output_layer.weight"]
    modules = {
        "input_layernorm": "input_layernorm",
        "self_attn.q_proj": "self_attention.query",
        "self_attn.o_proj": "self_attention.dense",
        "post_attention_layernorm": "post_attention_layernorm",
        "mlp.c_fc": "mlp.dense_h_to_4h",
        "mlp.c_proj": "mlp.dense_4h_to_h",
    }
    for kind in ("weight", "bias"):
        theirs[f"model.norm.{kind}"] = ours[f"final_layernorm.{kind}"]
        for layer in range(num_layers):
            prefix = f"layers.{layer}"
            for name, our_name in modules.items():
                if f"{prefix}.{our_name}.{kind}" in ours:
                    theirs[f"model.{prefix}.{name}.{kind}"] = ours[f"{prefix}.{our_name}.{kind}"]
            joined = ours.get(f"{prefix}.self_attention.key_value.{kind}")
            if joined is not None:
                pairs = joined.view(groups, 2, -1, *joined.shape[1:])
                theirs[f"model.{prefix}.self_attn.k_proj.{kind}"] = pairs[:, 0].flatten(0, 1)
                theirs[f"model.{prefix}.self_attn.v_proj.{kind}"] = pairs[:, 1].flatten(0, 1)
    return theirs


def check_against_starcoder2(rank, groups, window, is_tied, has_bias):
    config = tiny_config(
        hidden_size=24,
        num_attention_heads=4,
        kv_channels=6,
        num_query_groups=groups,
        ffn_hidden_size=33,
        layernorm_epsilon=1e-3,
        position_embedding_type="rope",
        rotary_base=700.5,
        window_size=window,
        untie_embeddings_and_output_weights=not is_tied,
        disable_bias_linear=not has_bias,
    )
    model = make_model(config, make_context(1))
    randomize(model)
    theirs = Starcoder2Config(
        vocab_size=config.vocab_size,
        hidden_size=24,
        intermediate_size=33,
        num_hidden_layers=config.num_layers,
        num_attention_heads=4,
        num_key_value_heads=groups,
        max_position_embeddings=config.max_position_embeddings,
        norm_epsilon=1e-3,
        rope_parameters={"rope_type": "default", "rope_theta": 700.5},
        sliding_window=window,
        use_bias=has_bias,
        tie_word_embeddings=is_tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    theirs._attn_implementation = "eager"
    check_against(
        model,
        Starcoder2ForCausalLM(theirs),
        lambda weights: to_starcoder2(weights, groups, config.num_layers),
    )


@pytest.mark.parametrize(
    "groups, window, is_tied, has_bias",
    [(2, 3, True, True), (1, None, False, True), (4, 1, True, False), (2, 8, False, False)],
)
def test_logits_and_gradients_equal_starcoder2(world, groups, window, is_tied, has_bias):
    world(1).run(check_against_starcoder2, groups, window, is_tied, has_bias)
