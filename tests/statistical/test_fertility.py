"""Models 3, 4 and 5 against plain dictionaries: probabilities, gains of moves and swaps, iterations of EM."""

import dataclasses
import itertools

import dictionaries
import fertility_by_loops as loops
import numpy as np
import pytest

from research.statistical.bitext import make_bitext
from research.statistical.directional import Decision, Direction
from research.statistical.distortion import Absolute, Classes, Relative, tokens_of
from research.statistical.fertility import (
    MOST,
    Fertility,
    Model,
    Parameters,
    Stage,
    batches,
    expect,
    log_probability,
    logarithms,
    scores_of,
)
from research.statistical.fertility_training import longest_sources, train
from research.statistical.iterations import Progress
from research.statistical.neighbourhood import Candidates, climb, neighbours, pairs_of
from research.statistical.vacancies import Vacancies

SOURCE = [*dictionaries.SOURCE, ["a", "house", "the", "house", "the", "flower", "and", "a"], ["flower"]]
TARGET = [
    *dictionaries.TARGET,
    ["la", "maison", "la", "la", "fleur", "et", "une", "une", "une"],
    ["la", "la", "la", "la", "la"],
]
P1 = 0.1
KINDS = {
    "model3": (Absolute(smoothing=0.1), loops.events3),
    "model4": (Relative(smoothing=0.1), loops.events4),
    "model5": (Vacancies(Relative(smoothing=0.1), smoothing=0.1), loops.events5),
}


@pytest.fixture(scope="module", params=[False, True], ids=["forward", "backward"])
def direction(request):
    return Direction(make_bitext(SOURCE, TARGET), request.param)


def sides_of(direction):
    """Source and target sentences in the order of the bitext, as the direction reads them."""
    sides = (TARGET, SOURCE) if direction.backward else (SOURCE, TARGET)
    return [[side[k] for k in direction.bitext.order] for side in sides]


def classes_of(direction):
    """Some classes, by word and for the dictionaries."""
    bitext = direction.bitext
    sides = (bitext.target, bitext.source) if direction.backward else (bitext.source, bitext.target)
    arrays = [np.arange(len(side.words) + 1, dtype=np.int32) % 3 for side in sides]
    arrays = [np.append(part[:-1], 0).astype(np.int32) for part in arrays]
    names = [
        dict(zip(side.words, part.tolist(), strict=False)) for side, part in zip(sides, arrays, strict=True)
    ]
    return Classes(*arrays), names


def random_model(direction, kind, seed=0):
    """A model of random tables, and the same as dictionaries."""
    random = np.random.default_rng(seed)
    distortion, events = KINDS[kind]
    classes, names = classes_of(direction)
    layout = distortion.layout(longest_sources(direction), classes)
    bitext = direction.bitext
    given, words = direction.entry_word()
    made = (bitext.source if direction.backward else bitext.target).words
    e_words = (bitext.target if direction.backward else bitext.source).words
    other = bitext.entry_source if direction.backward else bitext.entry_target
    parameters = Parameters(
        random.uniform(0.01, 1, bitext.entries),
        random.uniform(0.01, 1, len(made)),
        random.uniform(0.01, 1, (words, MOST + 1)),
        random.uniform(0.01, 1, layout.size * (2 if kind == "model5" else 1)),
    )
    t = {(made[f], e_words[e]): p for f, e, p in zip(other, given, parameters.pairs, strict=True)}
    t |= {(word, None): p for word, p in zip(made, parameters.empty, strict=True)}
    n = {(phi, e_words[e]): parameters.fertility[e, phi] for e in range(words) for phi in range(MOST + 1)}
    tables = {"t": t, "n": n, "d": TableOf(distortion, layout, parameters.distortion)}
    tables["w"] = TableOf(distortion, layout, parameters.distortion[layout.size :])
    model = Model(Fertility(empty=P1), distortion, layout, parameters)
    return model, tables, events, names


class TableOf:
    """The table of places as a dictionary, by the layouts' docstrings."""

    def __init__(self, distortion, layout, table):
        self.distortion, self.layout, self.table = distortion, layout, table

    def get(self, event, default):
        layout = self.layout
        if event[0] == "d":
            _, i, j, J = event
            return self.table[layout.start[J] + (i - 1) * J + j - 1]
        if event[0] == "first":
            _, before, word, distance = event
            before = layout.source_classes - 1 if before == "begin" else before
            row = before * layout.target_classes + word
            return self.table[row * layout.width + distance + layout.reach]
        return self.table[layout.heads + event[1] * (layout.reach + 1) + event[2]]


