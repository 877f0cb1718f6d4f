"""Transformer layers, and running a stack of them with or without recomputation in backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.distributed.tensor import Replicate
from torch.utils.checkpoint import checkpoint

from megatron.kernels.dropout import Dropout, site_keys
from megatron.kernels.registry import Kernels
from megatron.model.attention import DropoutKeys, MicroBatch, SelfAttention
from megatron.model.mlp import MLP
from megatron.options import ModelConfig
from megatron.parallel.collectives import TensorParallelRegion
from megatron.parallel.context_parallel import ContextParallelRegion
from megatron.parallel.parameter import Constant, ParameterFactory, local_tensor
from megatron.parallel.random import derive_key


class LayerNorm(nn.Module):
    """LayerNorm with weight and bias, outside the tensor parallel region."""

    def __init__(
        self,
        config: ModelConfig,
        parameters: ParameterFactory,
        region: TensorParallelRegion,
        kernels: Kernels,
    ) -> None:
        super().__init__()
        self.region = region
        self.normalize = kernels.layer_norm
        self.add_and_normalize = kernels.bias_dropout_residual_layer_norm
        self.epsilon = config.layernorm_epsilon
        shape = (config.hidden_size,)
        self.weight = parameters.create("weight", shape, Replicate(), Constant(1.0))
        self.bias = parameters.create("bias", shape, Replicate(), Constant(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """[s, b, h] or [s/t, b, h], the same shape back."""
        return self.normalize(x, *self._local_weights(), self.epsilon)

    def of_sum(
        self, x: Tensor, bias: Tensor | None, residual: Tensor, dropout: Dropout | None
    ) -> tuple[Tensor, Tensor]:
        """Give residual + dropout(x + bias) and its norm: [s, b, h] or [s/t, b, h] each. May overwrite x."""
        return self.add_and_normalize(
            x, bias, residual, dropout, *self._local_weights(), self.epsilon
        )

    def _local_weights(self) -> tuple[Tensor, Tensor]:
        grad = self.region.outside_grad
        return local_tensor(self.weight, grad), local_tensor(self.bias, grad)


class TransformerLayer(nn.Module):
    """Pre-LayerNorm: x + attention(norm(x)), then x + MLP(norm(x)), dropout before each addition."""

    def __init__(
        self,
        config: ModelConfig,
        parameters: ParameterFactory,
        region: TensorParallelRegion,
        kernels: Kernels,
        cp: ContextParallelRegion,
        *,
        number: int,
    ) -> None:
        """number: of the layer in the model."""
        super().__init__()
        self.hidden_dropout = config.hidden_dropout
        self.attention_site = derive_key(parameters.seed, parameters.prefix, "attention output")
        self.mlp_site = derive_key(parameters.seed, parameters.prefix, "mlp output")
        self.bias_dropout_residual = kernels.bias_dropout_residual
        self.recomputes_norms = config.recomputes("layernorm")
        self.input_layernorm = LayerNorm(
            config, parameters.scope("input_layernorm"), region, kernels
        )
        self.self_attention = SelfAttention(
            config, parameters.scope("self_attention"), region, kernels, cp, layer=number
        )
        self.post_attention_layernorm = LayerNorm(
            config, parameters.scope("post_attention_layernorm"), region, kernels
        )
        self.mlp = MLP(config, parameters.scope("mlp"), region, kernels)

    def forward(self, x: Tensor, batch: MicroBatch) -> Tensor:
        """[s, b, h] or [s/t, b, h], the same shape back. Collective over tp and cp."""
        keys = batch.keys
        normed = self.input_layernorm(x)
        out, bias = self.self_attention(normed, batch, self._norm_again(self.input_layernorm, x))
        x, normed = self.post_attention_layernorm.of_sum(
            out, bias, x, self._dropout(keys, self.attention_site)
        )
        out, bias = self.mlp(normed, self._norm_again(self.post_attention_layernorm, x))
        return self.bias_dropout_residual(out, bias, x, self._dropout(keys, self.mlp_site))

    def _norm_again(self, norm: LayerNorm, x: Tensor) -> Callable[[], Tensor] | None:
        """Give what computes a norm in backward, or None where its output is kept."""
        return (lambda: norm(x)) if self.recomputes_norms else None

    def _dropout(self, keys: DropoutKeys | None, site: int) -> Dropout | None:
        if keys is None or self.hidden_dropout == 0.0:
            return None
        return Dropout(self.hidden_dropout, site_keys(keys.outside, site))


def recompute_chunks(config: ModelConfig, num_layers: int) -> list[tuple[range, bool]]:
    """Cut a stage's layers into runs, each kept or recomputed as a whole in backward."""
    if config.recompute_granularity != "full":
        return [(range(num_layers), False)]
    size = config.recompute_num_layers or 1
    if config.recompute_method == "block":
        recomputed = min(size, num_layers)
        chunks = [(range(layer, layer + 1), True) for layer in range(recomputed)]
        return [*chunks, (range(recomputed, num_layers), False)]
    return [(range(i, min(i + size, num_layers)), True) for i in range(0, num_layers, size)]


def run_layers(
    layers: Sequence[nn.Module],
    x: Tensor,
    batch: MicroBatch,
    chunks: list[tuple[range, bool]],
) -> Tensor:
    """Run layers in order on x [s, b, h] or [s/t, b, h]. Collective over tp and cp, in recomputation once more."""

    def run(x: Tensor, chunk: range) -> Tensor:
        for index in chunk:
            x = layers[index](x, batch)
        return x

    for chunk, is_recomputed in chunks:
        if is_recomputed and x.requires_grad:
            # dropout is keyed: there is no generator to put back
            x = checkpoint(run, x, chunk, use_reentrant=False, preserve_rng_state=False)
        else:
            x = run(x, chunk)
    return x
