"""Kneser-Ney against a dictionary implementation of the textbook's formulas, and as a distribution."""

import collections
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.stream import TokenStream
from research.evaluation.ngram import (
    KneserNey,
    baselines,
    discounts,
    ngram_bits_per_byte,
    ngrams,
    xz_bits_per_byte,
)

VOCABULARY = 7


def make_stream(documents):
    """Lays out documents over tokens 1..6, with <eot> 0; 3 bytes per token, say."""
    tokens, starts = [], []
    for document in documents:
        starts.append(len(tokens))
        tokens += [0, *document]
    size = 3 * sum(map(len, documents))
    return TokenStream(np.array([*tokens, 0], np.uint16), np.array(starts, np.int64), size)


class Dictionary:
    """Interpolated modified Kneser-Ney with dictionaries, after Chen & Goodman (1999), section 3."""

    def __init__(self, documents, order):
        self.order = order
        grams = collections.Counter()
        for document in documents:
            padded = [0] * (order - 1) + list(document) + [0]
            grams.update(tuple(padded[i : i + order]) for i in range(len(document) + 1))
        self.counts = {order: grams}
        for n in range(order - 1, 0, -1):  # distinct tokens before each n-gram
            self.counts[n] = collections.Counter(gram[1:] for gram in self.counts[n + 1])

    def discount(self, n, count):
        if count == 0:
            return 0
        of = collections.Counter(self.counts[n].values())
        y = of[1] / (of[1] + 2 * of[2]) if of[1] and of[2] else 0.5
        k = min(count, 3)
        if not (of[k] and of[k + 1]):
            return y
        d = k - (k + 1) * y * of[k + 1] / of[k]
        return d if d > 0 else y

    def probability(self, context, token):
        return self._p(tuple(context), token, len(context) + 1)

    def _p(self, context, token, n):
        if n == 0:
            return 1 / VOCABULARY
        counts = {g[-1]: c for g, c in self.counts[n].items() if g[:-1] == context}
        lower = self._p(context[1:], token, n - 1)
        if not counts:
            return lower
        total = sum(counts.values())
        c = counts.get(token, 0)
        gamma = sum(self.discount(n, c) for c in counts.values()) / total
        return (c - self.discount(n, c)) / total + gamma * lower


DOCUMENTS = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=12), min_size=1, max_size=12)


@given(documents=DOCUMENTS, order=st.sampled_from([1, 2, 3]))
def test_against_dictionaries_for_all_contexts(documents, order):
    model = KneserNey(make_stream(documents), order, VOCABULARY)
    contexts = np.array(list(itertools.product(range(VOCABULARY), repeat=order - 1)), np.int64)
    contexts = contexts.reshape(VOCABULARY ** (order - 1), order - 1)
    plain = Dictionary(documents, order)
    for context in contexts[:: max(len(contexts) // 12, 1)]:
        everything = np.repeat(context[None], VOCABULARY, axis=0)
        got = model.probabilities(everything, np.arange(VOCABULARY))
        np.testing.assert_allclose(
            got, [plain.probability(context, w) for w in range(VOCABULARY)], rtol=1e-10
        )
    # Token 6 is never seen, so contexts with it are not either: all sum to one, and all have some mass.
    tokens = np.tile(np.arange(VOCABULARY), len(contexts))
    p = model.probabilities(np.repeat(contexts, VOCABULARY, axis=0), tokens)
    assert (p > 0).all()
    np.testing.assert_allclose(p.reshape(-1, VOCABULARY).sum(axis=1), 1, rtol=1e-10)


@given(train=DOCUMENTS, valid=DOCUMENTS, order=st.sampled_from([1, 2, 3]))
def test_bits_per_byte_against_dictionaries(train, valid, order):
    plain = Dictionary(train, order)
    bits = 0.0
    for document in valid:
        padded = [0] * (order - 1) + document + [0]
        for i in range(len(document) + 1):
            bits -= math.log2(plain.probability(padded[i : i + order - 1], padded[i + order - 1]))
    stream = make_stream(valid)
    got = ngram_bits_per_byte(make_stream(train), stream, order, VOCABULARY)
    assert got == pytest.approx(bits / stream.bytes, rel=1e-10)


def test_contexts_do_not_cross_documents():
    contexts, targets = ngrams(make_stream([[1, 2], [3]]), 3)
    assert contexts.tolist() == [[0, 0], [0, 1], [1, 2], [0, 0], [0, 3]]
    assert targets.tolist() == [1, 2, 0, 3, 0]


def test_discounts_by_hand():
    # n1..n4 = 8, 4, 2, 1: Y = 8/16; D = 1 - 2Y*4/8, 2 - 3Y*2/4, 3 - 4Y*1/2.
    counts = np.repeat([1, 2, 3, 4, 9], [8, 4, 2, 1, 5])
    np.testing.assert_allclose(discounts(counts), [0, 0.5, 1.25, 2.0])
    np.testing.assert_allclose(discounts(np.array([5, 5])), [0, 0.5, 0.5, 0.5])


def test_random_tokens_cost_their_entropy_and_a_pattern_costs_little():
    random = np.random.default_rng(0)
    noise = [random.integers(1, VOCABULARY, size=20000) for _ in range(2)]
    bits = ngram_bits_per_byte(make_stream(noise[:1]), make_stream(noise[1:]), 2, VOCABULARY) * 3
    assert bits == pytest.approx(math.log2(VOCABULARY - 1), rel=0.01)
    pattern = make_stream([[1, 2, 1, 3] * 500])
    assert ngram_bits_per_byte(pattern, pattern, 3, VOCABULARY) * 3 < 0.05
    assert ngram_bits_per_byte(pattern, pattern, 1, VOCABULARY) * 3 == pytest.approx(1.5, abs=0.05)


def test_bad_order():
    with pytest.raises(ValueError, match="no n-grams of order 4"):
        KneserNey(make_stream([[1]]), 4, VOCABULARY)


def test_xz():
    assert xz_bits_per_byte(b"a" * 100_000) < 0.02
    assert xz_bits_per_byte(np.random.default_rng(0).bytes(50_000)) == pytest.approx(8, rel=0.01)


def test_baselines_in_order(tmp_path):
    (tmp_path / "text.bin").write_bytes(b"abc" * 100)
    stream = make_stream([[1, 2, 3, 1, 2, 4] * 9, [5, 4]])
    prepared = SimpleNamespace(
        tokenizer=SimpleNamespace(vocabulary=VOCABULARY),
        train=stream,
        valid=stream,
        valid_path=tmp_path / "text.bin",
    )
    result = baselines(prepared)
    assert list(result) == ["unigram", "bigram (Kneser-Ney)", "trigram (Kneser-Ney)", "xz -9"]
    assert result["unigram"] > result["bigram (Kneser-Ney)"] > result["trigram (Kneser-Ney)"] > 0


@pytest.mark.slow
def test_three_million_tokens():
    random = np.random.default_rng(0)
    tokens = np.minimum(random.zipf(1.3, size=3_000_000), 2047)
    stream = make_stream([tokens.tolist()])
    assert 0 < ngram_bits_per_byte(stream, stream, 3, 2048) < 4
