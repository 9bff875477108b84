"""Native sparse attention (NSA): its description and state, and where summaries and blocks lie.

Real tokens of a row stand by rank, 0, 1, 2 …, documents one after another; a document's blocks are counted
from its first token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.attention.cache import RecentKeyValues, Slots
from research.attention.masks import ABSENT, Tokens
from research.attention.mechanisms import Geometry, Mechanism, SlidingWindow
from research.attention.positions import Alibi, Positions, RelativeBias
from research.attention.recurrent import document_starts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseState:
    """Decoding state of one layer, by positions."""

    keys: Float[Array, "*layers batch slots kv_heads head_dim"]
    values: Float[Array, "*layers batch slots kv_heads head_dim"]
    compressed_keys: Float[Array, "*layers batch summaries kv_heads head_dim"]
    compressed_values: Float[Array, "*layers batch summaries kv_heads head_dim"]
    recent: RecentKeyValues
    """What the next summary is made of, not yet compressed."""
    window: RecentKeyValues


@dataclasses.dataclass(frozen=True)
class NSA(Mechanism):
    """Native sparse attention (Yuan et al., 2025, arXiv 2502.11089, eq. 5-12).

    A head reads three things, each with keys and values of its own, and adds them with gates sigmoid(W x):
    summaries of ``summary`` tokens each, one every ``stride``, by an MLP over the tokens and learned places;
    the tokens of ``top`` blocks, which all query heads of a key/value head choose together, by the
    probabilities that they give the summaries within (a document's first block and the two latest always);
    and a window. Only what is chosen is gathered and computed. The choice has no gradient.

    Departures, where the paper is silent: rotary positions turn the keys of blocks and window, not those of
    summaries, which queries that are not turned read; only a whole summary is read; a block's score counts
    each summary by the strides that both share (the sums of eq. 9, over summaries that overlap the block).
    Dropout acts on the output alone. Weights of the MLPs are no part of ``matmul_parameters``: they act on
    summaries, not on tokens.
    """

    encoder: ClassVar[bool] = False
    engines: ClassVar[bool] = True

    summary: int = 32
    """Tokens of a summary; a multiple of the stride."""
    stride: int = 16
    """Tokens between beginnings of summaries; divides the block too."""
    block: int = 64
    """Tokens in a block that is chosen or not."""
    top: int = 16
    """Blocks that a token reads: the first and the two latest, and the best of the others; at least 3."""
    window: int = 512
    """Tokens of the window, the token itself included."""

    def problems(self, geometry: Geometry, positions: Positions | None, *, causal: bool) -> Iterator[str]:
        """Yields an encoder, positions that are added to scores, and sizes that do not fit each other."""
        yield from super().problems(geometry, positions, causal=causal)
        if not causal:
            yield (
                "model.attention 'nsa' chooses among the blocks before a token; in an encoder choose "
                "'big-bird' or 'longformer'"
            )
        if isinstance(positions, Alibi | RelativeBias):
            yield (
                "model.attention 'nsa' has scores of summaries, which have no position for model.positions "
                "to act on; choose 'rotary', 'learned', 'sinusoidal' or 'none'"
            )
        for name, value in (("summary", self.summary), ("block", self.block)):
            if value % self.stride:
                yield (
                    f"model.attention.{name} {value} is no multiple of the model.attention.stride "
                    f"{self.stride}"
                )
        if self.top < 3:
            yield f"model.attention.top {self.top}: at least 3, the first block and the two latest"

    def matmul_parameters(self, geometry: Geometry) -> int:
        """Returns the weights of queries, three pairs of keys and values, gates and output."""
        inner = (2 * geometry.heads + 6 * geometry.kv_heads) * geometry.head_dim
        return geometry.width * (inner + 3 * geometry.heads)

    def flops_per_token(self, geometry: Geometry, length: int, *, causal: bool, visible: bool) -> float:
        """Returns 4 * head_dim for each summary, chosen token and token of the window, and the MLPs'.

        The number of summaries is what grows with the length: by 1 / stride of what full attention has.
        """
        row, dim = np.arange(length), geometry.head_dim
        if visible:
            summaries = float(np.maximum((row + 1 - self.summary) // self.stride + 1, 0).mean())
            blocks = np.minimum(row // self.block, self.top - 1) * self.block
            chosen = float((row % self.block + 1 + blocks).mean())
            near = SlidingWindow(window=self.window).visible_keys(geometry, length, causal=causal)
        else:
            summaries, chosen, near = (
                float(length // self.stride),
                float(self.top * self.block),
                float(length),
            )
        mlps = 4.0 * geometry.kv_heads * (self.summary + 1) * dim**2 / self.stride
        return 4.0 * geometry.heads * dim * (summaries + chosen + near) + mlps

    def state(self, geometry: Geometry, batch: int, slots: int, dtype: jnp.dtype) -> SparseState:
        """Returns room for all keys and values, all summaries, what makes the next, and a window."""
        heads, dim = geometry.kv_heads, geometry.head_dim
        every = jnp.zeros((batch, slots, heads, dim), dtype)
        summaries = jnp.zeros((batch, max(slots // self.stride, 1), heads, dim), dtype)
        recent, window = (
            RecentKeyValues.empty(batch, 0, min(size, slots), heads, dim, dtype)
            for size in (max(self.summary - 1, 1), self.window)
        )
        return SparseState(every, every, summaries, summaries, recent, window)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the summaries and blocks of a row's documents begin, by rank; the row's length: there is none."""

    start: Int[Array, "batch length"]
    """First rank of each rank's document; the row's length where there is no token."""
    summary: Int[Array, "batch summaries"]
    block: Int[Array, "batch blocks"]
    """Of whole blocks only."""
    within: Int[Array, "batch blocks overlaps"]
    """Summaries that share tokens with each block."""
    share: Float[Array, "batch blocks overlaps"]
    """Strides that both share, float32; 0 where there is no such summary."""


def layout(start: Int[Array, "batch length"], mechanism: NSA) -> Layout:
    """Returns the layout of rows whose documents begin at ``start``, by rank (see ``Layout``)."""
    length, size, stride, block = start.shape[1], mechanism.summary, mechanism.stride, mechanism.block
    rank = jnp.arange(length, dtype=jnp.int32)[None]
    end = jax.vmap(lambda row: jnp.searchsorted(row, row, side="right"))(start).astype(jnp.int32)
    place = rank - start

    def begins(every: int, tokens: int) -> Array:
        return (start < length) & (place % every == 0) & (rank + tokens <= end)

    def first(begins: Array, count: int) -> Int[Array, "batch count"]:
        return jnp.sort(jnp.where(begins, rank, length), axis=1)[:, :count]

    summaries = begins(stride, size)
    summary, blocks = (
        first(summaries, max(length // stride, 1)),
        first(begins(block, block), max(length // block, 1)),
    )
    # The number of the first summary of a block's document.
    document = at_ranks(start, blocks)
    earlier = jnp.cumsum(summaries, axis=1, dtype=jnp.int32) - summaries.astype(jnp.int32)
    return _overlapping(start, summary, blocks, document, at_ranks(earlier, document), mechanism)


def layout_of_one(count: Int[Array, "batch 1"], length: int, mechanism: NSA) -> Layout:
    """Returns the layout of rows of one document each, of ``count`` tokens in room for ``length``."""

    def first(every: int, tokens: int) -> Int[Array, "batch places"]:
        at = every * jnp.arange(max(length // every, 1), dtype=jnp.int32)[None]
        return jnp.where(at + tokens <= count, at, length)

    start = jnp.where(jnp.arange(length, dtype=jnp.int32)[None] < count, 0, length)
    blocks = first(mechanism.block, mechanism.block)
    zero = jnp.zeros_like(blocks)
    return _overlapping(start, first(mechanism.stride, mechanism.summary), blocks, zero, zero, mechanism)


def _overlapping(
    start: Int[Array, "batch length"],
    summary: Int[Array, "batch summaries"],
    blocks: Int[Array, "batch blocks"],
    document: Int[Array, "batch blocks"],
    number: Int[Array, "batch blocks"],
    mechanism: NSA,
) -> Layout:
    """Returns the layout, given the first rank of each block's document and the number of its summary."""
    of_summary, of_block = mechanism.summary // mechanism.stride, mechanism.block // mechanism.stride
    shift = np.arange(1 - of_summary, of_block, dtype=np.int32)
    own = ((blocks - document) // mechanism.stride)[:, :, None] + jnp.asarray(shift)[None, None]
    within = number[:, :, None] + own
    there = (own >= 0) & (within < summary.shape[1]) & (blocks < start.shape[1])[:, :, None]
    within = jnp.where(there, within, 0)
    found = at_ranks(summary, within.reshape(len(within), -1)).reshape(within.shape)
    there &= found == document[:, :, None] + own * mechanism.stride
    both = np.minimum(shift + of_summary, of_block) - np.maximum(shift, 0)
    share = jnp.where(there, jnp.asarray(both, jnp.float32)[None, None], 0.0)
    return Layout(start, summary, blocks, within, share)


def ranks(
    tokens: Tokens, batch: int
) -> tuple[Int[Array, "batch length"], Int[Array, "batch length"], Int[Array, "batch length"]]:
    """Returns every token's rank, the first rank of its document (-1: padding), and the tokens by rank."""
    real = jnp.broadcast_to(tokens.real, (batch, tokens.length))
    rank = jnp.maximum(jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1, 0)
    start = jax.lax.cummax(jnp.where(document_starts(tokens), rank, 0), axis=1)
    return rank, jnp.where(real, start, -1), jnp.argsort(~real, axis=1, stable=True)


def completed(
    recent: RecentKeyValues,
    k: Float[Array, "batch length kv_heads head_dim"],
    v: Float[Array, "batch length kv_heads head_dim"],
    positions: Int[Array, "batch length"],
    slots: Slots,
    mechanism: NSA,
) -> tuple[
    RecentKeyValues,
    Float[Array, "batch seen kv_heads head_dim"],
    Float[Array, "batch seen kv_heads head_dim"],
    Int[Array, "batch new"],
    Int[Array, "batch new"],
]:
    """Returns what to keep for later summaries, and of those that new tokens complete the tokens' keys and
    values, the index there of the first of each (their number: none), and the number of the summary."""
    size, stride = mechanism.summary, mechanism.stride
    recent, seen, tokens = recent.extend(k, v, positions, slots)
    # From the first token that a summary which ends with a new one can have.
    base = positions.min(axis=1, keepdims=True) - (size - 1)
    length = size - 1 + k.shape[1]
    index = jnp.where(tokens.positions == ABSENT, -1, tokens.positions - base)
    index = jnp.where((index >= 0) & (index < length), index, length)
    row = jnp.arange(len(k))[:, None]

    def placed(x: Array) -> Array:
        empty = jnp.zeros((len(k), length, *x.shape[2:]), x.dtype)
        return empty.at[row, index].set(x, mode="drop")

    number = jnp.maximum(-(-base // stride), 0) + jnp.arange(k.shape[1] // stride + 1, dtype=jnp.int32)[None]
    count = slots.tokens.real.sum(axis=1, keepdims=True, dtype=jnp.int32)
    whole = (number * stride + size <= count) & (positions.min(axis=1, keepdims=True) != ABSENT)
    first = jnp.where(whole, number * stride - base, length)
    return recent, placed(seen.keys), placed(seen.values), first, jnp.where(whole, number, ABSENT)


def summaries(
    x: Float[Array, "batch length kv_heads head_dim"],
    first: Int[Array, "batch summaries"],
    places: Float[Array, "summary head_dim"],
    hidden: Float[Array, "summary head_dim head_dim"],
    output: Float[Array, "head_dim head_dim"],
) -> Float[Array, "batch summaries kv_heads head_dim"]:
    """Returns gelu((tokens + places) hidden) output for the tokens from each ``first`` on, dtype of x.

    Where ``first`` is the length of x there is no summary, and what is returned means nothing.
    """
    size = len(places)
    padded = jnp.pad(x, ((0, 0), (0, size), (0, 0), (0, 0)))
    tokens = jax.vmap(lambda row, at: jax.vmap(lambda n: jax.lax.dynamic_slice_in_dim(row, n, size))(at))(
        padded, first
    )
    tokens = tokens + places.astype(x.dtype)[None, None, :, None]
    middle = jax.nn.gelu(jnp.einsum("bnshd,sde->bnhe", tokens, hidden.astype(x.dtype)))
    return jnp.einsum("bnhe,ed->bnhd", middle, output.astype(x.dtype))


def at_ranks(x: Int[Array, "batch length"], index: Int[Array, "batch count"]) -> Int[Array, "batch count"]:
    """Returns x at the indices, the last where an index lies beyond."""
    return jnp.take_along_axis(x, jnp.minimum(index, x.shape[1] - 1), axis=1)
