"""The model is GPTBigCode of `transformers`: equal logits and equal gradients of every weight."""

import pytest
import torch
import torch.nn.functional as F
from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

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
    weights = {name: parameter.to_local() for name, parameter in model.named_parameters()}
    weights = to_bigcode(weights, multi_query, config.num_layers)
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected
    assert missing in ([], ["lm_head.weight"])  # tied

    tokens, labels, loss_weights, _ = tiny_batch()
    expected = reference(tokens).logits  # [b, s, v]
    losses = F.cross_entropy(expected.transpose(1, 2), labels, reduction="none")
    (losses * loss_weights).sum().backward()

    logits = model(tokens)  # [s, b, v]
    torch.testing.assert_close(logits.transpose(0, 1), expected, **TOLERANCE)
    ours = model(tokens, labels=labels)
    torch.testing.assert_close(ours, losses, **TOLERANCE)
    (ours * loss_weights).sum().backward()
    assert_all_close(
        to_bigcode(whole_gradients(model), multi_query, config.num_layers),
        {
            name: parameter.grad
            for name, parameter in reference.named_parameters()
            if name != "lm_head.weight"
        },
    )


@pytest.mark.parametrize("multi_query", [True, False])
def test_logits_and_gradients_equal_gpt_bigcode(world, multi_query):
    world(1).run(check_against_bigcode, multi_query)
