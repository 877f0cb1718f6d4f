"""How products with the weights of layers and of the LM head are computed: by --kernels product=… and --fp8-format."""

from __future__ import annotations

from megatron.errors import ConfigError
from megatron.kernels import onednn_product
from megatron.kernels.choice import Choice, Situation
from megatron.kernels.fp8_product import fp8_product
from megatron.kernels.linear_product import Product, linear_product


def choose_product(wanted: str, situation: Situation) -> tuple[Product, Product, Choice]:
    """Choose how products with the layers' weights and with the LM head's are computed. ConfigError if they cannot be."""
    if situation.has_fp8:
        if older := situation.gpu_before(8, 9):
            raise ConfigError(
                f"--fp8-format needs compute capability 8.9 (L40S) or 9.0 (H100), and this GPU has {older}; "
                f"leave it out"
            )
        if wanted != "auto":
            raise ConfigError(f"--kernels product={wanted} and --fp8-format: give one of them")
        reason = "asked for: 8 bits forward and for gradients of inputs, weights' in full"
        return fp8_product, linear_product, Choice("product", "fp8", reason)
    obstacle = onednn_product.obstacle(situation.device_type, situation.dtype)
    reason = "asked for" if wanted != "auto" else f"{situation.dtype}, the matrix units'"
    if wanted == "onednn" and obstacle is not None:
        raise ConfigError(f"--kernels product=onednn {obstacle}; use --kernels auto")
    if wanted == "auto" and obstacle is None and onednn_product.is_faster(situation.cpu_kind):
        wanted, reason = "onednn", f"twice MKL's speed in fp32 on {situation.cpu_kind}"
    if wanted == "onednn":
        product = onednn_product.onednn_product
        return product, product, Choice("product", "onednn", reason)
    return linear_product, linear_product, Choice("product", "library", reason)
