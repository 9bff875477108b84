"""Masking: a million decisions at the rates asked for, and what may never be masked."""

from __future__ import annotations

import numpy as np
import pytest

from research.data.masking import Draws, Kinds, Masking, _words, mask

VOCABULARY, LENGTH = 1000, 128
SPECIAL = np.arange(VOCABULARY) < 5
CONTINUES = (np.arange(VOCABULARY) % 3 == 0) & ~SPECIAL
KINDS = Kinds(mask=4, special=SPECIAL, continues=CONTINUES)


def rows(count, seed=0):
    """Rows [CLS] ... [SEP] ... [SEP] and padding, as they are packed."""
    tokens = np.random.default_rng(seed).integers(5, VOCABULARY, (count, LENGTH), dtype=np.int32)
    tokens[:, 0], tokens[:, 60], tokens[:, 61], tokens[:, 119], tokens[:, 120:] = 2, 3, 2, 3, 0
    return tokens


def masked(how, count=500, seed=0):
    tokens = rows(count)
    draws = Draws.of(np.random.default_rng(seed), count, LENGTH, how.most(LENGTH))
    return tokens, mask(tokens, how, KINDS, draws)


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_a_million_decisions_come_out_at_the_rates_asked_for(rate):
    how = Masking(rate=rate)
    tokens, found = masked(how, count=8700)
    candidates = ~SPECIAL[tokens]
    assert candidates.sum() > 1_000_000
    assert found.weights.sum() / candidates.sum() == pytest.approx(rate, abs=0.002)
    row, column = np.nonzero(found.weights)
    before, after = found.targets[row, column], found.tokens[row, found.selected[row, column]]
    gaps, kept = after == KINDS.mask, after == before
    error = 4 * 0.5 / np.sqrt(len(row))
    assert gaps.mean() == pytest.approx(0.8, abs=error)
    assert kept.mean() == pytest.approx(0.1, abs=error)
    assert (~gaps & ~kept).mean() == pytest.approx(0.1, abs=error)
    drawn = after[~gaps & ~kept]
    assert not SPECIAL[drawn].any()
    counts = np.bincount(drawn, minlength=VOCABULARY)[5:]
    assert counts.std() == pytest.approx(np.sqrt(counts.mean()), rel=0.25)  # uniform: Poisson counts
    chosen = np.bincount(found.selected[row, column], minlength=LENGTH)[candidates.any(0)]
    assert chosen.std() == pytest.approx(np.sqrt(chosen.mean()), rel=0.35)  # every place as likely


@pytest.mark.parametrize("unit", ["tokens", "words", "spans"])
def test_only_ordinary_tokens_are_selected_each_once_and_targets_are_what_was_there(unit):
    tokens, found = masked(Masking(unit=unit))
    for row in range(len(tokens)):
        real = found.weights[row] > 0
        places = found.selected[row][real]
        assert len(set(places)) == len(places) and not SPECIAL[tokens[row, places]].any()
        np.testing.assert_array_equal(found.targets[row][real], tokens[row, places])
        others = np.setdiff1d(np.arange(LENGTH), places)
        np.testing.assert_array_equal(found.tokens[row, others], tokens[row, others])
        assert not found.targets[row][~real].any()
    assert found.weights.sum() / (~SPECIAL[tokens]).sum() == pytest.approx(0.15, abs=0.004)


@pytest.mark.parametrize("unit", ["words", "spans"])
def test_whole_words_are_selected_or_left(unit):
    tokens, found = masked(Masking(unit=unit, rate=0.3))
    for row in range(100):
        places = set(found.selected[row][found.weights[row] > 0])
        for begin, end in _words(~SPECIAL[tokens[row]], CONTINUES[tokens[row]]):
            assert len(places & set(range(begin, end))) in (0, end - begin)


def test_spans_are_adjacent_words_that_share_their_fate():
    _, found = masked(Masking(unit="spans", rate=0.15))
    lengths = []
    for row in range(100):
        places = np.sort(found.selected[row][found.weights[row] > 0])
        lengths += [len(run) for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)]
    assert np.mean(lengths) > 4  # single tokens come to 1.2
    # 0.8 of the spans are gaps throughout; of single tokens, runs of mixed fates would be common.
    row, column = np.nonzero(found.weights)
    gaps = (found.tokens[row, found.selected[row, column]] == KINDS.mask).mean()
    assert gaps == pytest.approx(0.8, abs=0.03)


def test_words_of_a_row():
    continues = np.array([0, 0, 1, 1, 0, 1, 0, 1], bool)
    candidates = np.array([0, 1, 1, 1, 1, 0, 0, 1], bool)
    assert _words(candidates, continues) == [(1, 4), (4, 5), (7, 8)]
    assert _words(np.zeros(3, bool), np.zeros(3, bool)) == []


def test_short_rows_have_at_least_one_gap_and_empty_ones_none():
    tokens = np.array([[2, 7, 3, 0], [2, 3, 0, 0]], np.int32)
    how = Masking()
    draws = Draws.of(np.random.default_rng(0), 2, 4, how.most(4))
    found = mask(tokens, how, KINDS, draws)
    assert found.weights.sum(1).tolist() == [1, 0] and found.targets[0, 0] == 7
