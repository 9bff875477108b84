"""Block maps: of each pair of blocks of queries and keys, whether a mask leaves it empty or admits it all."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, Int8

from research.attention.masks import ABSENT, AnyArray, Bounds, Documents, Mask, Span, Tokens

EMPTY, PARTIAL, FULL = 0, 1, 2
REFINED = 2**28
"""Pairs of tokens that are judged one by one, at most, to make a static map exact: about a second."""


@functools.lru_cache(maxsize=64)
def block_map(
    mask: Mask, q_len: int, kv_len: int, q_block: int, kv_block: int
) -> Int8[np.ndarray, "q_blocks kv_blocks"]:
    """Returns EMPTY, PARTIAL or FULL for each pair of blocks of two sequences at positions 0, 1, 2 ….

    From the mask's own bounds, and where these leave a block open, from the mask itself, pair by pair
    (unless more than REFINED pairs are open: then they stay PARTIAL, which costs time and is never wrong).
    Nothing quadratic in the length is built.
    """
    q, kv = (Tokens(np.arange(length, dtype=np.int32)[None]) for length in (q_len, kv_len))
    may, must = mask.bounds(spans(q, q_block), spans(kv, kv_block))
    kinds = np.where(must, FULL, np.where(may, PARTIAL, EMPTY)).astype(np.int8)[0]
    kinds = np.broadcast_to(kinds, (-(-q_len // q_block), -(-kv_len // kv_block))).copy()
    open_blocks = np.argwhere(kinds == PARTIAL)
    if len(open_blocks) * q_block * kv_block <= REFINED:
        for row, column in open_blocks.tolist():
            found = mask(_cut(q, row, q_block), _cut(kv, column, kv_block))
            kinds[row, column] = FULL if found.all() else PARTIAL if found.any() else EMPTY
    kinds.setflags(write=False)
    return kinds


def _cut(tokens: Tokens, block: int, size: int) -> Tokens:
    return Tokens(tokens.positions[:, block * size : (block + 1) * size])


def spans(tokens: Tokens, size: int) -> Span:
    """Returns the spans of consecutive blocks of ``size`` tokens; the last may be shorter."""
    arrays = (tokens.positions,) if tokens.segments is None else (tokens.positions, tokens.segments)
    xp: Any = np if all(isinstance(x, np.ndarray) for x in arrays) else jnp
    blocks = -(-tokens.length // size)
    missing = blocks * size - tokens.length
    # The last block is filled up with its last token.
    cut = [xp.pad(x, ((0, 0), (0, missing)), mode="edge").reshape(-1, blocks, size) for x in arrays]
    if tokens.segments is None:
        return Span(cut[0].min(-1), cut[0].max(-1))
    positions, segments = cut
    real = segments != 0
    return Span(
        xp.where(real, positions, np.int32(ABSENT)).min(-1),
        xp.where(real, positions, np.int32(-1)).max(-1),
        Documents(xp.where(real, segments, np.int32(ABSENT)).min(-1), segments.max(-1), ~real.all(-1)),
    )


@dataclasses.dataclass(frozen=True)
class Visits:
    """Which blocks of keys each block of queries reads, full ones first.

    NumPy arrays where this is known when the program is built.
    """

    order: Int[AnyArray, "rows q_blocks kv_blocks"]
    """Blocks of keys, those to visit in front."""
    full: Int[AnyArray, "rows q_blocks"]
    """How many of them the mask admits throughout: no mask is needed there."""
    count: Int[AnyArray, "rows q_blocks"]
    """How many of them are visited at all."""

    @property
    def known(self) -> bool:
        """Whether they are known when the program is built."""
        return isinstance(self.count, np.ndarray)


def visits(
    mask: Mask,
    q: Tokens,
    kv: Tokens,
    q_block: int,
    kv_block: int,
    *,
    rows: int,
    dynamic: bool,
) -> Visits:
    """Returns the blocks to visit, for every ``rows`` rows of the batch together, or for all rows alike.

    Positions that are NumPy arrays must be 0, 1, 2 …. Without ``dynamic`` only they are used, never arrays.
    """
    known = isinstance(q.positions, np.ndarray) and isinstance(kv.positions, np.ndarray)
    segments = q.segments is not None or kv.segments is not None
    if known and not segments:
        kinds = block_map(mask, q.length, kv.length, q_block, kv_block)[None]
        return _listed(kinds == FULL, kinds != EMPTY)
    shape = (1, -(-q.length // q_block), -(-kv.length // kv_block))
    if not dynamic:
        bounds: Bounds = (np.ones(shape, bool), np.zeros(shape, bool))
        if known:
            bounds = mask.bounds(_of_any_document(q, q_block), _of_any_document(kv, kv_block))
        some, full = (np.broadcast_to(np.asarray(x), shape) for x in bounds)
        return _listed(full, some)
    bounds = mask.bounds(spans(q, q_block), spans(kv, kv_block))
    batch = max(x.shape[0] for x in bounds)
    may, must = (jnp.broadcast_to(x, (batch, *shape[1:])) for x in bounds)
    if batch > 1:
        may = may.reshape(-1, rows, *shape[1:]).any(1)
        must = must.reshape(-1, rows, *shape[1:]).all(1)
    return _listed(must, may)


def _of_any_document(tokens: Tokens, size: int) -> Span:
    """Returns spans that know positions only."""
    plain = spans(Tokens(tokens.positions), size)
    if tokens.segments is None:
        return plain
    shape = plain.first.shape
    documents = Documents(
        np.ones(shape, np.int32), np.full(shape, ABSENT, np.int32), padded=np.ones(shape, bool)
    )
    return dataclasses.replace(plain, documents=documents)


def _listed(
    full: Bool[AnyArray, "rows q_blocks kv_blocks"], some: Bool[AnyArray, "rows q_blocks kv_blocks"]
) -> Visits:
    """Returns the blocks by kind: full, partial, empty, each in order."""
    xp: Any = np if isinstance(some, np.ndarray) and isinstance(full, np.ndarray) else jnp
    order = xp.argsort(2 - full.astype(np.int32) - some.astype(np.int32), axis=-1, stable=True)
    return Visits(order.astype(np.int32), full.sum(-1, dtype=np.int32), some.sum(-1, dtype=np.int32))
