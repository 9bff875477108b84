"""Baselines for gaps against counts by hand and a brute-force search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from research.evaluation.gaps import Bigrams, gap_accuracies

SPECIAL = np.array([True, True, True] + [False] * 5)


def rows(text):
    tokens = np.array([[int(c) for c in line] for line in text], np.int32)
    return {"tokens": tokens, "segments": (tokens != 0).astype(np.int32)}


TRAIN = rows(["134567300".ljust(9, "0"), "134437600", "133453457", "167673000", "157535700"])


def brute_force(rows):
    counts, common = np.zeros((8, 8)), np.zeros(8)
    for tokens in rows["tokens"]:
        real = [t for t in tokens if t]
        for t in real:
            common[t] += 1
        for a, b in itertools.pairwise(real):
            counts[a, b] += 1
    return counts, common


def test_bigrams_are_interpolated_kneser_ney():
    bigrams = Bigrams.of([TRAIN], 8)
    counts, common = brute_force(TRAIN)
    varied = (counts > 0).sum(0) / (counts > 0).sum()
    expected = np.tile(varied, (8, 1))
    for a in range(8):
        if counts[a].any():
            kept = np.maximum(counts[a] - 0.75, 0) / counts[a].sum()
            expected[a] = kept + 0.75 * (counts[a] > 0).sum() / counts[a].sum() * varied
    np.testing.assert_array_equal(bigrams.common, common)
    np.testing.assert_allclose(bigrams.after(np.arange(8)), expected)
    np.testing.assert_allclose(bigrams.before(np.arange(8)), expected.T)
    np.testing.assert_allclose(bigrams.after(np.arange(8)).sum(1), 1.0)


def test_accuracies_are_those_of_a_search_gap_by_gap():
    random = np.random.default_rng(0)
    train = {"tokens": random.integers(1, 8, (50, 12)), "segments": np.ones((50, 12), np.int32)}
    train["tokens"][:, 1::2] = (train["tokens"][:, ::2] % 5) + 3  # something to learn
    bigrams = Bigrams.of([train], 8)
    counts, common = brute_force(train)
    p = bigrams.after(np.arange(8))
    tokens = train["tokens"][:10].copy()
    selected = np.tile(np.array([2, 5, 6]), (10, 1))
    targets = np.take_along_axis(tokens, selected, 1)
    tokens[np.arange(10)[:, None], selected] = 2  # a mask; 5 and 6 are neighbours
    weights = np.ones((10, 3), np.float32)
    weights[0] = 0
    unigram = np.where(SPECIAL, 0, common)
    right = {"unigram": 0, "bigram, left side": 0, "bigram, both sides": 0}
    for row in range(1, 10):
        for place, target in zip(selected[row], targets[row], strict=True):
            best = {name: (-1.0, 0) for name in right}
            for token in range(3, 8):
                left = unigram[token] / unigram.sum() if place == 6 else p[tokens[row, place - 1], token]
                both = left * (1.0 if place == 5 else p[token, tokens[row, place + 1]])
                scores = {"unigram": unigram[token], "bigram, left side": left, "bigram, both sides": both}
                best = {name: max(best[name], (scores[name], -token)) for name in right}
            for name in right:
                right[name] += -best[name][1] == target
    batch = {"tokens": tokens, "selected": selected, "targets": targets, "weights": weights}
    found = gap_accuracies(bigrams, [batch], SPECIAL)
    assert found == {name: pytest.approx(count / 27) for name, count in right.items()}
    assert found["bigram, both sides"] > found["unigram"]
    assert counts.sum() > 0


def test_segments_do_not_follow_one_another():
    train = {"tokens": np.array([[1, 3, 1, 4, 0]]), "segments": np.array([[1, 1, 2, 2, 0]])}
    bigrams = Bigrams.of([train], 5)
    assert bigrams.follows.nnz == 2
