"""Exchange clustering: the gain of every exchange, the objective by its definition, known classes."""

import itertools
import math

import numpy as np
import pytest

from research.statistical.bitext import encode
from research.statistical.word_classes import _Bigrams, _gains, objective, word_classes

RANDOM = np.random.default_rng(0)


def text(sentences=60, words=25):
    return [[f"w{k}" for k in RANDOM.zipf(1.4, RANDOM.integers(1, 9)) % words] for _ in range(sentences)]


def by_definition(sentences, classes):
    """The log-likelihood of the class bigram model, less the part that does not depend on the classes."""
    pairs, totals = {}, {}
    for sentence in sentences:
        path = ["end", *(classes[word] for word in sentence), "end"]
        for c, d in itertools.pairwise(path):
            pairs[c, d] = pairs.get((c, d), 0) + 1
        for c in path[1:-1]:
            totals[c] = totals.get(c, 0) + 1
    return sum(n * math.log(n) for n in pairs.values()) - 2 * sum(n * math.log(n) for n in totals.values())


def test_objective_and_gains():
    sentences = text()
    side = encode(sentences)
    found = RANDOM.integers(0, 4, len(side.words)).astype(np.int64)

    def value(choice):
        return by_definition(sentences, dict(zip(side.words, choice.tolist(), strict=True)))

    assert objective(side, found.astype(np.int32), 4) == pytest.approx(value(found))
    words = np.arange(len(side.words))
    gains = _gains(_Bigrams(side), found, words, 4)
    for word, k in itertools.product(words, range(4)):
        moved = found.copy()
        moved[word] = k
        assert gains[word, k] == pytest.approx(value(moved) - value(found), abs=1e-9)


def test_no_single_exchange_is_better_in_the_end():
    side = encode(text())
    found = word_classes(side, 5, sweeps=100)
    gains = _gains(_Bigrams(side), found.astype(np.int64), np.arange(len(side.words)), 5)
    assert gains.max() < 1e-6 * abs(objective(side, found, 5))


def test_classes_that_are_there():
    """Words that stand in the same places share a class, and others do not."""
    nouns, verbs = (["dog", "cat", "cow", "hen"], ["runs", "eats", "sees"])
    sentences = [
        ["the", RANDOM.choice(nouns), RANDOM.choice(verbs), "a", RANDOM.choice(nouns)] for _ in range(200)
    ]
    side = encode([[str(word) for word in sentence] for sentence in sentences])
    found = dict(zip(side.words, word_classes(side, 4).tolist(), strict=True))
    assert len({found[word] for word in nouns}) == len({found[word] for word in verbs}) == 1
    assert len({found["dog"], found["runs"], found["the"], found["a"]}) == 4


@pytest.mark.parametrize("classes", [1, 3, 50])
def test_small_texts(classes):
    for sentences in ([["a"]], [["a", "a", "a"]], [["a", "b"], ["b"]]):
        found = word_classes(encode(sentences, ["unseen"]), classes)
        assert found.min() >= 0 and found.max() < classes and found.dtype == np.int32