def random_alignments(pairs, seed):
    """One for each pair, possible ones."""
    random = np.random.default_rng(seed)
    found = np.zeros(pairs.target.shape, np.int64)
    for k, (I, J) in enumerate(zip(pairs.source_length, pairs.target_length, strict=True)):  # noqa: E741
        while True:
            found[k, :J] = random.integers(0, I + 1, J)
            if 2 * (found[k, :J] == 0).sum() <= J and max(np.bincount(found[k, :J])[1:], default=0) <= MOST:
                break
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_probability_of_an_alignment_and_of_its_neighbours(direction, kind):
    model, tables, events, names = random_model(direction, kind)
    log = logarithms(model)
    sources, targets = sides_of(direction)
    for block, pairs in batches(direction):
        scores = scores_of(model, log, pairs)
        for seed in range(4):
            alignment = random_alignments(pairs, seed)
            candidates = Candidates(np.arange(len(alignment)), alignment)
            values = log_probability(model, log, pairs, candidates, tokens_of(pairs, candidates))
            steps = neighbours(scores, alignment)
            for k, value in enumerate(values):
                e, f = sources[block.first + k], targets[block.first + k]
                a = tuple(alignment[k, : len(f)].tolist())
                expected = loops.probability(e, f, a, tables, events, names, P1)
                assert value == pytest.approx(np.log(expected), abs=1e-9)
                if kind != "model5":  # whose neighbours are Model 4's
                    check_steps(
                        steps,
                        k,
                        e,
                        f,
                        a,
                        lambda b, e=e, f=f: loops.probability(e, f, b, tables, events, names, P1),
                    )


def check_steps(steps, k, e, f, a, probability):
    J, now = len(f), probability(a)
    for i, j in itertools.product(range(steps.moves.shape[1]), range(steps.moves.shape[2])):
        gain = steps.moves[k, i, j]
        if i > len(e) or j >= J or a[j] == i:
            assert gain == -np.inf
        else:
            check_gain(gain, probability((*a[:j], i, *a[j + 1 :])) / now)
    for gain, x, y in zip(steps.swaps[k], *pairs_of(steps.moves.shape[2]), strict=True):
        if y >= J or a[x] == a[y]:
            assert gain == -np.inf
        else:
            b = list(a)
            b[x], b[y] = b[y], b[x]
            check_gain(gain, probability(tuple(b)) / now)


def check_gain(gain, ratio):
    if ratio == 0:
        assert gain < -5000
    else:
        assert gain == pytest.approx(np.log(ratio), abs=2e-4)


@pytest.mark.parametrize("kind", ["model3", "model4"])
def test_climbing_ends_where_the_dictionaries_do(direction, kind):
    model, tables, events, names = random_model(direction, kind, seed=1)
    log = logarithms(model)
    sources, targets = sides_of(direction)
    for block, pairs in batches(direction):
        start = random_alignments(pairs, 7)
        best, near = climb(scores_of(model, log, pairs), start, cutoff=-3.0)
        for k in range(len(best)):
            e, f = sources[block.first + k], targets[block.first + k]

            def value(b, e=e, f=f):
                return loops.probability(e, f, b, tables, events, names, P1)

            a = loops.climb(tuple(start[k, : len(f)].tolist()), len(e), value)
            assert tuple(best[k, : len(f)].tolist()) == a
            expected = {b for b in [a, *loops.neighbours(a, len(e))] if value(b) > value(a) * np.exp(-3.0)}
            found = [tuple(b[: len(f)].tolist()) for b in near.alignment[near.pair == k]]
            assert set(found) == expected and len(found) == len(expected)


