"""Models 1 and 2 against dictionaries, the HMM against enumeration, and the likelihood of all of them."""

import itertools
import math

import dictionaries
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.statistical import lexicon
from research.statistical.bitext import make_bitext
from research.statistical.directional import Direction, Stage, best_links, train
from research.statistical.em import device_mesh
from research.statistical.hmm import Chain
from research.statistical.iterations import Progress
from research.statistical.positions import Diagonal, Table, Uniform


@pytest.fixture(scope="module")
def bitext():
    return make_bitext(dictionaries.SOURCE, dictionaries.TARGET)


def likelihoods(direction, schedule, **settings):
    """Trains, and returns the parameters and the log-likelihoods that were reported, not rounded."""
    reported = []
    parameters = train(direction, schedule, progress=Progress(reported.append), **settings)
    values = [float(line.split("log-likelihood ")[1].split()[0]) for line in reported]
    return parameters, [value * len(direction.bitext) for value in values]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("iterations", [1, 5])
def test_model_1_is_the_dictionaries(bitext, backward, iterations):
    source, target = dictionaries.SOURCE, dictionaries.TARGET
    sides = (target, source) if backward else (source, target)
    history = dictionaries.em(*sides, iterations)
    parameters, values = likelihoods(Direction(bitext, backward), [Stage(Uniform(), iterations)])
    check_table(parameters, bitext, backward, history[-1][0])
    np.testing.assert_allclose(values, [value for _, value in history], atol=1e-3)


@pytest.mark.parametrize("iterations", [1, 3])
def test_model_2_is_the_dictionaries(bitext, iterations):
    history = dictionaries.em(dictionaries.SOURCE, dictionaries.TARGET, 2, model2=iterations)
    schedule = [Stage(Uniform(), 2), Stage(Table(of_target_length=True), iterations)]
    parameters, values = likelihoods(Direction(bitext), schedule)
    check_table(parameters, bitext, False, history[-1][0])
    np.testing.assert_allclose(values, [value for _, value in history], atol=1e-3)


