"""Reformer: softmax attention among tokens that share a bucket of a locality-sensitive hash."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.attention.biases import Bias
from research.attention.masks import Tokens
from research.attention.mechanisms import Geometry, Softmax
from research.attention.positions import Positions
from research.attention.softmax import MASKED

ITSELF = -1e5
"""Added to the score of a token with itself: read where there is nothing else to read (the paper's value)."""


@dataclasses.dataclass(frozen=True)
class Reformer(Softmax):
    """Softmax attention within the buckets of a locality-sensitive hash (Kitaev et al., 2020, section 2).

    Keys are the queries, normalised. A hash is argmax [x R; -x R] for a random R; a token reads those that
    share a bucket with it in any round (the paper's union of sets P_i), and itself only where it has no
    other. This is the definition, not the paper's approximation of it by sorted chunks: it costs what softmax
    attention costs, and shows what hashing does to quality, not to time. R is drawn once for a seed, the same
    for all layers and heads.
    """

    cross: ClassVar[bool] = False

    scale: float | None = 1.0
    """Multiplies scores of queries and keys of unit length, which the paper's equations divide by
    sqrt(head_dim) and its authors' code does not."""
    buckets: int = 16
    """Buckets of a round; even."""
    rounds: int = 4
    """Hashes that are taken."""
    seed: int = 0
    """Seed of the random directions."""

    def problems(self, geometry: Geometry, positions: Positions | None, *, causal: bool) -> Iterator[str]:
        """Yields what keeps keys from being the queries, and buckets that do not come in pairs."""
        yield from super().problems(geometry, positions, causal=causal)
        if geometry.kv_heads != geometry.heads:
            yield (
                "model.attention 'reformer' takes its keys from its queries, and has as many; leave "
                "model.kv_heads out"
            )
        if self.qk_norm:
            yield "model.attention 'reformer' normalises keys already; leave model.attention.qk_norm out"
        if self.buckets % 2:
            yield f"model.attention.buckets {self.buckets} is odd; a bucket and its opposite make a pair"

    def matmul_parameters(self, geometry: Geometry) -> int:
        """Returns the weights of the query, value, output and gate projections."""
        return super().matmul_parameters(geometry) - geometry.width * geometry.kv_heads * geometry.head_dim


def hashes(
    x: Float[Array, "batch length heads head_dim"], mechanism: Reformer
) -> Int[Array, "batch length heads rounds"]:
    """Returns the bucket of each vector in each round; its length plays no part."""
    shape = (x.shape[-1], mechanism.rounds, mechanism.buckets // 2)
    directions = np.random.default_rng(mechanism.seed).normal(size=shape).astype(np.float32)
    turned = jnp.einsum(
        "blhd,drc->blhrc", x.astype(jnp.float32), jnp.asarray(directions), precision=jax.lax.Precision.HIGHEST
    )
    return jnp.argmax(jnp.concatenate([turned, -turned], axis=-1), axis=-1).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SameBucket(Bias):
    """Leaves out what shares no bucket with the query, and the token itself where it has any other."""

    q: Int[Array, "batch q_len heads rounds"]
    kv: Int[Array, "batch kv_len heads rounds"]

    def __call__(self, q: Tokens, kv: Tokens) -> Float[Array, "#batch #heads q_len kv_len"]:
        """Returns 0 for tokens that share a bucket, and for those that do not a score that vanishes."""
        mine, theirs = self.q.transpose(0, 2, 1, 3), self.kv.transpose(0, 2, 1, 3)
        # Round by round: one comparison of all rounds would be as large as all of them together.
        shared = jnp.zeros((1, 1, 1, 1), bool)
        for number in range(mine.shape[-1]):
            shared = shared | (mine[:, :, :, None, number] == theirs[:, :, None, :, number])
        itself = jnp.asarray(q.positions)[:, :, None] == jnp.asarray(kv.positions)[:, None, :]
        return jnp.where(shared, jnp.where(itself[:, None], ITSELF, 0.0), MASKED)

    def rows(self, start: jax.typing.ArrayLike, size: int) -> Bias:
        """Returns the bias with the buckets of some queries."""
        return SameBucket(jax.lax.dynamic_slice_in_dim(self.q, start, size, axis=1), self.kv)

    def columns(self, start: jax.typing.ArrayLike, size: int) -> Bias:
        """Returns the bias with the buckets of some keys."""
        return SameBucket(self.q, jax.lax.dynamic_slice_in_dim(self.kv, start, size, axis=1))
