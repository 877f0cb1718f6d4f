"""Token and position embeddings: what turns ids into the residual stream."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import Replicate

from megatron.options import ModelConfig
from megatron.parallel.collectives import TensorParallelRegion
from megatron.parallel.layers import VocabParallelEmbedding
from megatron.parallel.parameter import Normal, ParameterFactory, local_tensor


class PositionEmbedding(nn.Module):
    """One learned vector a position, whole on every process."""

    def __init__(
        self, config: ModelConfig, parameters: ParameterFactory, region: TensorParallelRegion
    ) -> None:
        super().__init__()
        self.region = region
        shape = (config.max_position_embeddings, config.hidden_size)
        self.weight = parameters.create(
            "weight", shape, Replicate(), Normal(config.init_method_std)
        )

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """Add the vectors of x's positions: [s, b, h] or [s/t, b, h], the same shape back.

        position_ids int64 [b, s], or [1, s] if all samples have the same.
        """
        first = self.region.first_position(x.size(0))
        here = slice(first, first + x.size(0))
        weight = local_tensor(self.weight, self.region.outside_grad)
        return x + F.embedding(position_ids[:, here].t(), weight)


class Embedding(nn.Module):
    """Token embedding, and learned position embedding on the stage that reads tokens.

    A last stage that shares the token embedding with a first stage elsewhere has only the tokens' table, and so has
    a model whose positions are rotary.
    """

    def __init__(
        self,
        config: ModelConfig,
        parameters: ParameterFactory,
        region: TensorParallelRegion,
        *,
        has_positions: bool,
    ) -> None:
        super().__init__()
        self.word_embeddings = VocabParallelEmbedding(
            config.padded_vocab_size,
            config.hidden_size,
            parameters.scope("word_embeddings"),
            region,
            initial=Normal(config.init_method_std),
        )
        self.position_embeddings = (
            PositionEmbedding(config, parameters.scope("position_embeddings"), region)
            if has_positions
            else None
        )

    def forward(self, ids: Tensor, position_ids: Tensor) -> Tensor:
        """ids [b, s] -> [s, b, h] or, with sequence parallel, [s/t, b, h]. Collective over tp.

        position_ids int64 [b or 1, s].
        """
        x = self.word_embeddings(ids.t().contiguous())
        if self.position_embeddings is None:
            return x
        return self.position_embeddings(x, position_ids)
