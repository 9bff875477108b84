"""Beam search against a plain Python one; greedy, forced decoding, batch composition, limits."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.masks import Tokens
from research.errors import UserError
from research.inference.beam import DEAD, Beam, beam_search
from research.inference.soft_alignment import attention_of
from research.models.seq2seq import Seq2Seq
from research.models.transformer import Transformer

VOCABULARY, END, SLOTS = 7, 0, 6
MODEL = Transformer(
    vocabulary=VOCABULARY,
    layers=1,
    width=8,
    heads=2,
    kv_heads=1,
    feed_forward_width=8,
    dropout=0.0,
    engine="reference",
)
LSTM = Seq2Seq(vocabulary=VOCABULARY, layers=1, width=8, dropout=0.0)
SOURCE = np.array([[3, 4, 5, 0], [6, 2, 0, 0], [1, 1, 1, 1]], np.int32)
LENGTHS = np.array([4, 3, 2], np.int32)
LIMITS = np.array([6, 6, 4], np.int32)


@functools.cache
def parameters(model=MODEL):
    module = model.build()
    params = jax.jit(module.init)(jax.random.key(0), jnp.asarray(SOURCE), jnp.asarray(SOURCE))["params"]
    # Sharper than at initialisation, so that the order of hypotheses is no matter of rounding.
    return jax.tree.map(lambda x: x * 3.0, params)


@functools.cache
def full(model):
    """Log-probabilities of the token after each prefix, computed without a cache."""
    module = model.build()

    def run(source, length, tokens):
        place = Tokens.of_lengths(length[None], SOURCE.shape[1])
        logits = module.apply({"params": parameters(model)}, source[None], tokens[None], place)
        return jax.nn.log_softmax(logits[0])

    return jax.jit(run)


@functools.cache
def next_logs(row, prefix, model=MODEL):
    tokens = np.full(SLOTS, END, np.int32)
    tokens[1 : len(prefix) + 1] = prefix
    out = full(model)(jnp.asarray(SOURCE[row]), jnp.asarray(LENGTHS[row]), jnp.asarray(tokens))
    return np.asarray(out, np.float64)[len(prefix)]


@functools.cache
def telling(model):
    return attention_of(model.decoder(0))


def coverage(row, tokens, model):
    """GNMT's penalty (Wu et al., 2016, eq. 15) of the attention with which each of the tokens was said."""
    read = np.full((1, SLOTS), END, np.int32)
    read[0, 1 : len(tokens)] = tokens[:-1]
    arrays = (jnp.asarray(x) for x in (SOURCE[row : row + 1], LENGTHS[row : row + 1], read))
    weights = np.asarray(telling(model)(parameters(model), *arrays), np.float64)[0]
    received = weights[: len(tokens), : LENGTHS[row]].sum(0)
    return np.log(np.minimum(received, 1.0)).sum()


def plain(row, width, alpha, limit, beta=0.0, model=MODEL):
    """Returns [(score, log-probability, tokens)] by the rule, one hypothesis at a time."""

    def score(total, tokens):
        return total / ((5 + len(tokens)) / 6) ** alpha + (beta and beta * coverage(row, tokens, model))

    alive, ended = [((), 0.0)], []
    for count in range(1, limit + 1):
        grown = []
        for prefix, total in alive:
            logs = next_logs(row, prefix, model)
            tokens = [END] if count == limit else range(VOCABULARY)
            grown += [((*prefix, token), total + logs[token]) for token in tokens]
        grown = sorted(grown, key=lambda h: -h[1])[: 2 * width]
        ended += [
            (score(total, tokens), total, tokens) for tokens, total in grown[:width] if tokens[-1] == END
        ]
        ended = sorted(ended, key=lambda h: -h[0])[:width]
        alive = [h for h in grown if h[0][-1] != END][:width]
        best = max((total / ((5 + count) / 6) ** alpha for _, total in alive), default=-np.inf)
        if len(ended) == width and best <= ended[-1][0]:
            break
    return ended


def test_hypotheses_that_end_early_do_not_crowd_out_the_right_one():
    class Sure:
        """Says 1, 2, 3, 4 and ends, each with probability 0.9, and else ends at once."""

        def encode(self, params, source, place):
            return None

        def empty_cache(self, batch, slots):
            return None

        def step(self, params, tokens, memory, place, cache):
            wanted = jnp.where(place.positions[:, 0] < 4, place.positions[:, 0] + 1, END)
            chances = 0.9 * jax.nn.one_hot(wanted, VOCABULARY) + 0.09 * jax.nn.one_hot(END, VOCABULARY)[None]
            return jnp.log(chances + 0.01 / VOCABULARY), None

        def apart(self, params, cache):
            return params, cache

        def take_rows(self, cache, rows):
            return None

        def attention(self, cache):
            return None

    arrays = (jnp.asarray(x) for x in (SOURCE, LENGTHS, LIMITS + 2))
    found = beam_search(Sure(), Beam(2, 1.0), slots=8, end=END)(None, *arrays)
    assert found.tokens[:, 0, :6].tolist() == [[1, 2, 3, 4, END, END]] * 3


