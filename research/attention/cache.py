"""The key/value cache of softmax attention: its decoding state."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.attention.masks import ABSENT, Tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Which position each slot of a cache holds; one for all layers."""

    positions: Int[Array, "batch slots"]
    """Position of the token in each slot; ABSENT where there is none."""
    used: Int[Array, ""]
    """Slots written so far, the same for every row."""

    @classmethod
    def empty(cls, batch: int, slots: int) -> Slots:
        """Returns slots without tokens."""
        return cls(jnp.full((batch, slots), ABSENT, jnp.int32), jnp.zeros((), jnp.int32))

    def write(self, positions: Int[Array, "batch length"]) -> Slots:
        """Returns the slots with the next ``length`` of them holding ``positions``."""
        written = jax.lax.dynamic_update_slice(
            self.positions, positions, (jnp.zeros_like(self.used), self.used)
        )
        return dataclasses.replace(self, positions=written, used=self.used + positions.shape[1])

    @property
    def tokens(self) -> Tokens:
        """The slots as tokens that a causal mask can judge."""
        return Tokens(self.positions)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of one layer; a stack keeps those of its layers along a leading axis."""

    keys: Float[Array, "*layers batch slots kv_heads head_dim"]
    values: Float[Array, "*layers batch slots kv_heads head_dim"]

    @classmethod
    def empty(cls, batch: int, slots: int, kv_heads: int, head_dim: int, dtype: jnp.dtype) -> KeyValues:
        """Returns zeros for one layer: 2 * batch * slots * kv_heads * head_dim elements."""
        zeros = jnp.zeros((batch, slots, kv_heads, head_dim), dtype)
        return cls(zeros, zeros)

    def write(
        self,
        k: Float[Array, "batch length kv_heads head_dim"],
        v: Float[Array, "batch length kv_heads head_dim"],
        slot: Int[Array, ""],
    ) -> KeyValues:
        """Returns the cache of one layer with k and v in the slots from ``slot`` on."""
        zero = jnp.zeros_like(slot)
        start = (zero, slot, zero, zero)
        return dataclasses.replace(
            self,
            keys=jax.lax.dynamic_update_slice(self.keys, k.astype(self.keys.dtype), start),
            values=jax.lax.dynamic_update_slice(self.values, v.astype(self.values.dtype), start),
        )
