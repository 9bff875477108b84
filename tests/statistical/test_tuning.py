"""Tuning: the line search against a grid, both methods where the answer is known, stopping and resuming."""

import dataclasses
import functools

import numpy as np
import pytest
from derivations import ENGLISH, MODEL, random_table, random_weights
from hypothesis import given
from hypothesis import strategies as st

from research.errors import UserError
from research.statistical.bleu_counts import bleu
from research.statistical.candidate_pool import CandidatePool, empty_pool
from research.statistical.decoding import PhraseDecoder
from research.statistical.mert import ascend, line_search, mert
from research.statistical.mira import mira
from research.statistical.stack_decoder import Search
from research.statistical.translation_options import FEATURES
from research.statistical.tuning import Tuning, best, tune

FREE = np.ones(len(FEATURES), bool)
SEARCH = Search(stack=8, candidates=40)


def random_pool(seed, sentences=6, most=8):
    """Returns a pool whose candidates have 8 words, as their references have."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, most + 1, sentences)
    total = int(sizes.sum())
    matches = np.sort(rng.integers(0, 9, (total, 4)))[:, ::-1] - np.arange(4)
    counts = np.concatenate(
        [np.full((total, 2), 8), matches.clip(0), np.tile([8, 7, 6, 5], (total, 1))], axis=1
    )
    features = rng.standard_normal((total, len(FEATURES))).astype(np.float32)
    return CandidatePool(
        np.repeat(np.arange(sentences), sizes).astype(np.int32), features, counts.astype(np.int32)
    )


@given(seed=st.integers(0, 1000))
def test_line_search_against_a_grid(seed):
    pool, rng = random_pool(seed), np.random.default_rng(seed)
    weights, direction = rng.standard_normal((2, len(FEATURES)))
    features = pool.features.astype(np.float64)
    found = line_search(pool, features @ weights, features @ direction)
    assert pool.bleu(weights + found.size * direction) == pytest.approx(found.bleu)
    grid = np.concatenate([np.linspace(-5, 5, 81), [0.0, -1e6, 1e6]])
    assert found.bleu >= max(pool.bleu(weights + size * direction) for size in grid) - 1e-9


def test_no_step_where_none_is_better():
    pool = random_pool(0)
    features = pool.features.astype(np.float64)
    found = line_search(pool, features[:, 0], np.zeros(len(pool)))
    assert found.size == 0 and found.bleu == pytest.approx(pool.bleu(np.eye(len(FEATURES))[0]))


def informed_pool():
    """Returns a pool with one feature that knows which candidates match best."""
    pool = random_pool(7, sentences=40)
    features = pool.features.copy()
    features[:, 3] = pool.counts[:, 2:6].sum(axis=1) / 4
    return dataclasses.replace(pool, features=features)


def test_both_methods_find_the_feature_that_matters():
    pool = informed_pool()
    oracle = pool.bleu(np.eye(len(FEATURES))[3])
    begin = np.ones(len(FEATURES))
    assert pool.bleu(begin) < oracle - 9
    by_mira = mira(pool, begin, FREE, epochs=20, largest_step=0.1, seed=0)
    by_mert = mert(pool, begin, FREE, restarts=2, seed=0)
    assert pool.bleu(by_mira) > oracle - 2
    assert pool.bleu(by_mert) > oracle - 2
    np.testing.assert_array_equal(by_mert, mert(pool, begin, FREE, restarts=2, seed=0))


def test_mira_leaves_weights_that_are_the_best_of_the_pool():
    pool = informed_pool()
    begin = np.eye(len(FEATURES))[3]  # what they choose cannot be bettered, but by small margins
    assert (mira(pool, begin, FREE, epochs=2, largest_step=0.1, seed=0) != begin).any()


def test_fixed_weights_stay():
    pool, free = informed_pool(), np.arange(len(FEATURES)) != 3
    begin = np.ones(len(FEATURES))
    weights, reached = ascend(pool, begin, free)
    assert weights[3] == 1 and reached >= pool.bleu(begin)
    assert mira(pool, begin, free, epochs=1, largest_step=0.1, seed=0)[3] == 1
    assert mert(pool, begin, free, restarts=1, seed=0)[3] == 1


def test_merged_candidates_are_different():
    one, two = random_pool(1), random_pool(2)
    both = empty_pool().merged(one).merged(two).merged(one)
    assert len(both) == len(one) + len(two)
    assert (np.diff(both.sentence) >= 0).all()
    assert int(both.counts.sum()) == int(one.counts.sum() + two.counts.sum())
    weights = np.random.default_rng(0).standard_normal(len(FEATURES))
    scores = both.features @ weights
    for row, sentence in zip(both.best(weights), range(6), strict=True):
        assert both.sentence[row] == sentence and scores[row] == scores[both.sentence == sentence].max()
    assert both.bleu(weights) == pytest.approx(float(bleu(both.counts[both.best(weights)].sum(axis=0))))


@functools.cache
def development():
    """Returns sentences, a table, and what hidden weights make of the sentences."""
    table, rng = random_table(8, options=3), np.random.default_rng(8)
    source = [rng.choice(ENGLISH, 5).tolist() for _ in range(20)]
    found = PhraseDecoder(table, MODEL, random_weights(8), SEARCH).translate(source)
    return source, [list(row[0].words) for row in found], table


@pytest.mark.parametrize("method", ["mira", "mert"])
def test_tuning_comes_closer_to_hidden_weights(method):
    source, references, table = development()
    how = Tuning(method, n_best=30, iterations=4, restarts=1, epochs=10, largest_step=0.01)
    history = tune(source, references, table, MODEL, SEARCH, how, start=random_weights(3))
    assert best(history).bleu > history[0].bleu + 5
    assert best(history).weights["unknown"] == -5.0


def test_tuning_goes_on_where_it_stopped(tmp_path):
    source, references, table = development()
    path = tmp_path / "tuning.npz"
    how = Tuning(n_best=20, iterations=3, epochs=3, patience=3, largest_step=0.01)
    run = functools.partial(tune, source, references, table, MODEL, SEARCH, start=random_weights(3))

    class StoppedError(Exception):
        pass

    def stop(line):
        if "iteration 2" in line:
            raise StoppedError

    lines = []
    whole = run(how, report=lines.append)
    assert len(lines) == len(whole) == 3 and lines[0].startswith("tuning, iteration 1: BLEU")
    with pytest.raises(StoppedError):
        run(how, state=path, report=stop)
    lines.clear()
    assert run(how, state=path, report=lines.append) == whole and len(lines) == 2
    assert run(how, state=path, report=lines.append) == whole and len(lines) == 2
    with pytest.raises(UserError, match="other settings"):
        run(dataclasses.replace(how, n_best=11), state=path)


def test_tuning_stops_when_nothing_is_gained():
    source, references, table = development()
    how = Tuning(n_best=2, iterations=9, patience=1, least_gain=100.0, epochs=1)
    assert len(tune(source, references, table, MODEL, SEARCH, how)) == 2


@pytest.mark.parametrize(
    ("source", "references", "how", "message"),
    [
        ([["the"]], [], Tuning(), "1 sentences and 0 references"),
        ([[]], [[]], Tuning(), "nothing to tune on"),
        ([["the"]], [["das"]], Tuning(n_best=1), "tuning n_best 1: 2 or more"),
        ([["the"]], [["das"]], Tuning(largest_step=0.0), "largest_step 0: above 0"),
    ],
)
def test_what_cannot_be_tuned_is_refused(source, references, how, message):
    with pytest.raises(UserError, match=message):
        tune(source, references, random_table(8), MODEL, SEARCH, how)
