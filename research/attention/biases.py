"""Score biases as data: what a mechanism adds to the scores, a tile at a time, with its parameters inside."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from research.attention.masks import Tokens
from research.attention.softmax import MASKED


class Bias:
    """What is added to the scaled scores, after the soft cap and before the mask; subclasses say what.

    A subclass is a frozen dataclass registered as a pytree: its arrays (slopes, tables, gates) get gradients.
    Engines evaluate it tile by tile, so it must never need more than the tokens of one tile. They may count
    positions from elsewhere than the beginning of a document: only the distance of two tokens counts.
    """

    def __call__(self, q: Tokens, kv: Tokens) -> Float[Array, "#batch #heads q_len kv_len"]:
        """Returns the bias of each pair, float32."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it adds")

    def rows(self, start: jax.typing.ArrayLike, size: int) -> Bias:
        """Returns the bias of the ``size`` queries from ``start`` on: slices what is held per query."""
        del start, size
        return self

    def columns(self, start: jax.typing.ArrayLike, size: int) -> Bias:
        """Returns the bias of the ``size`` keys from ``start`` on: slices what is held per key."""
        del start, size
        return self

    def __add__(self, other: Bias) -> Bias:
        return SumBias(self, other)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SumBias(Bias):
    """Both biases."""

    left: Bias
    right: Bias

    def __call__(self, q: Tokens, kv: Tokens) -> Float[Array, "#batch #heads q_len kv_len"]:
        """Returns the sum."""
        return self.left(q, kv) + self.right(q, kv)

    def rows(self, start: jax.typing.ArrayLike, size: int) -> Bias:
        """Returns the sum of the rows."""
        return SumBias(self.left.rows(start, size), self.right.rows(start, size))

    def columns(self, start: jax.typing.ArrayLike, size: int) -> Bias:
        """Returns the sum of the columns."""
        return SumBias(self.left.columns(start, size), self.right.columns(start, size))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AlibiBias(Bias):
    """-slope * |distance|, a slope per head (ALiBi; Press et al., 2022, section 3).

    The paper's is causal; without a causal mask it is the symmetric form.
    """

    slopes: Float[Array, " heads"]

    def __call__(self, q: Tokens, kv: Tokens) -> Float[Array, "#batch #heads q_len kv_len"]:
        """Returns the penalty of each distance."""
        distance = jnp.abs(_distance(q, kv)).astype(jnp.float32)
        return -self.slopes.astype(jnp.float32)[None, :, None, None] * distance[:, None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BucketBias(Bias):
    """A learned value per head and bucket of distances (T5; Raffel et al., 2020, section 2.1)."""

    table: Float[Array, "buckets heads"]
    max_distance: int = dataclasses.field(metadata={"static": True})
    """Distance from which on all fall into one bucket."""
    bidirectional: bool = dataclasses.field(metadata={"static": True})
    """Half of the buckets are for keys after the query; else these all count as distance 0."""

    def __call__(self, q: Tokens, kv: Tokens) -> Float[Array, "#batch #heads q_len kv_len"]:
        """Returns the table's value at the bucket of each distance."""
        bucket = buckets(_distance(q, kv), self.table.shape[0], self.max_distance, self.bidirectional)
        return jnp.moveaxis(jnp.take(self.table.astype(jnp.float32), bucket, axis=0), -1, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ForgettingBias(Bias):
    """Sum of log forget gates after the key's token up to the query's (FoX; Lin et al., 2025, eq. 3).

    Holds cumulative sums per token and head, of the queries and of the keys, in float32. Sums that run on
    over the documents of a row do no harm: their difference counts the tokens in between alone.
    """

    q: Float[Array, "batch q_len heads"]
    kv: Float[Array, "batch kv_len heads"]

    def __call__(self, q: Tokens, kv: Tokens) -> Float[Array, "#batch #heads q_len kv_len"]:
        """Returns the differences of the sums."""
        del q, kv
        return self.q.transpose(0, 2, 1)[:, :, :, None] - self.kv.transpose(0, 2, 1)[:, :, None, :]

    def rows(self, start: jax.typing.ArrayLike, size: int) -> Bias:
        """Returns the bias with the sums of some queries."""
        return ForgettingBias(jax.lax.dynamic_slice_in_dim(self.q, start, size, axis=1), self.kv)

    def columns(self, start: jax.typing.ArrayLike, size: int) -> Bias:
        """Returns the bias with the sums of some keys."""
        return ForgettingBias(self.q, jax.lax.dynamic_slice_in_dim(self.kv, start, size, axis=1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LineageBias(Bias):
    """Leaves a query the keys of its own lineage alone, where the rows of a group are read as one.

    A row of a beam takes over another's past by pointing at it: nothing is moved.
    """

    own: Bool[Array, "groups q_len kv_len"]
    """Whether a key is of the query's lineage."""

    @classmethod
    def of(cls, lineage: Int[Array, "groups members slots"]) -> LineageBias:
        """Returns the bias of one query of each member on the slots of all, those of a member together."""
        groups, members, slots = lineage.shape
        holder = jnp.arange(members, dtype=lineage.dtype)[None, None, :, None]
        return cls((lineage[:, :, None] == holder).reshape(groups, members, members * slots))

    def __call__(self, q: Tokens, kv: Tokens) -> Float[Array, "#batch #heads q_len kv_len"]:
        """Returns 0 for its own keys, `MASKED` for others."""
        del q, kv
        return jnp.where(self.own, 0.0, MASKED)[:, None]

    def rows(self, start: jax.typing.ArrayLike, size: int) -> Bias:
        """Returns the bias of some queries."""
        return LineageBias(jax.lax.dynamic_slice_in_dim(self.own, start, size, axis=1))

    def columns(self, start: jax.typing.ArrayLike, size: int) -> Bias:
        """Returns the bias of some keys."""
        return LineageBias(jax.lax.dynamic_slice_in_dim(self.own, start, size, axis=2))


def _distance(q: Tokens, kv: Tokens) -> Int[Array, "#batch q_len kv_len"]:
    """Returns key position - query position."""
    return jnp.asarray(kv.positions)[:, None, :] - jnp.asarray(q.positions)[:, :, None]


def alibi_slopes(heads: int) -> Float[np.ndarray, " heads"]:
    """Returns ALiBi's slopes, float32: 2^(-8 h / heads) for h = 1 … heads where heads is a power of two.

    Otherwise those of the power of two below, and then every other one of the power of two above, as the
    authors' code has it (a geometric sequence of that many heads would be another model).
    """
    below = 1 << (heads.bit_length() - 1)
    powers = [-8.0 * (i + 1) / below for i in range(below)]
    powers += [-4.0 * (i + 1) / below for i in range(0, 2 * (heads - below), 2)]
    return np.exp2(np.array(powers)).astype(np.float32)


def buckets(
    distance: Int[Array, "*shape"], count: int, max_distance: int, bidirectional: bool
) -> Int[Array, "*shape"]:
    """Returns T5's bucket, 0 to count - 1, of each distance (key position - query position).

    Half of a direction's buckets are for one distance each; the others grow logarithmically up to
    ``max_distance``, and the last takes all beyond.
    """
    bucket = jnp.zeros_like(distance)
    if bidirectional:
        count //= 2
        bucket = jnp.where(distance > 0, count, 0).astype(distance.dtype)
        back = jnp.abs(distance)
    else:
        back = jnp.maximum(-distance, 0)
    exact = count // 2
    # Bounds of the logarithmic buckets, in float64 on the host: a float32 logarithm puts some distances into
    # the bucket next to theirs.
    steps = np.arange(1, count - exact) / (count - exact)
    bounds = np.ceil(exact * np.exp(steps * math.log(max_distance / exact)) - 1e-9).astype(np.int32)
    large = exact + jnp.searchsorted(jnp.asarray(bounds), back, side="right", method="compare_all").astype(
        distance.dtype
    )
    return bucket + jnp.where(back < exact, back, large)
