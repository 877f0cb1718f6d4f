"""The feed-forward half of a transformer layer: h -> 4h, GELU, 4h -> h."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from megatron.kernels.registry import Kernels
from megatron.model.recompute import recompute_in_backward
from megatron.options import ModelConfig
from megatron.parallel.collectives import TensorParallelRegion
from megatron.parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.parallel.parameter import Normal, ParameterFactory


def output_initial(config: ModelConfig) -> Normal:
    """Initial values of a product that is added to the residual stream, std / sqrt(2 layers)."""
    return Normal(config.init_method_std / math.sqrt(2.0 * config.num_layers))


class MLP(nn.Module):
    """Channels of the hidden layer are shared out over tp."""

    def __init__(
        self,
        config: ModelConfig,
        parameters: ParameterFactory,
        region: TensorParallelRegion,
        kernels: Kernels,
    ) -> None:
        super().__init__()
        has_bias = not config.disable_bias_linear
        self.region = region
        self.bias_gelu = kernels.bias_gelu
        self.recomputes_activation = config.recomputes("mlp_act")
        self.dense_h_to_4h = ColumnParallelLinear(
            config.hidden_size,
            config.ffn_size,
            parameters.scope("dense_h_to_4h"),
            initial=Normal(config.init_method_std),
            has_bias=has_bias,
            product=kernels.product,
        )
        self.dense_4h_to_h = RowParallelLinear(
            config.ffn_size,
            config.hidden_size,
            parameters.scope("dense_4h_to_h"),
            region,
            initial=output_initial(config),
            has_bias=has_bias,
            product=kernels.product,
        )

    def forward(
        self, x: Tensor, compute_x: Callable[[], Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x [s, b, h] or [s/t, b, h] -> the same shape, and the bias [h] not yet added. Collective over tp.

        compute_x: gives x again in backward, so that it need not be kept; collective over tp then.
        """
        x = self.region.enter(x)  # [s, b, h]
        bias = self.dense_h_to_4h.local_bias()
        products = self.dense_h_to_4h.multiply(x)
        if compute_x is not None:
            recompute_in_backward(x, lambda: self.region.enter(compute_x()), (products,))
        version = None if products.is_inference() else products._version
        active = self.bias_gelu(products, bias)  # [s, b, f/t]
        out, out_bias = self.dense_4h_to_h(active)
        if self.recomputes_activation:
            # an activation that has added its bias in place must not do so a second time
            again = bias if version is None or products._version == version else None
            recompute_in_backward(active, lambda: self.bias_gelu(products, again), (out,))
        return out, out_bias