def search(width, alpha, source=SOURCE, lengths=LENGTHS, limits=LIMITS, beta=0.0, model=MODEL):
    decoder = model.decoder(0 if beta else None)
    run = beam_search(decoder, Beam(width, alpha, beta), slots=SLOTS, end=END)
    arrays = (jnp.asarray(x) for x in (source, lengths, limits))
    return jax.tree.map(np.asarray, run(parameters(model), *arrays))


@pytest.mark.parametrize(
    ("width", "alpha", "beta", "model"),
    [
        (1, 0.0, 0.0, MODEL),
        (3, 0.0, 0.0, MODEL),
        (3, 1.0, 0.0, MODEL),
        (7, 0.6, 0.0, MODEL),
        pytest.param(3, 0.6, 2.0, MODEL, id="coverage-transformer"),
        pytest.param(3, 0.6, 2.0, LSTM, id="coverage-lstm"),
    ],
)
def test_equals_a_plain_beam_search(width, alpha, beta, model):
    found, changed = search(width, alpha, beta=beta, model=model), False
    for row, limit in enumerate(LIMITS):
        wanted = plain(row, width, alpha, limit, beta, model)
        assert wanted
        for i, (score, total, tokens) in enumerate(wanted):
            filled = [*tokens, *[END] * (SLOTS - len(tokens))]
            assert found.tokens[row, i].tolist() == filled
            np.testing.assert_allclose(found.scores[row, i], score, rtol=2e-5)
            np.testing.assert_allclose(found.log_probabilities[row, i], total, rtol=2e-5)
        assert (found.scores[row, len(wanted) :] == np.float32(DEAD)).all()
        changed |= [h[2] for h in wanted] != [h[2] for h in plain(row, width, alpha, limit, 0.0, model)]
    assert changed == (beta > 0)  # the penalty matters


def test_a_beam_of_one_is_greedy():
    found = search(1, 0.0)
    for row, limit in enumerate(LIMITS):
        tokens = []
        while not tokens or (tokens[-1] != END and len(tokens) < limit):
            logs = next_logs(row, tuple(tokens))
            tokens.append(END if len(tokens) + 1 == limit else int(logs.argmax()))
        assert found.tokens[row, 0, : len(tokens)].tolist() == tokens


def test_a_wide_beam_finds_the_best_of_all_short_targets():
    # 1 + 6 + 36 targets of at most 3 tokens, compared by probability alone: a beam as wide as the vocabulary
    # cannot miss the best.
    limits = np.full(3, 3, np.int32)
    found = search(7, 0.0, limits=limits)
    for row in range(3):
        every = [(*body, END) for n in range(3) for body in itertools.product(range(1, VOCABULARY), repeat=n)]
        totals = {t: sum(next_logs(row, t[:i])[t[i]] for i in range(len(t))) for t in every}
        best = max(totals, key=totals.get)
        assert found.tokens[row, 0, : len(best)].tolist() == list(best)


def test_other_rows_and_padding_change_nothing():
    together = search(3, 1.0)
    for row in range(3):
        alone = search(3, 1.0, *(np.repeat(x[row : row + 1], 3, axis=0) for x in (SOURCE, LENGTHS, LIMITS)))
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-5)
    noise = np.where(np.arange(4)[None] < LENGTHS[:, None], SOURCE, 5).astype(np.int32)
    np.testing.assert_array_equal(search(3, 1.0, noise).scores, together.scores)


def test_bad_beams_are_one_line():
    with pytest.raises(UserError, match="a beam of 8 is wider than the vocabulary of 7 tokens"):
        search(8, 0.0)
    with pytest.raises(UserError, match="a coverage penalty needs a model that tells its attention"):
        beam_search(MODEL.decoder(), Beam(2, coverage_penalty=0.2), slots=SLOTS, end=END)(
            parameters(), *(jnp.asarray(x) for x in (SOURCE, LENGTHS, LIMITS))
        )
    for wrong in ({"width": 0}, {"length_penalty": -1.0}, {"coverage_penalty": -0.1}):
        with pytest.raises(UserError):
            Beam(**wrong)
