"""Score functions of recurrent attention against the papers' formulas, one pair of vectors at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from research.attention import alignment_scores as ours
from research.attention.softmax import masked_softmax

BATCH, QUERIES, KEYS, DIM = 2, 3, 5, 4
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape)


def single(x):
    return jnp.asarray(x, jnp.float32)


def every_pair(score, query, keys):
    """Returns score(q, k) for every query and key of a row, in float64."""
    return np.array(
        [[[score(q, k) for k in row_k] for q in row_q] for row_q, row_k in zip(query, keys, strict=True)]
    )


def close(got, wanted):
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-6)


def test_additive():
    query, keys, vector = normal(BATCH, QUERIES, DIM), normal(BATCH, KEYS, DIM), normal(DIM)
    wanted = every_pair(lambda q, k: vector @ np.tanh(q + k), query, keys)
    close(ours.additive(single(query), single(keys), single(vector)), wanted)


def test_additive_with_coverage():
    query, keys, vector, more = (
        normal(BATCH, QUERIES, DIM),
        normal(BATCH, KEYS, DIM),
        normal(DIM),
        normal(DIM),
    )
    coverage = RNG.uniform(size=(BATCH, QUERIES, KEYS))
    wanted = np.zeros((BATCH, QUERIES, KEYS))
    for b, q, k in np.ndindex(*wanted.shape):
        wanted[b, q, k] = vector @ np.tanh(query[b, q] + keys[b, k] + coverage[b, q, k] * more)
    close(ours.additive(*map(single, (query, keys, vector, coverage, more))), wanted)


def test_dot():
    query, keys = normal(BATCH, QUERIES, DIM), normal(BATCH, KEYS, DIM)
    close(ours.dot(single(query), single(keys)), every_pair(np.dot, query, keys))


def test_local_attention():
    query, kernel, vector = normal(BATCH, QUERIES, DIM), normal(DIM, 7), normal(7)
    lengths = np.array([5, 3])
    got = ours.predicted_position(*map(single, (query, kernel, vector)), jnp.asarray(lengths, jnp.int32))
    wanted = lengths[:, None] / (1 + np.exp(-np.tanh(query @ kernel) @ vector))
    close(got, wanted)
    places = jnp.arange(KEYS, dtype=jnp.int32)[None]
    distance = np.arange(KEYS)[None, None] - wanted[..., None]
    np.testing.assert_array_equal(ours.near(got, places, 2), np.abs(distance) <= 2)
    close(ours.gaussian(got, places, 2), np.exp(-(distance**2) / 2))


def test_alignment_and_read_ignore_what_is_absent():
    scores, values = normal(BATCH, QUERIES, KEYS), normal(BATCH, KEYS, DIM)
    present = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)

    def total(scores, values):
        weights = masked_softmax(scores, jnp.asarray(present)[:, None])
        read = ours.read(weights, values, jnp.asarray(present))
        return jnp.square(read).sum(), (weights, read)

    run = jax.grad(total, argnums=(0, 1), has_aux=True)
    gradients, (weights, read) = run(single(scores), single(values))
    exp = np.exp(scores) * present[:, None]
    wanted = np.where(present.any(1)[:, None, None], exp / np.maximum(exp.sum(-1, keepdims=True), 1e-30), 0)
    close(weights, wanted)
    close(read, wanted @ values)
    assert all(np.isfinite(g).all() for g in gradients)
    bad = np.where(present, 0.0, np.nan)
    dirty, (_, out) = run(single(scores + bad[:, None]), single(values + bad[..., None]))
    np.testing.assert_array_equal(out, read)
    for one, other in zip(gradients, dirty, strict=True):
        np.testing.assert_array_equal(one, other)
