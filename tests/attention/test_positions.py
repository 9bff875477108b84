"""Positional encodings against their closed forms in float64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.positions import learned, rotary, sinusoidal

POSITIONS = np.array([[0, 1, 2, 7], [5, 5, 100, 1023]], np.int32)


def test_sinusoidal_is_the_papers_formula():
    width = 10
    want = np.zeros((2, 4, width))
    for b, t, i in np.ndindex(2, 4, width // 2):
        angle = POSITIONS[b, t] / 10000 ** (2 * i / width)
        want[b, t, 2 * i], want[b, t, 2 * i + 1] = np.sin(angle), np.cos(angle)
    got = sinusoidal(jnp.asarray(POSITIONS), width)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-4)  # sin of 1023 radians in float32


def turned(x, positions, base):
    """Rotates each pair (i, i + half) as a complex number."""
    half = x.shape[-1] // 2
    angles = positions[..., None] / base ** (2 * np.arange(half) / x.shape[-1])
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, :, None, :]
    return np.concatenate([z.real, z.imag], axis=-1)


@pytest.mark.parametrize("base", [10000.0, 50.0])
def test_rotary_turns_the_pair_of_channels_half_a_head_apart(base):
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 8)).astype(np.float32)
    got = rotary(jnp.asarray(x), jnp.asarray(POSITIONS), base)
    np.testing.assert_allclose(got, turned(x.astype(np.float64), POSITIONS, base), atol=3e-4)
    unit = np.zeros((1, 1, 1, 8), np.float32)
    unit[..., 1] = 1.0
    got = np.asarray(rotary(jnp.asarray(unit), jnp.array([[3]], jnp.int32)))[0, 0, 0]
    angle = 3 / 10000 ** (2 / 8)
    np.testing.assert_allclose(got[[1, 5]], [np.cos(angle), np.sin(angle)], rtol=1e-6)
    assert not got[[0, 2, 3, 4, 6, 7]].any()


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = jnp.asarray(np.random.default_rng(1).normal(size=(2, 1, 6, 2, 8)), jnp.float32)
    scores = []
    for shift in (0, 11, 200):
        positions = jnp.arange(6, dtype=jnp.int32)[None] + shift
        scores.append(jnp.einsum("bqhd,bkhd->bhqk", rotary(q, positions), rotary(k, positions)))
    np.testing.assert_allclose(scores[1], scores[0], atol=2e-5)
    np.testing.assert_allclose(scores[2], scores[0], atol=2e-4)


def test_rotary_keeps_lengths_and_dtype():
    x = np.random.default_rng(2).normal(size=(2, 4, 3, 8)).astype(np.float32)
    got = rotary(jnp.asarray(x), jnp.asarray(POSITIONS))
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    assert rotary(jnp.asarray(x, jnp.bfloat16), jnp.asarray(POSITIONS)).dtype == jnp.bfloat16


def test_learned_are_rows_of_the_table():
    table = np.arange(12, dtype=np.float32).reshape(6, 2)
    got = learned(jnp.array([[0, 5, 2], [9, 1, 1]], jnp.int32), jnp.asarray(table))
    np.testing.assert_array_equal(got, table[[[0, 5, 2], [5, 1, 1]]])


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match="even width, not 7"):
        sinusoidal(jnp.zeros((1, 1), jnp.int32), 7)
    with pytest.raises(ValueError, match="even head width, not 5"):
        rotary(jnp.zeros((1, 1, 1, 5)), jnp.zeros((1, 1), jnp.int32))
