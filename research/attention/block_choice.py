"""MoBA: softmax attention among blocks of tokens that each query chooses for itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from research.attention.biases import Bias
from research.attention.masks import Tokens
from research.attention.mechanisms import Geometry, Softmax
from research.attention.positions import Positions
from research.attention.softmax import MASKED


@dataclasses.dataclass(frozen=True)
class MoBA(Softmax):
    """Mixture of block attention: the query's own block, and the best before it (Lu et al., 2025, eq. 2-6).

    A document is cut into blocks of positions. Each query head reads its own block up to itself, and of the
    earlier blocks the ``top - 1`` whose mean key has the greatest product with the query. The choice has no
    gradient. This is the definition on the engines of softmax attention: all scores are computed, and those
    of every block's mean beside, so that it shows what the choice does to quality, not to time.
    """

    encoder: ClassVar[bool] = False
    cross: ClassVar[bool] = False

    block: int = 64
    """Tokens in a block."""
    top: int = 3
    """Blocks that a query reads, its own included."""

    def problems(self, geometry: Geometry, positions: Positions | None, *, causal: bool) -> Iterator[str]:
        """Yields that it chooses among earlier blocks only."""
        yield from super().problems(geometry, positions, causal=causal)
        if not causal:
            yield (
                "model.attention 'moba' chooses among the blocks before a token's own; in an encoder choose "
                "'big-bird' or 'longformer'"
            )

    def visible_keys(self, geometry: Geometry, length: int, *, causal: bool) -> float:
        """Returns the mean over tokens of what each reads: of its own block the part up to it, and others."""
        del geometry, causal
        row = np.arange(length)
        return float((row % self.block + 1 + np.minimum(row // self.block, self.top - 1) * self.block).mean())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChosenBlocks(Bias):
    """Leaves out the keys of blocks that a query has not chosen."""

    q: Float[Array, "batch q_len heads head_dim"]
    threshold: Float[Array, "batch q_len heads"]
    """What a block's score must exceed."""
    means: Float[Array, "batch kv_len kv_heads head_dim"]
    """Mean key of each key's block."""
    q_block: Int[Array, "#batch q_len"]
    """Block of each query, within its document."""
    kv_block: Int[Array, "#batch kv_len"]

    def __call__(self, q: Tokens, kv: Tokens) -> Float[Array, "#batch #heads q_len kv_len"]:
        """Returns 0 for keys of chosen blocks and the query's own, and a score that vanishes elsewhere."""
        del q, kv  # whose positions may be counted from elsewhere
        chosen = _products(self.q, self.means) > self.threshold.transpose(0, 2, 1)[..., None]
        own = self.q_block[:, :, None] == self.kv_block[:, None, :]
        return jnp.where(chosen | own[:, None], 0.0, MASKED)

    def rows(self, start: jax.typing.ArrayLike, size: int) -> Bias:
        """Returns the bias of some queries."""
        q, threshold, block = (
            jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
            for x in (self.q, self.threshold, self.q_block)
        )
        return dataclasses.replace(self, q=q, threshold=threshold, q_block=block)

    def columns(self, start: jax.typing.ArrayLike, size: int) -> Bias:
        """Returns the bias of some keys."""
        means, block = (
            jax.lax.dynamic_slice_in_dim(x, start, size, axis=1) for x in (self.means, self.kv_block)
        )
        return dataclasses.replace(self, means=means, kv_block=block)


def choose_blocks(
    q: Float[Array, "batch q_len heads head_dim"],
    k: Float[Array, "batch kv_len kv_heads head_dim"],
    q_tokens: Tokens,
    kv_tokens: Tokens,
    mechanism: MoBA,
) -> ChosenBlocks:
    """Returns which blocks each query reads, as a bias of the scores.

    Blocks are told by positions and documents; padding, wherever it stands, takes no part. The real tokens of
    a document stand in order.
    """
    q, k = jax.lax.stop_gradient((q.astype(jnp.float32), k.astype(jnp.float32)))
    places = jnp.asarray(kv_tokens.positions)
    q_block, kv_block = jnp.asarray(q_tokens.positions) // mechanism.block, places // mechanism.block
    real = jnp.asarray(kv_tokens.real)
    documents = jnp.ones((1, 1, 1), bool)
    if kv_tokens.segments is not None and q_tokens.segments is not None:
        documents = q_tokens.segments[:, :, None] == kv_tokens.segments[:, None, :]
    first = real & (places % mechanism.block == 0)
    means = _means(k, real, jnp.cumsum(first, axis=1, dtype=jnp.int32))
    # Each earlier block stands for election once, as its first token.
    earlier = kv_block[:, None, :] < q_block[:, :, None]
    candidate = earlier & documents & first[:, None, :]
    scores = jnp.where(candidate[:, None], _products(q, means), -jnp.inf)
    best = jax.lax.top_k(scores, min(mechanism.top, scores.shape[-1]))[0]
    if mechanism.top == 1:
        threshold = jnp.full(best.shape[:-1], jnp.inf)
    elif best.shape[-1] < mechanism.top:
        threshold = jnp.full(best.shape[:-1], -jnp.inf)
    else:  # half way to the first that is not chosen: rounding differs from tile to tile
        last, first_out = best[..., -2], best[..., -1]
        threshold = jnp.where(jnp.isfinite(first_out), last / 2 + first_out / 2, -jnp.inf)
    return ChosenBlocks(q, threshold.transpose(0, 2, 1), means, q_block, kv_block)


def _means(
    k: Float[Array, "batch kv_len kv_heads head_dim"],
    real: Bool[Array, "#batch kv_len"],
    number: Int[Array, "#batch kv_len"],
) -> Float[Array, "batch kv_len kv_heads head_dim"]:
    """Returns the mean of the real keys that have a key's number; of keys that are not real, anything."""
    number = jnp.broadcast_to(number, k.shape[:2])
    row = jnp.arange(len(k))[:, None]
    count = jnp.zeros((len(k), k.shape[1] + 1), jnp.float32).at[row, number].add(real.astype(jnp.float32))
    sums = jnp.zeros((len(k), k.shape[1] + 1, *k.shape[2:]), jnp.float32)
    sums = sums.at[row, number].add(jnp.where(real[:, :, None, None], k, 0.0))
    return (sums / jnp.maximum(count, 1.0)[:, :, None, None])[row, number]


def _products(
    q: Float[Array, "batch q_len heads head_dim"], means: Float[Array, "batch kv_len kv_heads head_dim"]
) -> Float[Array, "batch heads q_len kv_len"]:
    """Returns the product of each query with each key's block."""
    shape = (*q.shape[:2], means.shape[2], -1, q.shape[-1])
    scores = jnp.einsum("bikgd,bjkd->bkgij", q.reshape(shape), means)
    return scores.reshape(q.shape[0], q.shape[2], q.shape[1], means.shape[1])
