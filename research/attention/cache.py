"""What decoding keeps: keys and values of all tokens or of the latest, latents, forget gates."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from research.attention.masks import ABSENT, Tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Which position each slot of a cache holds; one for all layers."""

    positions: Int[Array, "batch slots"]
    """Position of the token in each slot; ABSENT where there is none."""
    used: Int[Array, ""]
    """Slots written so far, the same for every row."""
    lineage: Int[Array, "groups members slots"] | None = None
    """Of rows in groups, such as the hypotheses of a source, that take a token at a time: which member's row
    holds what a member has in each slot; None: its own."""

    @classmethod
    def empty(cls, batch: int, slots: int) -> Slots:
        """Returns slots without tokens."""
        return cls(jnp.full((batch, slots), ABSENT, jnp.int32), jnp.zeros((), jnp.int32))

    def write(self, positions: Int[Array, "batch length"]) -> Slots:
        """Returns the slots with the next ``length`` of them holding ``positions``."""
        written = jax.lax.dynamic_update_slice(
            self.positions, positions, (jnp.zeros_like(self.used), self.used)
        )
        lineage = self.lineage
        if lineage is not None:
            own = jnp.broadcast_to(_members(lineage), (*lineage.shape[:2], positions.shape[1]))
            zero = jnp.zeros_like(self.used)
            lineage = jax.lax.dynamic_update_slice(lineage, own, (zero, zero, self.used))
        return Slots(written, self.used + positions.shape[1], lineage)

    def in_groups(self, members: int) -> Slots:
        """Returns the slots of rows of which ``members`` successive ones are a group."""
        rows, slots = self.positions.shape
        shape = (rows // members, members, slots)
        lineage = jnp.broadcast_to(_members(jnp.zeros(shape, jnp.int32)), shape)
        return dataclasses.replace(self, lineage=lineage)

    def of_rows(self, rows: Int[Array, " taken"]) -> Slots:
        """Returns the slots of the given rows, each of which takes the place of one of its group, if any."""
        lineage = self.lineage
        if lineage is not None:
            lineage = lineage.reshape(-1, lineage.shape[2])[rows].reshape(lineage.shape)
        return Slots(self.positions[rows], self.used, lineage)

    @property
    def tokens(self) -> Tokens:
        """The slots as tokens that a causal mask can judge."""
        return Tokens(self.positions)

    def latest(
        self, kept: Shaped[Array, "batch slots *rest"], new: Shaped[Array, "batch length *rest"]
    ) -> Array:
        """Returns ``kept`` with ``new``, in its dtype, in the slots that were written last."""
        zero = jnp.zeros_like(self.used)
        start = (zero, self.used - new.shape[1], *(zero for _ in new.shape[2:]))
        return jax.lax.dynamic_update_slice(kept, new.astype(kept.dtype), start)


def _members(lineage: Int[Array, "groups members slots"]) -> Int[Array, "1 members 1"]:
    return jnp.arange(lineage.shape[1], dtype=lineage.dtype)[None, :, None]


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

    def extend(
        self,
        k: Float[Array, "batch length kv_heads head_dim"],
        v: Float[Array, "batch length kv_heads head_dim"],
        positions: Int[Array, "#batch length"],
        slots: Slots,
    ) -> tuple[KeyValues, KeyValues, Tokens]:
        """Returns the cache of one layer with k and v in it, what queries read of it, and its tokens.

        Args:
          k: keys of the new tokens.
          v: their values.
          positions: their positions.
          slots: the slots, those of the new tokens already written.
        """
        del positions
        kept = KeyValues(slots.latest(self.keys, k), slots.latest(self.values, v))
        return kept, KeyValues(kept.keys.astype(k.dtype), kept.values.astype(v.dtype)), slots.tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryRead:
    """Keys and values of one layer's memory, and how the last tokens have read it."""

    key_values: KeyValues
    weights: Float[Array, "*layers rows length memory_length"]
    """Attention weights, means over the heads."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RecentKeyValues:
    """Keys and values of the first tokens of a row and of its latest, these in a ring, each row its own."""

    keys: Float[Array, "*layers batch slots kv_heads head_dim"]
    values: Float[Array, "*layers batch slots kv_heads head_dim"]
    positions: Int[Array, "*layers batch slots"]
    """Position of the token in each slot; ABSENT where there is none."""
    first: int = dataclasses.field(metadata={"static": True})
    """Slots of the first tokens; the others are the ring."""

    @classmethod
    def empty(
        cls, batch: int, first: int, recent: int, kv_heads: int, head_dim: int, dtype: jnp.dtype
    ) -> RecentKeyValues:
        """Returns room for the ``first`` tokens and the ``recent`` latest of each row, empty."""
        zeros = jnp.zeros((batch, first + recent, kv_heads, head_dim), dtype)
        return cls(zeros, zeros, jnp.full((batch, first + recent), ABSENT, jnp.int32), first)

    def extend(
        self,
        k: Float[Array, "batch length kv_heads head_dim"],
        v: Float[Array, "batch length kv_heads head_dim"],
        positions: Int[Array, "#batch length"],
        slots: Slots,
    ) -> tuple[RecentKeyValues, KeyValues, Tokens]:
        """Returns the cache with k and v in it, what queries read of both, and the tokens of these.

        The new tokens may read any of those kept and of one another, before the older ones give way.
        Arguments as for ``KeyValues.extend``.
        """
        del slots
        positions = jnp.broadcast_to(positions, k.shape[:2])
        seen = KeyValues(
            jnp.concatenate([self.keys.astype(k.dtype), k], axis=1),
            jnp.concatenate([self.values.astype(v.dtype), v], axis=1),
        )
        tokens = Tokens(jnp.concatenate([self.positions, positions], axis=1))
        size = self.keys.shape[1]
        recent = size - self.first
        real = positions != ABSENT
        latest = jnp.where(real, positions, -1).max(axis=1, keepdims=True)
        # Slot ``size`` does not exist: what is sent there is dropped.
        ring = jnp.where(positions > latest - recent, self.first + (positions - self.first) % recent, size)
        slot = jnp.where(real, jnp.where(positions < self.first, positions, ring), size)
        row = jnp.arange(k.shape[0])[:, None]

        def put(kept: Array, new: Array) -> Array:
            return kept.at[row, slot].set(new.astype(kept.dtype), mode="drop")

        kept = RecentKeyValues(
            put(self.keys, k), put(self.values, v), put(self.positions, positions), self.first
        )
        return kept, seen, tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ForgettingState:
    """Keys, values and log forget gates of one layer."""

    key_values: KeyValues
    log_gates: Float[Array, "*layers batch slots heads"]
    """Float32; 0 in empty slots and at padding."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Latents:
    """Of one layer, what all heads' keys and values are maps of, and the part of the keys that is turned."""

    latents: Float[Array, "*layers batch slots 1 rank"]
    keys: Float[Array, "*layers batch slots 1 rotary_dim"]

    def extend(
        self,
        latents: Float[Array, "batch length 1 rank"],
        keys: Float[Array, "batch length 1 rotary_dim"],
        slots: Slots,
    ) -> Latents:
        """Returns the cache with the new tokens' in it; arguments as for ``KeyValues.extend``."""
        return Latents(slots.latest(self.latents, latents), slots.latest(self.keys, keys))
