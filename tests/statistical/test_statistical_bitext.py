"""Entries and batches against what they number, and the choice of padded lengths against all choices."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.statistical import bitext as module
from research.statistical.bitext import blocks, make_batch, make_bitext, padded_lengths, reverse

SENTENCE = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12)
PAIRS = st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=9)


@given(pairs=PAIRS, cells=st.sampled_from([1, 200, 100_000]), multiple=st.sampled_from([1, 3]))
def test_batches_hold_every_cell_once(pairs, cells, multiple):
    bitext = make_bitext(*zip(*pairs, strict=True))
    entries = list(zip(bitext.entry_source.tolist(), bitext.entry_target.tolist(), strict=True))
    assert entries == sorted(set(entries))
    seen, found = [], set()
    for block in blocks(bitext, cells=cells, multiple=multiple):
        batch = make_batch(bitext, block)
        assert batch.cells.shape == (block.rows, block.length, block.length)
        assert block.rows % multiple == 0
        assert (
            block.rows * block.length**2
            <= max(cells, multiple * block.length**2) + multiple * block.length**2
        )
        for row, pair in enumerate(range(block.first, block.last)):
            seen.append(bitext.order[pair])
            e, f = pairs[bitext.order[pair]]
            assert (batch.source_length[row], batch.target_length[row]) == (len(e), len(f))
            assert [bitext.source.words[k] for k in batch.source[row, : len(e)]] == e
            assert [bitext.target.words[k] for k in batch.target[row, : len(f)]] == f
            for (i, a), (j, b) in itertools.product(enumerate(e), enumerate(f)):
                k, m = entries[batch.cells[row, i, j]]
                assert (bitext.source.words[k], bitext.target.words[m]) == (a, b)
                found.add((k, m))
        inside = batch.cells < bitext.entries
        assert inside.sum() == (batch.source_length * batch.target_length).sum()
        assert (batch.cells[~inside] == bitext.entries).all()
        back = reverse(batch)
        np.testing.assert_array_equal(back.cells[0].T, batch.cells[0])
        np.testing.assert_array_equal(back.source, batch.target)
    assert sorted(seen) == list(range(len(pairs)))
    assert found == set(entries)


@given(longest=st.lists(st.integers(1, 48), min_size=1, max_size=30), price=st.sampled_from([1, 500, 30_000]))
def test_padded_lengths_cost_least(longest, price):
    longest = np.sort(np.array(longest))

    def cost(lengths):
        bucket = np.array(lengths)[np.searchsorted(lengths, longest)]
        return (bucket**2).sum() + price * len(set(bucket.tolist()))

    top = -(-longest[-1] // 8) * 8
    smaller = range(8, top, 8)
    choices = (
        [*chosen, top] for n in range(len(smaller) + 1) for chosen in itertools.combinations(smaller, n)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_COMPILATION", price)
        assert cost(padded_lengths(longest)) == min(map(cost, choices))


def test_bad_bitexts():
    with pytest.raises(ValueError, match="1 source sentences and 2 target"):
        make_bitext([["a"]], [["a"], ["b"]])
    with pytest.raises(ValueError, match="empty or has more than 256"):
        make_bitext([["a"], []], [["a"], ["b"]])
    with pytest.raises(ValueError, match="empty or has more than 256"):
        make_bitext([["a"] * 257], [["a"]])
