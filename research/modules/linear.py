"""Linear maps."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


def linear(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"], bias: Float[Array, " outputs"] | None
) -> Float[Array, "*batch outputs"]:
    """Returns x kernel + bias, in the dtype of x."""
    y = jnp.matmul(x, kernel.astype(x.dtype))
    return y if bias is None else y + jnp.broadcast_to(bias.astype(x.dtype), y.shape)


class Linear(nn.Module):
    """A linear map between groups of axes: the last axes of x, of shape ``inputs``, become ``outputs``.

    The kernel has shape [*inputs, *outputs], so that heads are an axis that a sharding table can name.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    bias: bool = True
    stddev: float = 0.02

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the image of x, dtype of x."""
        shape = (*self.inputs, *self.outputs)
        kernel = self.param("kernel", nn.initializers.normal(self.stddev), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, self.outputs, jnp.float32) if self.bias else None
        batch = x.shape[: x.ndim - len(self.inputs)]
        flat = x.reshape(*batch, math.prod(self.inputs))
        y = linear(
            flat, kernel.reshape(flat.shape[-1], math.prod(self.outputs)), None if bias is None else bias.reshape(-1)
        )
        return y.reshape(*batch, *self.outputs)
