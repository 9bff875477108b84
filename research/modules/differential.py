"""Differential attention: the difference of two softmax maps."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.attention.engines import attend
from research.attention.mechanisms import Differential
from research.modules.attention import MultiHeadAttention
from research.modules.norm import rms_norm


class DifferentialAttention(MultiHeadAttention):
    """Multi-head attention whose heads come in pairs (Ye et al., 2024, eq. 1-3)."""

    def _attend(
        self,
        q: Float[Array, "batch q_len heads head_dim"],
        k: Float[Array, "batch kv_len kv_heads head_dim"],
        v: Float[Array, "batch kv_len kv_heads head_dim"],
        **options: Any,
    ) -> Float[Array, "batch q_len heads head_dim"]:
        """Returns what each pair of heads reads, as two heads.

        The two of a pair read neighbouring keys, and both the two neighbouring values, side by side.
        """
        geometry, mechanism = self.spec.geometry, self.spec.mechanism
        assert isinstance(mechanism, Differential)
        pairs, wide = geometry.kv_heads // 2, 2 * geometry.head_dim
        shape = (*v.shape[:2], pairs, 2, wide)
        v = jnp.broadcast_to(v.reshape(*v.shape[:2], pairs, 1, wide), shape)
        out = attend(q, k, v.reshape(*shape[:2], geometry.kv_heads, wide), **options)
        out = out.reshape(*q.shape[:2], pairs, 2, geometry.heads // geometry.kv_heads, wide)
        out = out[:, :, :, 0] - self._weight().astype(out.dtype) * out[:, :, :, 1]
        out = rms_norm(out, self.param("pair_scale", nn.initializers.ones, (wide,), jnp.float32))
        return (out * (1.0 - mechanism.initial)).reshape(q.shape)

    def _weight(self) -> Float[Array, ""]:
        """Returns lambda, the share of the second map that is taken off, float32."""
        mechanism = self.spec.mechanism
        assert isinstance(mechanism, Differential)

        def product(number: int) -> Float[Array, ""]:
            vectors = (
                self.param(
                    f"lambda_{side}_{number}",
                    nn.initializers.normal(0.1),
                    (self.spec.geometry.head_dim,),
                    jnp.float32,
                )
                for side in ("query", "key")
            )
            return jnp.dot(*vectors)

        return jnp.exp(product(1)) - jnp.exp(product(2)) + mechanism.initial
