"""Small runs on disk, as training leaves them: checkpoint, configuration, tokenizer, metrics."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from megatron.checkpoint.save import save_checkpoint
from megatron.config import Config, to_json
from megatron.options import DataConfig, ModelConfig, TokenizerConfig
from megatron.tokenizer.json_tokenizer import write_definition
from megatron.tokenizer.train import train_tokenizer
from tests.checkpoint.seal import seal

TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "int main() { return 1234; }\n  // it 's a test .\n",
    "        \n        \n        ",  # runs of spaces become tokens
]
VOCAB_SIZE = 280
ITERATION = 20
MULTI_QUERY = {"attention_head_type": "multiquery"}
MULTI_HEAD = {"attention_head_type": "multihead"}
STARCODER2 = {
    "attention_head_type": "multihead",
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 6,
    "hidden_size": 24,
    "position_embedding_type": "rope",
    "rotary_base": 700.5,
    "window_size": 5,
}


def model_config(**changes) -> ModelConfig:
    """Odd sizes; 280 tokens in 288 rows."""
    defaults = {
        "num_layers": 2,
        "hidden_size": 15,
        "ffn_hidden_size": 26,
        "num_attention_heads": 3,
        "max_position_embeddings": 12,
        "vocab_size": VOCAB_SIZE,
        "padded_vocab_size": 288,
    }
    return ModelConfig(**(defaults | MULTI_QUERY | changes))


def whole_weights(config: ModelConfig) -> dict[str, Tensor]:
    """Random values for every weight of the model, by logical name."""
    h, f, p, v = (
        config.hidden_size,
        config.ffn_size,
        config.max_position_embeddings,
        config.padded_vocab_size,
    )
    shapes = {
        "embedding.word_embeddings.weight": (v, h),
        "final_layernorm.weight": (h,),
        "final_layernorm.bias": (h,),
    }
    if not config.has_rotary_positions:
        shapes["embedding.position_embeddings.weight"] = (p, h)
    if config.untie_embeddings_and_output_weights:
        shapes["output_layer.weight"] = (v, h)
    linears = {
        "self_attention.query": (config.num_attention_heads * config.head_dim, h),
        "self_attention.key_value": (2 * config.query_groups * config.head_dim, h),
        "self_attention.dense": (h, config.num_attention_heads * config.head_dim),
        "mlp.dense_h_to_4h": (f, h),
        "mlp.dense_4h_to_h": (h, f),
    }
    for number in range(config.num_layers):
        for name, (rows, columns) in linears.items():
            shapes[f"layers.{number}.{name}.weight"] = (rows, columns)
            if not config.disable_bias_linear:
                shapes[f"layers.{number}.{name}.bias"] = (rows,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            for kind in ("weight", "bias"):
                shapes[f"layers.{number}.{name}.{kind}"] = (h,)
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(shape, generator=generator) * 0.3 + 0.01 for name, shape in shapes.items()
    }


def make_run(root: Path, *, fim_rate: float = 0.5, **changes) -> dict[str, Tensor]:
    """Write a run with one checkpoint; give its weights."""
    config = Config(
        model=model_config(**changes),
        data=DataConfig(
            seq_length=12,
            data_path=("0.5", "/secret/place/py_text", "0.5", "c_text"),
            fim_rate=fim_rate,
        ),
        tokenizer=TokenizerConfig(tokenizer_file="/gone/tokenizer.json"),
    )
    weights = whole_weights(config.model)
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    tensors["optimizer.exp_avg.final_layernorm.bias"] = torch.zeros(config.model.hidden_size)
    state = {"iteration": ITERATION, "consumed_samples": 160}
    save_checkpoint(root, ITERATION, tensors, state=state, config=to_json(config))
    write_tokenizer_files(root / "tokenizer")
    lines = [
        {"iteration": 10, "lm_loss": 5.0},
        {"iteration": 20, "lm_loss": 4.25},
        {"iteration": 20, "validation": "python", "lm_loss": 4.5, "ppl": 90.0},
        {"iteration": 30, "lm_loss": 1.0},
    ]
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"it')
    return weights


def write_tokenizer_files(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_definition(folder / "tokenizer.json", train_tokenizer(TEXTS, VOCAB_SIZE))


def change_config(root: Path, **changes) -> None:
    """Rewrite fields of the model in a saved checkpoint's configuration, and what is listed of it."""
    folder = root / f"iter_{ITERATION:07d}"
    values = json.loads((folder / "config.json").read_text())
    values["model"] |= changes
    (folder / "config.json").write_text(json.dumps(values))
    seal(folder)
