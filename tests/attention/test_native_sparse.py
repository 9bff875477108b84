"""The parts of native sparse attention: where blocks and summaries are, what is chosen, and what it costs."""

from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from research.attention import chosen_blocks
from research.attention.chosen_blocks import summarised_and_chosen
from research.attention.masks import Tokens
from research.attention.native_sparse import NSA, layout, layout_of_one, ranks

MECHANISM = NSA(summary=4, stride=2, block=4, top=5, window=8)


def test_blocks_and_summaries_are_counted_from_the_first_token_of_a_document():
    # Documents of 9, 3 and 6 tokens, padding between and behind.
    segments = np.repeat([0, 1, 0, 2, 3, 0], [1, 9, 2, 3, 6, 3]).astype(np.int32)[None]
    tokens = Tokens(jnp.zeros((1, 24), jnp.int32), jnp.asarray(segments))
    rank, start, order = jax.jit(functools.partial(ranks, batch=1))(tokens)
    real = segments != 0
    np.testing.assert_array_equal(np.asarray(rank)[real], np.arange(18))
    np.testing.assert_array_equal(np.asarray(start)[real], np.repeat([0, 9, 12], [9, 3, 6]))
    np.testing.assert_array_equal(np.asarray(start) == -1, ~real)
    np.testing.assert_array_equal(order[0, :18], np.flatnonzero(real))
    by_rank = np.where(np.arange(24) < 18, np.asarray(start)[:, np.asarray(order)[0]], 24).astype(np.int32)
    found = jax.jit(functools.partial(layout, mechanism=MECHANISM))(jnp.asarray(by_rank))
    # Whole ones alone: of 4 tokens, every 2 (summaries) or 4 (blocks).
    assert found.summary[0].tolist() == [0, 2, 4, 12, 14] + [24] * 7
    assert found.block[0].tolist() == [0, 4, 12, 24, 24, 24]
    share = np.zeros((6, 12))
    for block, n in np.ndindex(6, found.within.shape[2]):
        share[block, int(found.within[0, block, n])] += float(found.share[0, block, n])
    want = np.zeros((6, 12))  # strides that both have
    want[0, :2], want[1, 1:3], want[2, 3:5] = (2, 1), (1, 2), (2, 1)
    np.testing.assert_array_equal(share, want)
    # Without documents it is arithmetic.
    counts = jnp.array([[13], [24]], jnp.int32)
    one = jax.jit(functools.partial(layout_of_one, length=24, mechanism=MECHANISM))(counts)
    of_starts = jax.jit(functools.partial(layout, mechanism=MECHANISM))(one.start)
    for name in ("summary", "block", "share"):
        np.testing.assert_array_equal(getattr(one, name), getattr(of_starts, name))
    there = np.asarray(one.share) > 0
    np.testing.assert_array_equal(np.asarray(one.within)[there], np.asarray(of_starts.within)[there])


def test_no_array_grows_with_the_square_of_the_length(monkeypatch):
    """Forward and backward: the largest array is linear in length, or a tile's."""
    monkeypatch.setattr(chosen_blocks, "TILE", 1 << 10)

    def largest(length: int) -> int:
        q, kv = jnp.zeros((1, length, 2, 4)), jnp.zeros((1, length, 1, 4))
        compressed = kv[:, : length // 2]
        rank = jnp.arange(length, dtype=jnp.int32)[None]

        def run(q, kv, compressed):
            start = jnp.zeros_like(rank)
            out = summarised_and_chosen(
                (q, q), (compressed, compressed), (kv, kv), rank, start, layout(start, MECHANISM), MECHANISM,
                (1.0, 1.0),
            )  # fmt: skip
            return sum(part.sum() for part in out)

        program = str(jax.make_jaxpr(jax.grad(run, argnums=(0, 1, 2)))(q, kv, compressed))
        shapes = re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", program)
        return max(math.prod(map(int, shape.split(","))) for shape in shapes)

    assert largest(1024) <= 2 * largest(512) < 512 * 512
