"""Block maps: block by block what the dense mask says, without building it; visits that follow from them."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_oracle import dense
from hypothesis import given
from hypothesis import strategies as st
from test_attend import MASKS, tokens

from research.attention import Causal, Global, Present, RandomBlocks, SameSegment, Strided, Tokens, Window
from research.attention.block_map import EMPTY, FULL, PARTIAL, block_map, spans, visits

SIZES = st.sampled_from([1, 2, 3, 4, 8])


def blockwise(allowed, q_block, kv_block):
    """Returns the kind of each block of one dense mask."""
    rows = range(0, allowed.shape[0], q_block)
    columns = range(0, allowed.shape[1], kv_block)
    blocks = [[allowed[i : i + q_block, j : j + kv_block] for j in columns] for i in rows]
    return np.array([[FULL if b.all() else PARTIAL if b.any() else EMPTY for b in row] for row in blocks])


@given(MASKS, st.integers(1, 13), st.integers(1, 13), SIZES, SIZES)
def test_static_map_is_the_dense_mask_blockwise(mask, q_len, kv_len, q_block, kv_block):
    want = dense(mask, Tokens.arange(q_len), Tokens.arange(kv_len), 1)[0]
    got = block_map(mask, q_len, kv_len, q_block, kv_block)
    np.testing.assert_array_equal(got, blockwise(want, q_block, kv_block))


@given(MASKS, st.data(), SIZES, SIZES)
def test_bounds_hold_for_any_tokens(mask, data, q_block, kv_block):
    segments = data.draw(st.booleans())
    q, kv = (jax.tree.map(np.asarray, data.draw(tokens(2, length, segments))) for length in (7, 5))
    may, must = (mask & Present()).bounds(spans(q, q_block), spans(kv, kv_block))
    for row, allowed in enumerate(dense(mask & Present(), q, kv, 2)):
        kinds = blockwise(allowed, q_block, kv_block)
        batch_may, batch_must = (np.broadcast_to(np.asarray(x), (2, *kinds.shape))[row] for x in (may, must))
        assert not (kinds != EMPTY)[~batch_may].any()  # what is skipped is empty
        assert (kinds == FULL)[batch_must].all()  # what gets no mask is full


def visited(listed, row, q_block):
    """Returns the blocks of keys that a block of queries visits, and those of them that are full."""
    order, full, count = (np.asarray(x)[row, q_block] for x in (listed.order, listed.full, listed.count))
    return set(order[:count].tolist()), set(order[:full].tolist())


def test_packed_rows_skip_other_documents_and_padding():
    segments = jnp.array([[1] * 8 + [2] * 4 + [0] * 4, [1] * 16], jnp.int32)
    places = Tokens(jnp.arange(16, dtype=jnp.int32)[None], segments)
    mask = Causal() & SameSegment()
    listed = visits(mask, places, places, 4, 4, rows=1, dynamic=True)
    assert [visited(listed, 0, i) for i in range(4)] == [
        ({0}, set()), ({0, 1}, {0}), ({2}, set()), (set(), set()),
    ]  # fmt: skip
    assert visited(listed, 1, 3) == ({0, 1, 2, 3}, {0, 1, 2})
    together = visits(mask, places, places, 4, 4, rows=2, dynamic=True)
    assert visited(together, 0, 1) == ({0, 1}, {0}) and visited(together, 0, 2) == ({0, 1, 2}, set())


def test_known_order_skips_the_future_without_looking_at_segments():
    places = Tokens(np.arange(16, dtype=np.int32)[None], jnp.ones((2, 16), jnp.int32))
    listed = visits(Causal() & SameSegment(), places, places, 4, 4, rows=2, dynamic=False)
    assert listed.known
    assert [visited(listed, 0, i) for i in range(4)] == [(set(range(i + 1)), set()) for i in range(4)]


@pytest.mark.parametrize(
    ("mask", "blocks"),
    [
        (Causal(), 128 * 129 // 2),
        (Causal() & Window(511), 128 + 127),
        (Causal() & (Window(511) | Global(1)), 128 + 127 + 126),
        (RandomBlocks(512, 3, 2**16), 3 * 128),
        (Strided(512), 128 * 129 // 2),
    ],
)
def test_long_sequences_build_nothing_dense(mask, blocks):
    start = time.perf_counter()
    assert (block_map(mask, 2**16, 2**16, 512, 512) != EMPTY).sum() == blocks
    assert time.perf_counter() - start < 10  # 2^32 pairs one by one would take longer, and 4 GiB


def test_random_blocks_are_drawn_without_replacement_by_the_seed():
    table = RandomBlocks(4, 3, 40, seed=1).table
    assert (table.sum(1) == 3).all()
    assert not np.array_equal(table, RandomBlocks(4, 3, 40, seed=2).table)
    causal = RandomBlocks(4, 3, 40, causal=True).table
    assert not np.triu(causal, 1).any() and causal.sum(1).tolist() == [1, 2, *[3] * 8]
