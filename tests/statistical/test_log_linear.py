"""Model 6 against all alignments of small sentences, in dictionaries, and its jumps by loops."""

import itertools
import math

import dictionaries
import fertility_by_loops as loops
import numpy as np
import pytest

from research.statistical.bitext import make_bitext
from research.statistical.directional import Direction
from research.statistical.distortion import Classes, Relative, tokens_of
from research.statistical.fertility import MOST, Fertility, Model, Parameters, batches, expect, logarithms
from research.statistical.fertility import log_probability as score
from research.statistical.fertility_training import longest_sources
from research.statistical.log_linear import LogLinear
from research.statistical.neighbourhood import Candidates

SIX = LogLinear(Relative(smoothing=0.1), alpha=0.4, empty=0.3, smoothing=0.1)
P1 = 0.1


@pytest.fixture(scope="module")
def made():
    """A model of random tables of one class, the tables as dictionaries, and its only batch."""
    direction = Direction(make_bitext(dictionaries.SOURCE, dictionaries.TARGET))
    bitext = direction.bitext
    random = np.random.default_rng(0)
    sizes = [len(side.words) for side in (bitext.source, bitext.target)]
    classes = Classes(*(np.zeros(size + 1, np.int32) for size in sizes))
    layout = SIX.layout(longest_sources(direction), classes)
    parameters = Parameters(
        random.uniform(0.01, 1, bitext.entries),
        random.uniform(0.01, 1, sizes[1]),
        random.uniform(0.01, 1, (sizes[0], MOST + 1)),
        random.uniform(0.01, 1, layout.relative.size + layout.jumps),
    )
    e, f = bitext.source.words, bitext.target.words
    entries = zip(bitext.entry_source, bitext.entry_target, parameters.pairs, strict=True)
    t = {(f[k], e[i]): p for i, k, p in entries}
    t |= {(word, None): p for word, p in zip(f, parameters.empty, strict=True)}
    n = {(phi, word): parameters.fertility[k, phi] for k, word in enumerate(e) for phi in range(MOST + 1)}
    places, jumps = np.split(parameters.distortion, [layout.relative.size])
    tables = {"t": t, "n": n, "d": Four(layout.relative, places)}
    weights = {d: jumps[d + layout.longest] for d in range(-layout.longest, layout.longest + 1)}
    names = [dict.fromkeys(words, 0) for words in (e, f)]
    (_, pairs), *others = batches(direction)
    assert not others
    model = Model(Fertility(empty=P1, cutoff=-np.inf), SIX, layout, parameters)
    return model, tables, weights, names, pairs, direction


class Four:
    """Model 4's table as a dictionary."""

    def __init__(self, layout, table):
        self.layout, self.table = layout, table

    def get(self, event, default):
        if event[0] == "first":
            row = (0 if event[1] == 0 else self.layout.source_classes - 1) * self.layout.target_classes
            return self.table[row * self.layout.width + event[3] + self.layout.reach]
        return self.table[self.layout.heads + event[2]]


def hmm(e, f, a, t, weights, p0):
    """P(f, a | e) of the chain, which stays where it was at words of the empty word."""
    value, at = 1.0, 0
    for word, i in zip(f, a, strict=True):
        if i:
            value *= (1 - p0) * weights[i - at] / sum(weights[k - at] for k in range(1, len(e) + 1))
            at = i
        else:
            value *= p0
        value *= loops.look(t, (word, e[i - 1] if i else None))
    return value


def sentences(direction):
    order = direction.bitext.order
    return [[side[k] for k in order] for side in (dictionaries.SOURCE, dictionaries.TARGET)]


def all_of(made):
    """Of each short sentence pair: its number, and all its alignments with their probabilities by loops."""
    _, tables, weights, names, _, direction = made
    for k, (e, f) in enumerate(zip(*sentences(direction), strict=True)):
        if len(f) <= 3:
            found = {}
            for a in itertools.product(range(len(e) + 1), repeat=len(f)):
                four = loops.probability(e, f, a, tables, loops.events4, names, P1)
                found[a] = four * hmm(e, f, a, tables["t"], weights, SIX.empty) ** SIX.alpha
            yield k, found


def test_the_mix_of_all_alignments(made):
    model, _, _, _, pairs, _ = made
    checked = 0
    for k, found in all_of(made):
        possible = [a for a, p in found.items() if p]
        size = len(possible[0])
        alignments = np.zeros((len(possible), pairs.target.shape[1]), np.int64)
        alignments[:, :size] = possible
        candidates = Candidates(np.full(len(possible), k), alignments)
        values = score(model, logarithms(model), pairs, candidates, tokens_of(pairs, candidates))
        expected = np.log([found[a] for a in possible])
        shared = SIX.alpha * size * math.log(SIX.empty)
        np.testing.assert_allclose(values + shared, expected, atol=1e-9)
        checked += len(possible)
    assert checked == 72


def test_expectations_are_over_the_neighbours_of_the_best(made):
    model, _, _, _, pairs, _ = made
    start = np.where(np.arange(pairs.target.shape[1]) < pairs.target_length[:, None], 1, 0)
    found = expect(model, logarithms(model), pairs, start, None)
    for k, probability in all_of(made):
        size = len(next(iter(probability)))
        best = tuple(found.best[k, :size].tolist())
        I = int(pairs.source_length[k])  # noqa: E741
        near = [best, *loops.neighbours(best, I)]
        assert max(near, key=probability.get) == best
        total = sum(map(probability.get, near))
        for i, j in itertools.product(range(I + 1), range(size)):
            share = sum(probability[a] for a in near if a[j] == i) / total
            assert found.links[k, i, j] == pytest.approx(share, abs=1e-6)


def test_jumps_are_counts_over_exposures(made):
    model, _, weights, _, pairs, _ = made
    random = np.random.default_rng(3)
    alignment = random.integers(0, pairs.source_length[:, None] + 1, pairs.target.shape)
    candidates = Candidates(np.arange(len(alignment)), alignment)
    tokens = tokens_of(pairs, candidates)
    share = random.uniform(size=len(alignment))
    weight = np.where(tokens.position > 0, share[tokens.candidate], 0.0)
    counts = SIX.count(model.layout, model.parameters.distortion, tokens, weight)
    table = SIX.normalise(model.layout, counts)[model.layout.relative.size :]
    made_, possible = dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0.0)
    for k, (I, J) in enumerate(zip(pairs.source_length, pairs.target_length, strict=True)):  # noqa: E741
        at = 0
        for i in alignment[k, :J]:
            if i:
                choices = [c - at for c in range(1, I + 1)]
                made_[i - at] += share[k]
                for d in choices:
                    possible[d] += share[k] / sum(weights[c] for c in choices)
                at = i
    expected = np.array([made_[d] / possible[d] if possible[d] else 0.0 for d in sorted(weights)])
    expected = 0.9 * expected / expected.sum() + 0.1 / len(expected)
    np.testing.assert_allclose(table, expected, rtol=1e-9)


def test_longer_sentences_have_jumps(made):
    model, *_ = made
    longer = np.append(np.zeros(12, int), model.layout.longest + 2)
    layout, table = SIX.extended(model.layout, model.parameters.distortion, longer)
    jumps = table[layout.relative.size :]
    assert len(jumps) == layout.jumps == model.layout.jumps + 4 and jumps[0] == jumps[2]
    assert len(table) == layout.relative.size + layout.jumps