@pytest.mark.parametrize("kind", ["model3", "model4"])
def test_training_is_the_dictionaries(direction, kind):
    """All of it: tables after each iteration, from given alignments and a given lexical table."""
    sources, targets = sides_of(direction)
    classes, names = classes_of(direction)
    model, tables, _, _ = random_model(direction, "model3", seed=2)
    start = [a for _, pairs in batches(direction) for a in start_of(pairs)]
    stages = [Stage(KINDS["model3"][0], 2)] + [Stage(KINDS["model4"][0], 2)] * (kind == "model4")
    decision = Decision(
        np.concatenate([np.array(a) for a in start]).astype(np.int32) - 1, np.zeros(0, np.float16)
    )
    settings = Fertility(empty=P1, smoothing=2.0, cutoff=-np.inf)
    lexical = (model.parameters.pairs, model.parameters.empty)
    said = []
    trained, found = train(
        direction, decision, lexical, stages, classes, settings, progress=Progress(said.append)
    )

    reach = max(map(len, targets))
    width = {"first": 2 * reach + 1, "rest": reach}
    events = loops.events3
    counts = {name: loops.collections.Counter() for name in "tnd"}
    for e, f, a in zip(sources, targets, start, strict=True):
        loops.add(counts, e, f, a, 1.0, events, names)
    now = loops.maximise(counts, 2.0, 0.1, width)
    totals = loops.collections.Counter()
    for (_, given), p in tables["t"].items():
        totals[given] += p
    now["t"] = {key: p / totals[key[1]] for key, p in tables["t"].items()}
    best = start
    for stage, iteration in itertools.product(range(len(stages)), range(2)):
        after = stage + 1 < len(stages) and iteration == 1
        counts, best = loops.expectation(
            sources, targets, best, now, events, names, P1, counted=loops.events4 if after else None
        )
        events = loops.events4 if after else events
        now = loops.maximise(counts, 2.0, 0.1, width)
    check_tables(trained, now, direction)
    assert len(said) == 2 * len(stages)
    # The decision climbs once more, by the last tables.
    _, best = loops.expectation(sources, targets, best, now, events, names, P1)
    assert found.chosen.tolist() == [i - 1 for a in best for i in a]


@pytest.mark.parametrize("kind", ["model3", "model4"])
def test_pegging(kind):
    """Expected links over the neighbourhoods of the best alignments with each of the links."""
    direction = Direction(make_bitext(SOURCE[:3], TARGET[:3]))
    model, tables, events, names = random_model(direction, kind, seed=8)
    pegged = dataclasses.replace(model, settings=Fertility(empty=P1, cutoff=-np.inf, pegging=True))
    sources, targets = sides_of(direction)
    for block, pairs in batches(direction):
        start = random_alignments(pairs, 9)
        found = expect(pegged, logarithms(pegged), pairs, start, None)
        for k in range(len(start)):
            e, f = sources[block.first + k], targets[block.first + k]

            def value(b, e=e, f=f):
                return loops.probability(e, f, b, tables, events, names, P1)

            near = loops.pegged(tuple(start[k, : len(f)].tolist()), len(e), value)
            total = sum(map(value, near))
            links = np.zeros((len(e) + 1, len(f)))
            for b in near:
                links[b, range(len(f))] += value(b) / total
            np.testing.assert_allclose(found.links[k, : len(e) + 1, : len(f)], links, atol=1e-9)
            assert tuple(found.best[k, : len(f)].tolist()) == max(near, key=value)


@pytest.mark.parametrize("kind", KINDS)
def test_more_words_than_any_fertility(kind):
    """One word beside forty: no alignment is possible, yet nothing is lost or not finite."""
    direction = Direction(make_bitext([["a"], ["a", "b"]], [["x"] * 40, ["x", "y"]]))
    decision = Decision(np.zeros(42, np.int32), np.zeros(0, np.float16))
    entries = direction.bitext.entries
    classes = Classes(np.zeros(3, np.int32), np.zeros(3, np.int32))
    stages = [Stage(KINDS[kind][0], 2)]
    model, found = train(direction, decision, (np.full(entries, 0.5), np.full(2, 0.5)), stages, classes)
    assert all(np.isfinite(part).all() for part in model.parameters)
    assert found.chosen.min() >= -1 and found.chosen.max() <= 1


