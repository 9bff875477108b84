"""What queries read of summaries, and of the blocks that they choose by them (NSA).

Nothing here is as large as the length squared: queries are taken tile by tile.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.attention.native_sparse import NSA, Layout, at_ranks
from research.attention.softmax import masked_softmax

TILE = 1 << 22
"""Numbers that are gathered at once, of the chosen blocks' keys: what bounds the queries of a tile."""


def summarised_and_chosen(
    q: tuple[Float[Array, "batch q_len heads head_dim"], Float[Array, "batch q_len heads head_dim"]],
    compressed: tuple[
        Float[Array, "batch summaries kv_heads head_dim"], Float[Array, "batch summaries kv_heads head_dim"]
    ],
    kv: tuple[Float[Array, "batch length kv_heads head_dim"], Float[Array, "batch length kv_heads head_dim"]],
    rank: Int[Array, "batch q_len"],
    start: Int[Array, "batch q_len"],
    layout: Layout,
    mechanism: NSA,
    scales: tuple[float, float],
) -> tuple[Float[Array, "batch q_len heads head_dim"], Float[Array, "batch q_len heads head_dim"]]:
    """Returns what queries read of the summaries, and of the blocks that they choose by them, dtype of v.

    Args:
      q: the queries of summaries, and those of tokens.
      compressed: keys and values of the summaries.
      kv: keys and values of the tokens, by rank.
      rank: rank of each query.
      start: first rank of its document; -1 at padding, which reads 0.
      layout: that of the keys.
      mechanism: sizes.
      scales: factors on the scores of summaries and of tokens.
    """
    batch, length, _, dim = q[0].shape
    kv_heads, block = kv[0].shape[2], mechanism.block
    short = max(block - kv[0].shape[1], 0)
    k, v = (jnp.pad(x, ((0, 0), (0, short), (0, 0), (0, 0))) for x in kv)

    @jax.checkpoint
    def tile(queries: tuple[Array, ...]) -> tuple[Array, Array]:
        by_summary, by_token, rank, start = queries
        grouped = (*rank.shape, kv_heads, -1, dim)
        out, importance = _of_summaries(
            by_summary.reshape(grouped), *compressed, rank, start, layout, mechanism, scales[0]
        )
        first = _chosen(importance, rank, start, layout, mechanism)
        found = _of_blocks(by_token.reshape(grouped), k, v, first, rank, block, scales[1])
        return out.reshape(by_token.shape), found.reshape(by_token.shape)

    size = max(1, min(length, TILE // (batch * kv_heads * mechanism.top * block * dim)))
    queries = (*q, rank, start)
    if size == length:
        return tile(queries)
    extra = -length % size

    def tiles(x: Array, fill: int) -> Array:
        x = jnp.pad(x, ((0, 0), (0, extra), *((0, 0),) * (x.ndim - 2)), constant_values=fill)
        return x.reshape(batch, -1, size, *x.shape[2:]).swapaxes(0, 1)

    outs = jax.lax.map(tile, tuple(tiles(x, fill) for x, fill in zip(queries, (0, 0, 0, -1), strict=True)))
    first, second = (out.swapaxes(0, 1).reshape(batch, -1, *q[0].shape[2:])[:, :length] for out in outs)
    return first, second


def _of_summaries(
    q: Float[Array, "batch tile kv_heads group head_dim"],
    k: Float[Array, "batch summaries kv_heads head_dim"],
    v: Float[Array, "batch summaries kv_heads head_dim"],
    rank: Int[Array, "batch tile"],
    start: Int[Array, "batch tile"],
    layout: Layout,
    mechanism: NSA,
    scale: float,
) -> tuple[Float[Array, "batch tile kv_heads group head_dim"], Float[Array, "batch kv_heads tile summaries"]]:
    """Returns what queries read of whole summaries before them, and their groups' summed probabilities."""
    last = (layout.summary + mechanism.summary - 1)[:, None, :]
    seen = (last <= rank[:, :, None]) & (at_ranks(layout.start, layout.summary)[:, None] == start[:, :, None])
    scores = jnp.einsum("btkgd,bwkd->bkgtw", q, k, preferred_element_type=jnp.float32) * scale
    weights = masked_softmax(scores, seen[:, None, None])
    out = jnp.einsum("bkgtw,bwkd->btkgd", weights.astype(v.dtype), v)
    return out, jax.lax.stop_gradient(weights).sum(2)


def _chosen(
    importance: Float[Array, "batch kv_heads tile summaries"],
    rank: Int[Array, "batch tile"],
    start: Int[Array, "batch tile"],
    layout: Layout,
    mechanism: NSA,
) -> Int[Array, "batch kv_heads tile top"]:
    """Returns the first rank of the blocks that each query's group reads; -1: none."""
    block = mechanism.block
    own = (rank - start) // block
    # A document's first block, the own and the one before it, each once.
    always = jnp.stack([own, own - 1, jnp.zeros_like(own)], axis=-1)
    there = jnp.stack([own >= 0, own >= 1, own >= 2], axis=-1) & (start >= 0)[:, :, None]
    always = jnp.where(there, start[:, :, None] + always * block, -1)
    first = jnp.broadcast_to(always[:, None], (len(rank), importance.shape[1], *always.shape[1:]))
    count = min(mechanism.top - 3, layout.block.shape[1])
    if count == 0:
        return first
    scores = jax.vmap(lambda x, within: x[:, :, within])(importance, layout.within)
    scores = (scores * layout.share[:, None, None]).sum(-1)
    begins = at_ranks(layout.start, layout.block)
    number = (layout.block - begins) // block
    candidate = (begins[:, None] == start[:, :, None]) & (number >= 1)[:, None]
    candidate &= number[:, None] <= own[:, :, None] - 2
    scores, best = jax.lax.top_k(jnp.where(candidate[:, None], scores, -1.0), count)
    best = jax.vmap(lambda at, index: at[index])(layout.block, best)
    return jnp.concatenate([first, jnp.where(scores >= 0.0, best, -1)], axis=-1)


def _of_blocks(
    q: Float[Array, "batch tile kv_heads group head_dim"],
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    first: Int[Array, "batch kv_heads tile top"],
    rank: Int[Array, "batch tile"],
    block: int,
    scale: float,
) -> Float[Array, "batch tile kv_heads group head_dim"]:
    """Returns what queries read of tokens up to their own in the blocks from ``first`` on; -1: no block."""

    def gathered(x: Float[Array, "length head_dim"], at: Int[Array, "tile top"]) -> Array:
        slices = jax.vmap(jax.vmap(lambda n: jax.lax.dynamic_slice_in_dim(x, n, block)))(at)
        return slices.reshape(at.shape[0], -1, x.shape[-1])

    gather = jax.vmap(jax.vmap(gathered, in_axes=(1, 0)))
    # The last block may be cut short: what is taken then begins before it.
    at = jnp.clip(first, 0, k.shape[1] - block)
    places = at[..., None] + jnp.arange(block, dtype=jnp.int32)[None, None, None, None]
    seen = (places >= first[..., None]) & (places <= rank[:, None, :, None, None]) & (first >= 0)[..., None]
    scores = jnp.einsum("btkgd,bktnd->bktgn", q, gather(k, at), preferred_element_type=jnp.float32) * scale
    seen = seen.reshape(*seen.shape[:3], 1, -1)
    weights = masked_softmax(scores, seen)
    return jnp.einsum("bktgn,bktnd->btkgd", weights.astype(v.dtype), gather(v, at))
