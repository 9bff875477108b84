"""Block maps: of each pair of blocks of queries and keys, whether a mask leaves it empty or admits it all."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Int8

from research.attention.masks import ABSENT, AnyArray, Mask, Span, Tokens

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
        for row, column in open_blocks:
            found = mask(_cut(q, row, q_block), _cut(kv, column, kv_block))
            kinds[row, column] = FULL if found.all() else PARTIAL if found.any() else EMPTY
    kinds.setflags(write=False)
    return kinds


def _cut(tokens: Tokens, block: int, size: int) -> Tokens:
    return Tokens(tokens.positions[:, block * size : (block + 1) * size])


def spans(tokens: Tokens, size: int) -> Span:
    """Returns the spans of consecutive blocks of ``size`` tokens; the last may be shorter."""
    positions, segments = tokens.positions, tokens.segments
    blocks = -(-tokens.length // size)
    missing = blocks * size - tokens.length

    def cut(x: AnyArray) -> AnyArray:
        """Returns x by blocks, the last filled up with its last token."""
        xp = np if isinstance(x, np.ndarray) else jnp
        return xp.pad(x, ((0, 0), (0, missing)), mode="edge").reshape(x.shape[0], blocks, size)

    positions = cut(positions)
    if segments is None:
        return Span(positions.min(-1), positions.max(-1))
    segments = cut(segments)
    real = segments != 0
    positions, segments, real = jnp.asarray(positions), jnp.asarray(segments), jnp.asarray(real)
    return Span(
        jnp.where(real, positions, ABSENT).min(-1),
        jnp.where(real, positions, -1).max(-1),
        jnp.where(real, segments, ABSENT).min(-1),
        segments.max(-1),
        ~real.all(-1),
    )
