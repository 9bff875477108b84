"""Linear maps."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.modules.eight_bit import EightBit
from research.modules.placement import as_rows


def linear(
    x: Float[Array, "*batch inputs"],
    kernel: Float[Array, "inputs outputs"],
    bias: Float[Array, " outputs"] | None,
) -> Float[Array, "*batch outputs"]:
    """Returns x kernel + bias, in the dtype of x."""
    # Rows as one matrix: the gradient of the kernel is then a plain product, where XLA on a CPU would first
    # transpose a copy of the activations.
    rows = jnp.matmul(as_rows(x), kernel.astype(x.dtype))
    y = rows.reshape(*x.shape[:-1], kernel.shape[-1])
    return y if bias is None else y + jnp.broadcast_to(bias.astype(x.dtype), y.shape)


class Linear(nn.Module):
    """A linear map between groups of axes: the last axes of x, of shape ``inputs``, become ``outputs``.

    The kernel has shape [*inputs, *outputs], so that heads are an axis that a sharding table can name.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    use_bias: bool = True
    stddev: float = 0.02

    def setup(self) -> None:
        """Names the parameters."""
        shape = (*self.inputs, *self.outputs)
        stored: Any = self.get_variable("params", "kernel")
        self.kernel = (
            stored
            if isinstance(stored, EightBit)
            else self.param("kernel", nn.initializers.normal(self.stddev), shape, jnp.float32)
        )
        self.bias = (
            self.param("bias", nn.initializers.zeros, self.outputs, jnp.float32) if self.use_bias else None
        )

    def __call__(self, x: Float[Array, "*in_shape"]) -> Float[Array, "*out_shape"]:
        """Returns the image of x, dtype of x."""
        batch = x.shape[: x.ndim - len(self.inputs)]
        inputs, outputs = math.prod(self.inputs), math.prod(self.outputs)
        bias = None if self.bias is None else self.bias.reshape(-1)
        if isinstance(self.kernel, EightBit):
            y = self.kernel.apply(x.reshape(-1, inputs)).reshape(*batch, outputs)
            y = y if bias is None else y + jnp.broadcast_to(bias.astype(x.dtype), y.shape)
        else:
            y = linear(x.reshape(*batch, inputs), self.kernel.reshape(inputs, outputs), bias)
        return y.reshape(*batch, *self.outputs)

    def weights(self) -> tuple[Float[Array, "*kernel_shape"], Float[Array, "*bias_shape"] | None]:
        """Returns kernel and bias."""
        if isinstance(self.kernel, EightBit):
            return self.kernel.kernel().reshape(*self.inputs, *self.outputs), self.bias
        return self.kernel, self.bias
