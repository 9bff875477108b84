"""Kernels as 8-bit integers, one scale for each output: what sampling reads in place of float32."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_FEW = 32
"""Rows up to which a product with codes is bound by reading them."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EightBit:
    """A matrix as ``scale[o] * codes[o, i]``; those of the layers of a stack are stacked."""

    codes: Any
    """Int8[Array, "*layers outputs inputs"], from -127 to 127; an output's codes lie together."""
    scale: Any
    """Float[Array, "*layers outputs"], float32."""

    @classmethod
    def of(cls, kernel: Float[Array, "*layers inputs outputs"]) -> EightBit:
        """Returns the nearest codes (vector-wise absmax quantization; Dettmers et al., 2022, section 2.1).

        An output's scale is max|w| / 127, so no weight is off by more than scale / 2.
        """
        rows = jnp.swapaxes(kernel.astype(jnp.float32), -1, -2)
        scale = jnp.abs(rows).max(-1) / 127.0
        codes = jnp.round(rows / jnp.where(scale == 0.0, 1.0, scale)[..., None])
        return cls(codes.astype(jnp.int8), scale)

    def kernel(self) -> Float[Array, "*layers inputs outputs"]:
        """Returns the matrix that the codes stand for, float32."""
        return jnp.swapaxes(self.codes.astype(jnp.float32) * self.scale[..., None], -1, -2)

    def apply(self, x: Float[Array, "rows inputs"]) -> Float[Array, "rows outputs"]:
        """Returns x times the matrix, in the dtype of x; the codes are widened within the product."""
        codes = self.codes.astype(x.dtype)
        if 1 < len(x) <= _FEW:
            # As a reduction: XLA on a CPU widens the codes of a product of several rows one by one.
            pairs = x[:, None, :] * jnp.broadcast_to(codes[None], (1, *codes.shape))
            sums = pairs.astype(jnp.float32).sum(-1)
        else:
            sums = jnp.matmul(x, codes.T, preferred_element_type=jnp.float32)
        return (sums * self.scale[None]).astype(x.dtype)
