"""Feature maps and the short convolution of linear attention, against their definitions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.convolution import next_tail, short_convolution
from research.attention.features import (
    drawn_directions,
    elu_plus_one,
    favor,
    favor_key,
    favor_query,
    fixed_directions,
    taylor,
    unit,
)
from research.attention.masks import Tokens
from research.attention.recurrent import document_starts

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 16])
def test_taylor_features_multiply_to_the_series(dim):
    q, k = normal(2, 9, dim)
    scores = (q * k).sum(-1) / np.sqrt(dim)
    features = taylor(jnp.asarray(q))
    assert features.shape == (9, 1 + dim + dim * (dim + 1) // 2)
    got = (features * taylor(jnp.asarray(k))).sum(-1)
    np.testing.assert_allclose(got, 1 + scores + scores**2 / 2, atol=1e-5, rtol=1e-5)


def test_elu_and_unit():
    x = normal(5, 4) * 3
    np.testing.assert_allclose(
        elu_plus_one(jnp.asarray(x)), np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))), 1e-6
    )
    np.testing.assert_allclose(np.square(unit(jnp.asarray(x))).sum(-1), 1.0, rtol=1e-5)
    assert not np.asarray(unit(jnp.zeros((2, 4)))).any()


def test_random_features_are_unbiased_and_orthogonal_ones_vary_less():
    """The mean over draws is exp(q k / sqrt(d)) within four standard errors; independent ones vary more."""
    dim, draws = 8, 4_000
    q, k = normal(2, dim)
    kernel = np.exp(q @ k / np.sqrt(dim))

    def estimate(directions):
        return (favor(jnp.asarray(q), directions) * favor(jnp.asarray(k), directions)).sum()

    keys = jax.random.split(jax.random.key(0), draws)
    orthogonal = jax.jit(jax.vmap(lambda key: estimate(drawn_directions(dim, dim, key))))(keys)
    independent = jax.jit(jax.vmap(lambda key: estimate(jax.random.normal(key, (dim, dim)))))(keys)
    for estimates in (orthogonal, independent):
        error = np.std(estimates) / np.sqrt(draws)
        assert abs(np.mean(estimates) - kernel) < 4 * error and error < 0.1 * kernel
    assert np.var(orthogonal) < np.var(independent)


def test_directions_are_orthogonal_block_by_block_and_reproducible():
    directions = fixed_directions(8, 20, seed=3)
    assert directions.shape == (20, 8) and directions.dtype == np.float32
    for block in (directions[:8], directions[8:16]):
        products = block @ block.T
        np.testing.assert_allclose(products - np.diag(np.diag(products)), 0, atol=1e-5)
    np.testing.assert_array_equal(directions, fixed_directions(8, 20, seed=3))
    assert (directions != fixed_directions(8, 20, seed=4)).any()
    assert np.unique(np.diag(directions @ directions.T).round(4)).size == 20  # lengths vary


def test_scaled_features_differ_from_plain_ones_by_a_factor_that_normalising_removes():
    q, k, directions = normal(3, 8) * 4, normal(5, 8) * 4, fixed_directions(8, 16, seed=0)
    plain = (
        np.asarray(favor(jnp.asarray(q), jnp.asarray(directions)))
        @ np.asarray(favor(jnp.asarray(k), jnp.asarray(directions))).T
    )
    scaled = (
        np.asarray(favor_query(jnp.asarray(q), jnp.asarray(directions)))
        @ np.asarray(favor_key(jnp.asarray(k), jnp.asarray(directions))).T
    )
    weights = [x / x.sum(-1, keepdims=True) for x in (plain, scaled)]
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-4, atol=1e-7)
    huge = favor_key(jnp.asarray(k * 100), jnp.asarray(directions))
    assert np.isfinite(huge).all()


SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [0, 0, 3, 3, 3, 1, 0, 0]], np.int32)


def convolved(x: np.ndarray, kernel: np.ndarray, segments: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """By the definition: what a token reads is its document's inputs, the first one's after the tail."""
    out = np.zeros_like(x)
    for row in range(len(x)):
        real = [segment for segment in segments[row] if segment]
        for segment in dict.fromkeys(real):
            before = tail[row] if segment == real[0] else np.zeros_like(tail[row])
            index = np.flatnonzero(segments[row] == segment)
            line = np.concatenate([before, x[row, index]])
            for n, t in enumerate(index):
                out[row, t] = (line[n : n + len(kernel)] * kernel).sum(0)
    return out


@pytest.mark.parametrize("width", [1, 2, 4, 12])
def test_short_convolution_stays_within_documents(width):
    x, kernel = normal(2, 8, 3), normal(width, 3)
    tail = normal(2, width - 1, 3)
    tail[1] = 0  # a row that begins with padding has nothing before it
    x = np.where((SEGMENTS != 0)[:, :, None], x, np.float32(0))
    tokens = Tokens(jnp.zeros((2, 8), jnp.int32), jnp.asarray(SEGMENTS))
    document = jnp.cumsum(document_starts(tokens), axis=1, dtype=jnp.int32)
    real = tokens.real
    out = short_convolution(jnp.asarray(x), jnp.asarray(kernel), document=document, tail=jnp.asarray(tail))
    want = convolved(x, kernel, SEGMENTS, tail)
    np.testing.assert_allclose(np.asarray(out)[SEGMENTS != 0], want[SEGMENTS != 0], atol=1e-5)
    # The tail that follows: the last inputs of each row's last document.
    after = next_tail(jnp.asarray(tail), jnp.asarray(x), real=real, document=document)
    for row, index in enumerate(([3, 4, 5, 6], [5])):
        kept = np.concatenate([np.zeros((width, 3), np.float32), x[row, index]])
        np.testing.assert_array_equal(after[row], kept[len(kept) - (width - 1) :])


def test_tail_continues_over_calls():
    x, kernel = normal(2, 9, 3), normal(4, 3)
    want = short_convolution(jnp.asarray(x), jnp.asarray(kernel))
    tail, out = jnp.zeros((2, 3, 3)), []
    for start, stop in ((0, 2), (2, 7), (7, 8), (8, 9)):
        part = jnp.asarray(x[:, start:stop])
        out.append(short_convolution(part, jnp.asarray(kernel), tail=tail))
        tail = next_tail(tail, part)
    np.testing.assert_allclose(jnp.concatenate(out, axis=1), want, atol=1e-6)


def test_a_document_goes_on_after_padding():
    segments = jnp.array([[0, 1, 0, 1, 2, 0, 2, 3]], jnp.int32)
    starts = document_starts(Tokens(jnp.zeros((1, 8), jnp.int32), segments))
    np.testing.assert_array_equal(starts[0], np.array([0, 0, 0, 0, 1, 0, 0, 1], bool))
