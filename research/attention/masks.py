"""Masks as data: small descriptions of which token may attend to which, composed with ``&``, ``|``, ``~``.

A mask is static and hashable; the tokens it is asked about are arrays. ``mask(q, kv)`` gives the dense
boolean that the reference engine uses; other engines read the description itself.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

ABSENT = jnp.iinfo(jnp.int32).max
"""Position of a cache slot that holds no token: after every query, so that no causal mask admits it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """What a mask may know of a sequence: where each token stands and which document it belongs to."""

    positions: Int[Array, "#batch length"]
    """Position of each token in its document."""
    segments: Int[Array, "#batch length"] | None = None
    """Document of each token, from 1; 0 is padding; None: one document and no padding."""

    @classmethod
    def arange(cls, length: int) -> Tokens:
        """Returns the tokens of one document of ``length`` tokens, for every row of a batch."""
        return cls(jnp.arange(length, dtype=jnp.int32)[None])

    @classmethod
    def of_lengths(cls, lengths: Int[Array, " batch"], length: int) -> Tokens:
        """Returns right-padded rows, the first ``lengths[b]`` tokens of row b being real."""
        positions = jnp.arange(length, dtype=jnp.int32)[None]
        return cls(positions, (positions < lengths[:, None]).astype(jnp.int32))

    @property
    def length(self) -> int:
        """Number of tokens in a row."""
        return self.positions.shape[1]


@dataclasses.dataclass(frozen=True)
class Mask:
    """Which query token may attend to which key token; subclasses say which."""

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[Array, "#batch q_len kv_len"]:
        """Returns True where the query may attend to the key."""
        raise NotImplementedError(f"{type(self).__name__} does not say which tokens it admits")

    def __and__(self, other: Mask) -> Mask:
        return And(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Or(self, other)

    def __invert__(self) -> Mask:
        return Not(self)


@dataclasses.dataclass(frozen=True)
class Everything(Mask):
    """Every token attends to every token."""

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[Array, "#batch q_len kv_len"]:
        """Returns True everywhere."""
        return jnp.ones((1, q.length, kv.length), bool)


@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """A token attends to those at its own position and before (compared by position, never by index)."""

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[Array, "#batch q_len kv_len"]:
        """Returns True where the key is not after the query."""
        return kv.positions[:, None, :] <= q.positions[:, :, None]


@dataclasses.dataclass(frozen=True)
class Window(Mask):
    """A token attends to ``before`` positions before its own, itself, and ``after`` positions after.

    A causal sliding window of w tokens, the token itself included, is ``Window(w - 1, 0)``.
    """

    before: int
    after: int = 0

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[Array, "#batch q_len kv_len"]:
        """Returns True where -before <= kv position - q position <= after."""
        query, key = q.positions[:, :, None], kv.positions[:, None, :]
        # Compared as sums with the query's position: the position of an absent slot would overflow.
        return (key >= query - self.before) & (key <= query + self.after)


@dataclasses.dataclass(frozen=True)
class SameSegment(Mask):
    """A token attends within its document; padding (segment 0) attends to nothing and is attended by none."""

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[Array, "#batch q_len kv_len"]:
        """Returns True where both tokens are real and of one document.

        Raises:
          ValueError: exactly one side has segments.
        """
        if (q.segments is None) != (kv.segments is None):
            raise ValueError("SameSegment needs segments on both sides or on neither")
        if q.segments is None or kv.segments is None:
            return Everything()(q, kv)
        query, key = q.segments[:, :, None], kv.segments[:, None, :]
        return (query == key) & (key != 0)


@dataclasses.dataclass(frozen=True)
class Present(Mask):
    """Real tokens attend to real tokens, whatever their document; padding (segment 0) is left out."""

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[Array, "#batch q_len kv_len"]:
        """Returns True where neither token is padding."""
        allowed = Everything()(q, kv)
        if q.segments is not None:
            allowed = allowed & (q.segments != 0)[:, :, None]
        if kv.segments is not None:
            allowed = allowed & (kv.segments != 0)[:, None, :]
        return allowed


@dataclasses.dataclass(frozen=True)
class And(Mask):
    """Both masks admit."""

    left: Mask
    right: Mask

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[Array, "#batch q_len kv_len"]:
        """Returns the conjunction."""
        return self.left(q, kv) & self.right(q, kv)


@dataclasses.dataclass(frozen=True)
class Or(Mask):
    """Either mask admits."""

    left: Mask
    right: Mask

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[Array, "#batch q_len kv_len"]:
        """Returns the disjunction."""
        return self.left(q, kv) | self.right(q, kv)


@dataclasses.dataclass(frozen=True)
class Not(Mask):
    """The mask does not admit."""

    mask: Mask

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[Array, "#batch q_len kv_len"]:
        """Returns the complement."""
        return ~self.mask(q, kv)
