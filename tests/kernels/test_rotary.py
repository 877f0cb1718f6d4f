"""Rotary embedding is that of `transformers`, whatever the positions, and no less exact in half precision."""

import pytest
import torch
from transformers import Starcoder2Config
from transformers.models.starcoder2.modeling_starcoder2 import (
    Starcoder2RotaryEmbedding,
    apply_rotary_pos_emb,
)

from megatron.kernels.rotary import Rotation

BASE = 999999.4420358813
POSITIONS = {
    "counted from 0": torch.arange(9)[None],
    "another part of each sample": torch.tensor([[5, 6, 7, 0, 1, 2, 3, 4, 5], [*range(9)]]),
    "far along": torch.arange(16375, 16384)[None],
}


def theirs(query, key, positions):
    """[s, b, heads, d] both, in fp32."""
    config = Starcoder2Config(hidden_size=32, num_attention_heads=4)
    config.rope_parameters = {"rope_type": "default", "rope_theta": BASE}
    positions = positions.expand(2, 9)
    cos, sin = Starcoder2RotaryEmbedding(config)(query.float(), positions)
    inputs = (x.float().permute(1, 2, 0, 3) for x in (query, key))  # [b, heads, s, d]
    return [x.permute(2, 0, 1, 3) for x in apply_rotary_pos_emb(*inputs, cos, sin)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
def test_queries_and_keys_turn_as_in_transformers(positions, dtype):
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(9, 2, 4, 8, generator=generator).to(dtype)
    key = torch.randn(9, 2, 2, 2, 8, generator=generator).to(dtype)[:, :, :, 0]  # a view
    rotation = Rotation.create(positions, 8, BASE)
    for x, expected in zip((query, key), theirs(query, key, positions), strict=True):
        turned = rotation.turn(x)
        assert turned.dtype == dtype
        torch.testing.assert_close(turned, expected.to(dtype), rtol=1e-6, atol=1e-6)
