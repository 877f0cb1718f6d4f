"""Counts that follow from the shape of the model alone: parameters, and floating-point operations a token.

Two conventions are published for attention, and their numbers must not be compared: `full` counts every pair of
positions (12 L n d s a trained token), `causal` the half that a causal mask leaves, and of it what lies within a
window, if there is one, and where documents are masked within one document. Recomputation is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron.options import ModelConfig


def num_matrix_parameters(config: ModelConfig) -> int:
    """Count the weights of the layers that multiply every token, without biases, norms and embeddings."""
    query_size = config.num_attention_heads * config.head_dim
    key_value_size = 2 * config.query_groups * config.head_dim
    attention = config.hidden_size * (2 * query_size + key_value_size)
    return config.num_layers * (attention + 2 * config.hidden_size * config.ffn_size)


def num_parameters(config: ModelConfig) -> int:
    """Count every trained number once, rows that pad the vocabulary included."""
    h = config.hidden_size
    norms = 2 * h * (2 * config.num_layers + 1)
    biases = 0
    if not config.disable_bias_linear:
        projections = (config.num_attention_heads + 2 * config.query_groups) * config.head_dim
        biases = config.num_layers * (projections + h + config.ffn_size + h)
    tables = 2 if config.untie_embeddings_and_output_weights else 1
    learned_positions = 0 if config.has_rotary_positions else config.max_position_embeddings
    embeddings = h * (tables * config.padded_vocab_size + learned_positions)
    return num_matrix_parameters(config) + norms + biases + embeddings


@dataclass(frozen=True)
class FlopsPerToken:
    """Floating-point operations to train on one token, forward and backward, in both conventions."""

    linear: float
    head: float
    attention_full: float
    attention_causal: float

    @property
    def full(self) -> float:
        return self.linear + self.head + self.attention_full

    @property
    def causal(self) -> float:
        return self.within_documents(1.0)

    def within_documents(self, share: float) -> float:
        """Count as `causal` does; share: the documents' `attended_pairs` over the samples', each in sum."""
        return self.linear + self.head + self.attention_causal * share


def attended_pairs(length: int, window: int | None) -> int:
    """Count the pairs of positions in a document as a square counts them, both halves: 1 + 3 + 5 + …

    A window ends the row: its square, and 2 x window - 1 for each later token.
    """
    within = length if window is None else min(length, window)
    return within * within + (length - within) * (2 * within - 1)


def flops_per_token(config: ModelConfig, seq_length: int) -> FlopsPerToken:
    """Count for sequences of seq_length: 6 a weight (2 forward, 4 backward), 12 a head channel and position."""
    query_size = config.num_attention_heads * config.head_dim
    attention_full = 12.0 * config.num_layers * query_size * seq_length
    attended = attended_pairs(seq_length, config.window_size) / seq_length**2
    return FlopsPerToken(
        linear=6.0 * num_matrix_parameters(config),
        head=6.0 * config.padded_vocab_size * config.hidden_size,
        attention_full=attention_full,
        attention_causal=attention_full / 2 * attended,
    )
