"""GPT as one pipeline stage holds it: token ids or hidden states in, hidden states, logits or losses out.

Pre-LayerNorm, biases, tanh GELU, tied embeddings, and positions that are learned (StarCoder §5.4) or rotary
(StarCoder2, arXiv 2402.19173, with grouped heads and a window). Written for any dtype: it computes in that of its
parameters. Knows tensor and context parallelism through its layers; nothing of data parallelism (who
wraps it with `fully_shard`) or of pipeline schedules (who carries its output to the next stage).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from megatron.kernels import cpu_library, cuda_library
from megatron.kernels.choice import Situation
from megatron.kernels.documents import Documents
from megatron.kernels.dropout import Dropout, site_keys, token_keys
from megatron.kernels.flash_attention import find_flash_library
from megatron.kernels.processor import cpu_kind
from megatron.kernels.registry import Kernels, choose_kernels
from megatron.kernels.rotary import Rotation
from megatron.model.attention import Cache, DropoutKeys, MicroBatch, QueryChunk
from megatron.model.embedding import Embedding
from megatron.model.transformer import LayerNorm, TransformerLayer, recompute_chunks, run_layers
from megatron.options import ModelConfig
from megatron.parallel.collectives import TensorParallelRegion
from megatron.parallel.context import ParallelContext
from megatron.parallel.cross_entropy import vocab_parallel_cross_entropy
from megatron.parallel.layers import ColumnParallelLinear
from megatron.parallel.linear_cross_entropy import chunked_linear_cross_entropy
from megatron.parallel.parameter import Normal, ParameterFactory
from megatron.parallel.random import derive_key
from megatron.transfer import to_device


def choose_model_kernels(
    config: ModelConfig,
    device: torch.device,
    compute_dtype: torch.dtype,
    *,
    masks_documents: bool = False,
    seq_length: int | None = None,
    splits_sequences: bool = False,
    has_fp8: bool = False,
) -> Kernels:
    """Choose the operations of a model. ConfigError if --attention-backend or --kernels asks for what cannot run.

    masks_documents: `forward` will be given document_starts. seq_length: of the longest sequences; by default
    max_position_embeddings. splits_sequences: several processes share each. has_fp8: products are in 8 bits.
    """
    longest = seq_length or config.max_position_embeddings
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    situation = Situation(
        device.type,
        compute_dtype,
        config.head_dim,
        attention_dropout=config.attention_dropout,
        masks_documents=masks_documents,
        has_window=config.window_within(longest) is not None,
        capability=capability,
        splits_sequences=splits_sequences,
        keeps_order=config.deterministic_mode,
        has_fp8=has_fp8,
        cpu_kind=cpu_kind() if device.type == "cpu" else "",
        without_library=cuda_library.obstacle(),
        without_cpu_operations=cpu_library.obstacle("_cpu_operations"),
        without_cpu_attention=cpu_library.obstacle("_cpu_attention"),
        flash_library=None if capability is None else find_flash_library(capability),
    )
    return choose_kernels(config.attention_backend, situation, config.kernels)


class GPTModel(nn.Module):
    """The layers of one stage, with the embedding on the first and the LM head on the last.

    Parameters are named as in the whole model, under every layout. kernels: what `choose_model_kernels` gave;
    None chooses for fp32.
    """

    def __init__(
        self,
        config: ModelConfig,
        context: ParallelContext,
        *,
        layers: range,
        is_first: bool,
        is_last: bool,
        seed: int,
        sequence_parallel: bool,
        kernels: Kernels | None = None,
    ) -> None:
        super().__init__()
        if kernels is None:
            kernels = choose_model_kernels(config, context.device, torch.float32)
        self.config = config
        self.is_first = is_first
        self.is_last = is_last
        self.region = TensorParallelRegion(context.tp_group, sequence_parallel)
        self.cp = context.cp
        self.embedding_site = derive_key(seed, "embedding output")
        parameters = ParameterFactory(context.tp_mesh, context.device, seed)

        is_tied = not config.untie_embeddings_and_output_weights
        if is_first or (is_last and is_tied):
            self.embedding = Embedding(
                config,
                parameters.scope("embedding"),
                self.region,
                has_positions=is_first and not config.has_rotary_positions,
            )
        self.layers = nn.ModuleDict(
            {
                str(number): TransformerLayer(
                    config,
                    parameters.scope(f"layers.{number}"),
                    self.region,
                    kernels,
                    self.cp,
                    number=number,
                )
                for number in layers
            }
        )
        if is_last:
            self.final_layernorm = LayerNorm(
                config, parameters.scope("final_layernorm"), self.region, kernels
            )
        if is_last and not is_tied:
            self.output_layer = ColumnParallelLinear(
                config.hidden_size,
                config.padded_vocab_size,
                parameters.scope("output_layer"),
                initial=Normal(config.init_method_std),
                has_bias=False,
            )
        self.cross_entropy = kernels.cross_entropy
        self.output_product = kernels.output_product
        self.chunks = recompute_chunks(config, len(layers))

    def forward(
        self,
        x: Tensor,
        *,
        sample_ids: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        document_starts: Tensor | None = None,
    ) -> Tensor:
        """Run the stage. Collective over tp and cp.

        s are the positions of a sample that this process holds: all, or its share of them (cp).
        x: ids int64 [b, s] on the first stage, else hidden states [s, b, h] ([s/t, b, h] with sequence parallel).
        sample_ids: int64 [b], the samples' numbers in the run: they key dropout, and only training with dropout
        needs them. Best on the CPU: with attention dropout the first one is read, which synchronises a GPU.
        position_ids: int64 [b, s], for every stage; None: the positions in the sample.
        document_starts: int64 [b, s] on the CPU, for every stage: the position in the sample at which each token's
        document starts, and before which it attends to nothing. None: each sample is one document.
        Returns hidden states; on the last stage losses fp32 [b, s] if labels [b, s] are given, else logits
        [s, b, v/t].
        """
        shape = self._batch_shape(x)
        positions = self.cp.positions(shape[1], x.device)
        if position_ids is None:
            position_ids = positions.unsqueeze(0)
        keys = self._dropout_keys(positions, sample_ids)
        chunks = self._query_chunks(x.device, shape, document_starts)
        batch = MicroBatch(chunks, keys, self._rotation(position_ids))
        if self.is_first:
            x = self.embedding(x, position_ids)
            if keys is not None and self.config.hidden_dropout > 0.0:
                rows = site_keys(keys.outside, self.embedding_site)
                x = Dropout(self.config.hidden_dropout, rows)(x)
        x = run_layers(list(self.layers.values()), x, batch, self.chunks)
        if not self.is_last:
            return x
        x = self.region.enter(self.final_layernorm(x))
        if labels is None:
            return self.output_product(x, self._output_weight(), None, None)
        losses = self._losses(x, labels.t())
        # [s, b] -> [b, s]; never a view, as contiguous() gives for b = 1: fully_shard loses its hook on one
        return losses.t().clone(memory_format=torch.contiguous_format)

    def predict(
        self,
        x: Tensor,
        cache: Cache,
        position_ids: Tensor,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Run the stage on tokens that follow those of a cache, which keeps theirs. Without gradients. Collective over tp.

        x: ids int64 [b, s] on the first stage, else hidden states [s, b, h]. position_ids: int64 [b, s].
        rows: int64 [r], the tokens, counted through [s, b], after which the next one is wanted; None: all.
        Returns hidden states [s, b, h]; on the last stage logits [r, v/t].
        """
        batch = MicroBatch((), rotation=self._rotation(position_ids), cache=cache)
        if self.is_first:
            x = self.embedding(x, position_ids)
        x = run_layers(list(self.layers.values()), x, batch, self.chunks)
        if not self.is_last:
            return x
        x = x.flatten(0, 1)  # [s, b, h] -> [s*b, h]
        if rows is not None:
            x = x[rows]
        return self.output_product(self.final_layernorm(x), self._output_weight(), None, None)

    def _losses(self, x: Tensor, labels: Tensor) -> Tensor:
        """x [s, b, h] inside the region, labels [s, b] -> losses fp32 [s, b]. Collective over tp."""
        weight, chunk_size = self._output_weight(), self.config.logits_chunk_size
        options: dict[str, Any] = {
            "vocab_size": self.config.vocab_size,
            "group": self.region.group,
            "kernels": self.cross_entropy,
        }
        if chunk_size is None or chunk_size >= labels.numel():
            logits = self.output_product(x, weight, None, None)
            return vocab_parallel_cross_entropy(logits, labels, **options)
        return chunked_linear_cross_entropy(x, weight, labels, chunk_size=chunk_size, **options)

    def _output_weight(self) -> Tensor:
        """Give this process's rows of the LM head, [v/t, h]."""
        if self.config.untie_embeddings_and_output_weights:
            return self.output_layer.local_weight()
        return self.embedding.word_embeddings.local_weight()

    def _batch_shape(self, x: Tensor) -> tuple[int, int]:
        """Give (samples, positions of each that this process holds) of what the stage takes."""
        if self.is_first:
            return x.size(0), x.size(1)
        return x.size(1), x.size(0) * (self.region.size if self.region.sequence_parallel else 1)

    def _query_chunks(
        self, device: torch.device, shape: tuple[int, int], starts: Tensor | None
    ) -> tuple[QueryChunk, ...]:
        """Say which tokens attend together, and to which of the documents before them."""
        num_samples, num_positions = shape
        chunks: list[QueryChunk] = []
        first = 0
        for positions in self.cp.chunks(num_positions):
            rows = slice(first, first + len(positions))
            documents = Documents.create(
                None if starts is None else starts[:, rows],
                device,
                shape=(num_samples, len(positions)),
                window=self.config.window_size,
                first_position=positions.start,
            )
            chunks.append(QueryChunk(rows, positions, documents))
            first = rows.stop
        return tuple(chunks)

    def _rotation(self, position_ids: Tensor) -> Rotation | None:
        """Make what turns queries and keys, on every process of tp the same; None for learned positions."""
        if not self.config.has_rotary_positions:
            return None
        return Rotation.create(position_ids, self.config.head_dim, self.config.rotary_base)

    def _dropout_keys(self, positions: Tensor, sample_ids: Tensor | None) -> DropoutKeys | None:
        """Give the tokens' coordinates, of positions int64 [s], or None where nothing is dropped."""
        is_active = self.config.hidden_dropout > 0.0 or self.config.attention_dropout > 0.0
        if not self.training or not is_active:
            return None
        assert sample_ids is not None, "dropout is keyed by sample: give sample_ids"
        inside = token_keys(to_device(sample_ids, positions.device), positions)
        outside = inside
        if self.region.sequence_parallel:
            outside = inside.chunk(self.region.size)[self.region.rank]
        has_attention_dropout = self.config.attention_dropout > 0.0
        first_sample = int(sample_ids[0]) if has_attention_dropout else None
        return DropoutKeys(outside, inside, first_sample)
