"""Normalisation over the last axis, with statistics in float32."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

NormName = Literal["layer", "rms"]


def layer_norm(
    x: Float[Array, "*batch width"],
    scale: Float[Array, " width"],
    bias: Float[Array, " width"] | None,
    epsilon: float = 1e-5,
) -> Float[Array, "*batch width"]:
    """Returns (x - mean) / sqrt(variance + epsilon) * scale + bias, dtype of x (Ba et al., 2016)."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    y = y * jnp.broadcast_to(scale, y.shape)
    return (y if bias is None else y + jnp.broadcast_to(bias, y.shape)).astype(x.dtype)


def rms_norm(
    x: Float[Array, "*batch width"], scale: Float[Array, " width"], epsilon: float = 1e-5
) -> Float[Array, "*batch width"]:
    """Returns x / sqrt(mean(x^2) + epsilon) * scale, dtype of x (Zhang & Sennrich, 2019)."""
    wide = x.astype(jnp.float32)
    y = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
    return (y * jnp.broadcast_to(scale, y.shape)).astype(x.dtype)


class Norm(nn.Module):
    """LayerNorm or RMSNorm with a learned scale (and, for LayerNorm, a bias if asked for)."""

    kind: NormName = "layer"
    bias: bool = True
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Returns x, normalised."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        if self.kind == "rms":
            return rms_norm(x, scale, self.epsilon)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32) if self.bias else None
        return layer_norm(x, scale, bias, self.epsilon)
