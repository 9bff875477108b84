"""The joint model against loops in double precision that take it from its equations."""

import collections

import dictionaries
import numpy as np

from research.statistical.bitext import make_bitext
from research.statistical.em import device_mesh
from research.statistical.joint import Joint, train

MODEL = Joint(independent_iterations=3, chain_iterations=0, lexical_prior=0.02, empty_prior=0.05, empty=0.2)


def independent_by_loops(source, target, model):
    """CVB0 with agreement where positions are uniform; returns the products of posteriors, pair by pair."""
    V, U = (len({word for sentence in side for word in sentence}) for side in (target, source))
    own = [np.zeros((len(e), len(f))) for e, f in zip(source, target, strict=True)]
    none_f, none_e = ([np.zeros(len(sentence)) for sentence in side] for side in (target, source))
    for _ in range(model.independent_iterations):
        pairs, of_e, of_f, free_f, free_e = (collections.Counter() for _ in range(5))
        for k, (e, f) in enumerate(zip(source, target, strict=True)):
            for i, a in enumerate(e):
                free_e[a] += none_e[k][i]
                for j, b in enumerate(f):
                    pairs[a, b] += own[k][i, j]
                    of_e[a] += own[k][i, j]
                    of_f[b] += own[k][i, j]
            for j, b in enumerate(f):
                free_f[b] += none_f[k][j]

        def posterior(weights, words, mine, free, size, p0=model.empty, b=model.empty_prior):
            """Of the rows of ``weights`` for each column, and of the empty word."""
            nothing = np.array(
                [
                    (free[w] - own_part + b) / (sum(free.values()) - own_part + b * size)
                    for w, own_part in zip(words, mine, strict=True)
                ]
            )
            weights = (1 - p0) / len(weights) * weights
            total = weights.sum(axis=0) + p0 * nothing
            return weights / total, p0 * nothing / total

        new = []
        for k, (e, f) in enumerate(zip(source, target, strict=True)):
            a = model.lexical_prior
            count = np.array([[pairs[x, y] for y in f] for x in e]) - own[k] + a
            given_e = count / (np.array([of_e[x] for x in e])[:, None] - own[k] + a * V)
            given_f = count / (np.array([of_f[y] for y in f])[None, :] - own[k] + a * U)
            p, empty_f = posterior(given_e, f, none_f[k], free_f, V)
            q, empty_e = posterior(given_f.T, e, none_e[k], free_e, U)
            new.append((p * q.T, empty_f, empty_e))
        own, none_f, none_e = zip(*new, strict=True)
    return own


def test_against_loops():
    source, target = dictionaries.SOURCE, dictionaries.TARGET
    bitext = make_bitext(source, target)
    _, memory = train(bitext, MODEL, device_mesh(1))
    expected = independent_by_loops(source, target, MODEL)
    for pair, given in enumerate(bitext.order):
        part = memory.links[bitext.cell_starts[pair] : bitext.cell_starts[pair + 1]]
        # Beliefs are kept to 11 bits, which is 5e-4 of each.
        np.testing.assert_allclose(part, expected[given].ravel(), rtol=4e-3, atol=1e-5)


def test_a_rare_word_does_not_confirm_itself():
    """Plain EM drives hapaxes to whatever they are beside; their own counts are not evidence here."""
    source = [["x", "a"], ["a"], ["a", "b"], ["b"]]
    target = [["y", "c"], ["c"], ["c", "d"], ["d"]]
    bitext = make_bitext(source, target)
    model = Joint(independent_iterations=6, chain_iterations=3)
    state, memory = train(bitext, model, device_mesh(1))
    pair = bitext.order.tolist().index(0)
    links = memory.links[bitext.cell_starts[pair] :][:4].reshape(2, 2).astype(float)
    # Their neighbours are each other's, so the hapaxes are left for each other.
    assert links[1, 1] > 0.6 and links[0, 0] > 5 * links[0, 1] and links[0, 0] > 5 * links[1, 0]
    np.testing.assert_allclose(state.counts.source.sum(), memory.links.astype(np.float32).sum(), rtol=1e-5)
    np.testing.assert_allclose(state.counts.pairs.sum(), memory.links.astype(np.float32).sum(), rtol=1e-5)
    assert float(state.counts.pairs[-1]) == float(state.counts.target[-1]) == 0