def test_nothing_is_lost_by_model_5(direction):
    """Whatever the fertilities are, the probabilities of all placements of the words sum to one."""
    model, _, _, _ = random_model(direction, "model5", seed=4)
    _, pairs = next(batches(direction))
    row = int(np.argmin(np.abs(pairs.target_length - 5) + 9 * (pairs.source_length < 3)))
    I, J = int(pairs.source_length[row]), int(pairs.target_length[row])  # noqa: E741
    # With one class of target words, where they go does not depend on which they are.
    layout = model.layout._replace(classes=model.layout.classes._replace(target=np.zeros(99, np.int32)))
    totals = loops.collections.Counter()
    alignments = np.array(list(itertools.product(range(min(I, 3) + 1), repeat=J)))
    padded = np.zeros((len(alignments), pairs.target.shape[1]), np.int64)
    padded[:, :J] = alignments
    candidates = Candidates(np.full(len(padded), row), padded)
    tokens = tokens_of(pairs, candidates)
    logs = model.distortion.log_probability(layout, model.parameters.distortion, tokens)
    placed = np.exp(np.bincount(tokens.candidate, np.where(tokens.position > 0, logs, 0.0)))
    for alignment, probability in zip(alignments, placed, strict=True):
        totals[tuple(np.bincount(alignment, minlength=4).tolist())] += probability
    assert len(totals) >= 20
    assert list(totals.values()) == pytest.approx([1.0] * len(totals), abs=1e-9)


def test_model_5_weights_are_counts_over_exposures(direction):
    """One step of the estimate, and climbing by Model 5 from there, against dictionaries."""
    model, tables, events, names = random_model(direction, "model5", seed=5)
    sources, targets = sides_of(direction)
    layout, size = model.layout, model.layout.size
    counted, expected, exposed = np.zeros(3 * size), loops.collections.Counter(), loops.collections.Counter()
    for block, pairs in batches(direction):
        alignment = random_alignments(pairs, 6)
        candidates = Candidates(np.arange(len(alignment)), alignment)
        tokens = tokens_of(pairs, candidates)
        weight = np.where(tokens.position > 0, 0.5 + tokens.candidate, 0.0)
        counted += model.distortion.count(layout, model.parameters.distortion, tokens, weight)
        for k, (e, f) in enumerate(zip(sources[block.first :], targets[block.first :], strict=True)):
            for event, choices in events(e, f, tuple(alignment[k, : len(f)].tolist()), names):
                expected[event] += 0.5 + k
                total = sum(tables["w"].get(other, None) for other in choices)
                for other in choices:
                    exposed[other] += (0.5 + k) / total
    counts, exposures = (TableOf(model.distortion, layout, part) for part in np.split(counted, 3)[1:])
    for event, value in exposed.items():
        assert counts.get(event, None) == pytest.approx(expected[event], abs=1e-9)
        assert exposures.get(event, None) == pytest.approx(value, abs=1e-9)
    table = TableOf(model.distortion, layout, model.distortion.normalise(layout, counted)[size:])
    some = next(event for event in expected if event[0] == "rest")
    shares = {event: expected[event] / value for event, value in exposed.items() if event[:-1] == some[:-1]}
    for event, share in shares.items():
        mixed = 0.9 * share / sum(shares.values()) + 0.1 / (layout.reach + 1)
        assert table.get(event, None) == pytest.approx(mixed, abs=1e-9)


def start_of(pairs):
    return [
        tuple(a[:J].tolist()) for a, J in zip(random_alignments(pairs, 3), pairs.target_length, strict=True)
    ]


def check_tables(trained, expected, direction):
    bitext, parameters = direction.bitext, trained.parameters
    given, _ = direction.entry_word()
    made = (bitext.source if direction.backward else bitext.target).words
    e_words = (bitext.target if direction.backward else bitext.source).words
    other = bitext.entry_source if direction.backward else bitext.entry_target
    t = [expected["t"].get((made[f], e_words[e]), 0.0) for f, e in zip(other, given, strict=True)]
    np.testing.assert_allclose(parameters.pairs, t, atol=1e-6)
    np.testing.assert_allclose(np.bincount(given, parameters.pairs), 1, atol=1e-9)
    np.testing.assert_allclose(parameters.empty, [expected["t"].get((w, None), 0.0) for w in made], atol=1e-6)
    n = [[expected["n"][phi, word] for phi in range(MOST + 1)] for word in e_words]
    np.testing.assert_allclose(parameters.fertility, n, atol=1e-6)
    np.testing.assert_allclose(parameters.fertility.sum(axis=1), 1, atol=1e-9)
    table = TableOf(trained.distortion, trained.layout, parameters.distortion)
    assert expected["d"].counts
    for event in expected["d"].counts:
        assert table.get(event, None) == pytest.approx(expected["d"].get(event, None), abs=1e-6)
