"""Dropout: its rate, the independence of its decisions, and that nothing but key and index decides."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_oracle import softmax_attention

from research.attention import Causal, attend
from research.attention.dropout import dropout, keep


def z(successes, trials, probability):
    """Returns how many standard deviations the count lies from its expectation."""
    return abs(successes - trials * probability) / np.sqrt(trials * probability * (1 - probability))


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5])
@pytest.mark.parametrize("seed", [0, 1, 123456789])
def test_the_rate_holds_overall_and_along_every_axis(rate, seed):
    kept = np.asarray(keep(jax.random.key(seed), rate, (16, 32, 64)))
    assert z(kept.sum(), kept.size, 1 - rate) < 4.5
    for axis in range(3):
        counts = np.moveaxis(kept, axis, 0).reshape(kept.shape[axis], -1)
        expected = counts.shape[1] * (1 - rate)
        chi_square = ((counts.sum(1) - expected) ** 2 / (expected * rate)).sum()
        degrees = kept.shape[axis]
        assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees), (axis, chi_square)


def test_neighbours_and_strides_are_independent():
    kept = np.asarray(keep(jax.random.key(7), 0.5, (2**16,)))
    for lag in (1, 2, 3, 4, 8, 64, 1024, 2**15):
        agreement = (kept[lag:] == kept[:-lag]).sum()
        assert z(agreement, kept.size - lag, 0.5) < 4.5, lag


def test_keys_are_independent():
    parent = jax.random.key(3)
    keys = [jax.random.key(seed) for seed in range(12)]
    keys += [*jax.random.split(parent, 12), *jax.random.split(jax.random.fold_in(parent, 5), 12)]
    masks = np.stack([np.asarray(keep(key, 0.5, (64, 64))).ravel() for key in keys])
    for i in range(len(masks)):
        agreement = (masks[i + 1 :] == masks[i]).sum(1)
        assert (z(agreement, masks.shape[1], 0.5) < 5).all(), i


def test_every_position_is_dropped_as_often_over_keys():
    keys = jax.random.split(jax.random.key(5), 2000)
    kept = np.asarray(jax.jit(jax.vmap(lambda key: keep(key, 0.25, (7, 9))))(keys))
    counts = kept.sum(0)
    chi_square = ((counts - 1500) ** 2 / (2000 * 0.25 * 0.75)).sum()
    assert abs(chi_square - 63) < 5 * np.sqrt(2 * 63)


def test_what_is_kept_is_scaled_and_the_rest_is_zero():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32))
    key = jax.random.key(0)
    kept = np.asarray(keep(key, 0.2, x.shape))
    np.testing.assert_allclose(dropout(x, 0.2, key), np.where(kept, np.asarray(x) / 0.8, 0.0), rtol=1e-6)
    assert dropout(x, 0.2, None) is x and dropout(x, 0.0, key) is x
    assert dropout(x.astype(jnp.bfloat16), 0.2, key).dtype == jnp.bfloat16


def test_decisions_repeat_and_do_not_depend_on_compilation():
    key = jax.random.key(11)
    eager = keep(key, 0.3, (5, 7, 11))
    np.testing.assert_array_equal(eager, keep(jax.random.key(11), 0.3, (5, 7, 11)))
    np.testing.assert_array_equal(eager, jax.jit(lambda key: keep(key, 0.3, (5, 7, 11)))(key))
    assert (np.asarray(eager) != np.asarray(keep(jax.random.key(12), 0.3, (5, 7, 11)))).any()


def test_arrays_whose_indices_would_repeat_are_refused():
    with pytest.raises(ValueError, match="at most"):
        keep(jax.random.key(0), 0.1, (2**16, 2**16))


def test_attention_drops_its_normalised_weights():
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(2, 2, 6, 3, 4)).astype(np.float32)
    v = np.broadcast_to(np.eye(6, dtype=np.float32)[:, None], (2, 6, 3, 6))  # the output is the weights
    key, allowed = jax.random.key(2), np.broadcast_to(np.tril(np.ones((6, 6), bool)), (2, 6, 6))
    weights, _ = softmax_attention(q, k, v, allowed)
    kept = np.asarray(keep(key, 0.4, (2, 3, 6, 6))).transpose(0, 2, 1, 3)
    run = jax.jit(functools.partial(attend, mask=Causal(), dropout=0.4))
    np.testing.assert_allclose(run(q, k, v, dropout_key=key), weights * kept / 0.6, atol=1e-6)
    np.testing.assert_allclose(run(q, k, v), weights, atol=1e-6)


SHARDED = """
import functools, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from research.attention import Causal, attend
from research.attention.dropout import keep

assert jax.device_count() == 8
mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
rows = NamedSharding(mesh, P("data", None, "tensor", None))
rng = np.random.default_rng(0)
q, k, v = (rng.normal(size=(8, 6, 4, 8)).astype(np.float32) for _ in range(3))
key = jax.random.key(1)

def run(q, k, v):
    out = attend(q, k, v, mask=Causal(), dropout=0.5, dropout_key=key)
    kept = keep(key, 0.5, (8, 6, 4, 8))
    return out, kept

alone, kept = jax.jit(run)(q, k, v)
spread, kept_spread = jax.jit(run, in_shardings=rows, out_shardings=rows)(q, k, v)
assert len(spread.sharding.device_set) == 8 and len(kept_spread.sharding.device_set) == 8
np.testing.assert_array_equal(kept, kept_spread)
np.testing.assert_allclose(alone, spread, atol=1e-6)
"""


def test_the_same_on_eight_devices():
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
