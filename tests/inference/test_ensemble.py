"""Ensembles against a plain beam search on the mean of their members' probabilities."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from research.attention.masks import Tokens
from research.inference.beam import Beam, beam_search
from research.inference.ensemble import Ensemble
from research.models.seq2seq import Seq2Seq, Seq2SeqDecoder
from research.models.transformer import Transformer

VOCABULARY, END, LIMIT, WIDTH = 7, 0, 5, 3
MEMBERS = (
    Transformer(vocabulary=7, layers=1, width=8, heads=2, dropout=0.0, engine="reference"),
    Seq2Seq(vocabulary=7, layers=1, width=8, dropout=0.0),
)
SOURCE = np.array([[3, 4, 5, 0], [6, 2, 0, 0]], np.int32)
LENGTHS = np.array([4, 3], np.int32)


@functools.cache
def parameters():
    tokens = jnp.asarray(SOURCE)
    return tuple(
        jax.tree.map(lambda x: x * 3.0, jax.jit(m.build().init)(jax.random.key(i), tokens, tokens)["params"])
        for i, m in enumerate(MEMBERS)
    )


@functools.cache
def full(member):
    def run(source, length, tokens):
        place = Tokens.of_lengths(length[None], 4)
        logits = (
            MEMBERS[member].build().apply({"params": parameters()[member]}, source[None], tokens[None], place)
        )
        return jax.nn.log_softmax(logits[0])

    return jax.jit(run)


@functools.cache
def next_logs(row, prefix):
    tokens = np.full(LIMIT, END, np.int32)
    tokens[1 : len(prefix) + 1] = prefix
    arrays = (jnp.asarray(SOURCE[row]), jnp.asarray(LENGTHS[row]), jnp.asarray(tokens))
    logs = [np.asarray(full(member)(*arrays), np.float64)[len(prefix)] for member in (0, 1)]
    return np.log((np.exp(logs[0]) + np.exp(logs[1])) / 2)


def plain(row):
    """Returns the [(log-probability, tokens)] of a beam search without length penalty, best first."""
    alive, ended = [((), 0.0)], []
    for count in range(1, LIMIT + 1):
        tokens = [END] if count == LIMIT else range(VOCABULARY)
        grown = [((*p, t), total + next_logs(row, p)[t]) for p, total in alive for t in tokens]
        grown = sorted(grown, key=lambda h: -h[1])[: 2 * WIDTH]
        ended += [(total, h) for h, total in grown[:WIDTH] if h[-1] == END]
        ended = sorted(ended, key=lambda h: -h[0])[:WIDTH]
        alive = [h for h in grown if h[0][-1] != END][:WIDTH]
        if len(ended) == WIDTH and max((total for _, total in alive), default=-np.inf) <= ended[-1][0]:
            break
    return ended


def test_an_ensemble_is_searched_as_the_mean_of_its_members():
    ensemble = Ensemble(tuple(member.decoder() for member in MEMBERS))
    search = beam_search(ensemble, Beam(WIDTH, 0.0), slots=LIMIT, end=END)
    limits = jnp.full(2, LIMIT, jnp.int32)
    found = search(parameters(), jnp.asarray(SOURCE), jnp.asarray(LENGTHS), limits)
    for row in range(2):
        wanted = plain(row)
        assert len(wanted) == WIDTH
        for i, (total, tokens) in enumerate(wanted):
            assert found.tokens[row, i].tolist() == [*tokens, *[END] * (LIMIT - len(tokens))]
            np.testing.assert_allclose(found.log_probabilities[row, i], total, rtol=2e-5)


def test_attention_is_the_mean_of_those_that_tell_it():
    class Tells(Seq2SeqDecoder):
        def attention(self, cache):
            return cache

    ensemble = Ensemble((Tells(MEMBERS[1]), Tells(MEMBERS[1])))
    one, two = (jnp.full((1, 2), x) for x in (0.25, 0.75))
    np.testing.assert_allclose(ensemble.attention((one, two)), 0.5)
    assert ensemble.attention((one, None)) is None