def check_table(parameters, bitext, backward, expected):
    e = [bitext.source.words[k] for k in bitext.entry_source]
    f = [bitext.target.words[k] for k in bitext.entry_target]
    keys = list(zip(e, f, strict=True) if backward else zip(f, e, strict=True))
    table = np.asarray(parameters.lexicon.pairs)[:-1]
    np.testing.assert_allclose(table, [expected[key] for key in keys], atol=1e-6)
    words = (bitext.source if backward else bitext.target).words
    np.testing.assert_allclose(
        parameters.lexicon.empty[:-1], [expected[word, None] for word in words], atol=1e-6
    )
    given = bitext.entry_target if backward else bitext.entry_source
    np.testing.assert_allclose(np.bincount(given, table), 1, atol=1e-5)  # distributions, all of them
    assert float(parameters.lexicon.empty.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("positions", [Table(), Diagonal(), Chain(empty=0.2, reach=3, longest=8)])
def test_likelihood_never_decreases(bitext, positions):
    # The first value of the second model is of its initial positions, which may be worse.
    _, values = likelihoods(Direction(bitext), [Stage(Uniform(), 4), Stage(positions, 5)])
    for part in (values[:4], values[4:]):
        assert all(after >= before - 1e-3 for before, after in itertools.pairwise(part)), values


def chain_case(seed, lengths, observed, reach):
    random = np.random.default_rng(seed)
    weights = random.uniform(0.1, 1, 2 * reach + 1)
    emission = random.uniform(0.05, 1, (len(lengths), max(lengths), max(observed)))
    empty = random.uniform(0.05, 1, (len(lengths), max(observed)))
    for k, (n, m) in enumerate(zip(lengths, observed, strict=True)):
        emission[k, n:] = emission[k, :, m:] = empty[k, m:] = 0
    return weights, emission, empty


@pytest.mark.parametrize("uniform", [0.0, 0.3])
def test_chain_against_all_alignments(uniform):
    lengths, observed, reach, p0 = (3, 1, 2, 3), (3, 4, 1, 4), 2, 0.3
    weights, emission, empty = chain_case(0, lengths, observed, reach)
    chain = Chain(empty=p0, reach=reach, uniform=uniform, longest=4)
    sizes = [jnp.array(size, jnp.int32) for size in (lengths, observed)]
    got = jax.jit(chain.posteriors)(
        *(jnp.asarray(x, jnp.float32) for x in (weights, emission, empty)), *sizes
    )
    widths, departures, log_likelihood = np.zeros(2 * reach + 1), np.zeros((5, 5)), 0.0
    for k, (n, m) in enumerate(zip(lengths, observed, strict=True)):
        links, jumps, total = dictionaries.chain_by_enumeration(
            emission[k, :n, :m], empty[k], lambda d: weights[max(-reach, min(reach, d)) + reach], p0, uniform
        )
        log_likelihood += math.log(total)
        expected = np.array([[links.get((i, j), 0) for j in range(m)] for i in range(n + 1)])
        np.testing.assert_allclose(got.links[k, :n, :m], expected[1:], atol=2e-6)
        np.testing.assert_allclose(got.empty[k, :m], expected[0], atol=2e-6)
        for (start, end), count in jumps.items():
            widths[max(-reach, min(reach, end - start)) + reach] += count
            departures[n, start] += count
    np.testing.assert_allclose(got.statistics.widths, widths, atol=1e-5)
    np.testing.assert_allclose(got.statistics.departures, departures, atol=1e-5)
    assert float(got.log_likelihood) == pytest.approx(log_likelihood, abs=1e-4)
    # What is padded is 0.
    assert not np.asarray(got.links[1, 1:]).any() and not np.asarray(got.links[2, :, 1:]).any()


def test_jump_weights_climb_to_the_maximum():
    """The M-step ends where no weight can be moved for the better; a plain share of counts does not."""
    reach, longest = 2, 4
    random = np.random.default_rng(1)
    statistics = Chain(reach=reach, longest=longest).statistics(jnp.ones(2 * reach + 1))
    # Jumps from everywhere in sentences of 1..4 words, drawn at random.
    widths, departures = np.zeros(2 * reach + 1), np.zeros((longest + 1, longest + 1))
    for n, start, end in ((k, s, t) for k in range(1, 5) for s in range(k + 1) for t in range(1, k + 1)):
        count = random.uniform(1, 5)
        widths[max(-reach, min(reach, end - start)) + reach] += count
        departures[n, start] += count
    statistics = statistics._replace(
        widths=jnp.asarray(widths, jnp.float32), departures=jnp.asarray(departures, jnp.float32)
    )

    def objective(s):
        value = float((widths * np.log(s)).sum())
        for n, start in itertools.product(range(1, longest + 1), range(longest + 1)):
            z = sum(s[max(-reach, min(reach, end - start)) + reach] for end in range(1, n + 1))
            value -= departures[n, start] * math.log(z)
        return value

    chain = Chain(reach=reach, longest=longest)
    maximise = jax.jit(chain.maximise)
    weights, values = jnp.ones(2 * reach + 1, jnp.float32), []
    for _ in range(60):
        values.append(objective(np.asarray(weights, np.float64)))
        weights = maximise(weights, statistics)
    assert all(after >= before - 1e-4 for before, after in itertools.pairwise(values))
    best = np.asarray(weights, np.float64)
    for k in range(len(best)):
        for factor in (0.97, 1.03):
            moved = best.copy()
            moved[k] *= factor
            assert objective(moved) < values[-1] + 1e-6
    assert objective(widths) < values[-1] - 0.01  # a plain share of the counts is not the maximum


def test_variational_prior_is_sparse_and_below_one(bitext):
    counts = lexicon.uniform(bitext, len(bitext.target.words))
    counts = counts._replace(pairs=counts.pairs.at[:-1].set(jnp.linspace(0.01, 3, bitext.entries)))
    given = jnp.asarray(bitext.entry_source)
    maximise = jax.jit(lexicon.maximise, static_argnums=(2, 3))
    plain, sparse = (maximise(counts, given, len(bitext.source.words), prior) for prior in (0.0, 0.01))
    assert (np.bincount(bitext.entry_source, sparse.pairs[:-1]) < 1).all()
    rare = int(np.argmin(counts.pairs[:-1]))
    assert float(sparse.pairs[rare]) < 1e-6 < float(plain.pairs[rare])
    assert float(sparse.pairs[-1]) == float(plain.pairs[-1]) == 0


def test_links_of_both_directions(bitext):
    pair = bitext.order.tolist().index(1)  # the blue house = la maison bleue
    for backward in (False, True):
        direction = Direction(bitext, backward)
        parameters = train(direction, [Stage(Uniform(), 10)], mesh=device_mesh(1))
        assert best_links(parameters, Uniform(), direction)[pair] >= {
            (1, 2),
            (2, 1),
        }  # la may be the empty word's
