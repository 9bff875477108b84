"""The causal language modelling loss against NumPy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.modules.head import cross_entropy
from research.objectives.causal_lm import CausalLM

BATCH, LENGTH, VOCABULARY = 3, 5, 7


def arrays(seed: int = 0):
    random = np.random.default_rng(seed)
    logits = (random.normal(size=(BATCH, LENGTH, VOCABULARY)) * 3).astype(np.float32)
    targets = random.integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)
    weights = random.choice([0.0, 0.5, 1.0, 2.0], (BATCH, LENGTH)).astype(np.float32)
    weights[0, :2] = 0.0, 1.0
    return logits, targets, weights


def plain(logits, targets):
    """-log p(target) and log Z of each token, by their definitions."""
    exponentials = np.exp(logits.astype(np.float64))
    chosen = np.take_along_axis(exponentials, targets[..., None], -1)[..., 0]
    return -np.log(chosen / exponentials.sum(-1)), np.log(exponentials.sum(-1))


def batch_of(targets, weights):
    zeros = np.zeros_like(targets)
    places = {
        "positions": zeros + np.arange(LENGTH, dtype=np.int32),
        "segments": (weights > 0).astype(np.int32),
    }
    return jax.tree.map(jnp.asarray, {"tokens": zeros, "targets": targets, "weights": weights, **places})


def table_model(variables, tokens, place, *, targets, key):
    """A model whose logits are its parameters."""
    assert place.positions.shape == place.segments.shape == tokens.shape and key is None
    logits = jnp.where((place.segments != 0)[..., None], variables["params"], 0.0)
    return cross_entropy(logits, targets), None


def loss_of(z_loss: float):
    loss = CausalLM(z_loss).loss(table_model)
    return jax.jit(lambda logits, batch: loss(logits, batch, None))


def test_cross_entropy_is_minus_the_logarithm_of_the_targets_probability():
    logits, targets, _ = arrays()
    nats, log_partition = cross_entropy(jnp.asarray(logits), jnp.asarray(targets))
    for found, expected in zip((nats, log_partition), plain(logits, targets), strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_cross_entropy_of_uniform_logits_is_the_logarithm_of_the_vocabulary():
    nats, _ = cross_entropy(jnp.full((1, 2, VOCABULARY), 40.0), jnp.zeros((1, 2), jnp.int32))
    np.testing.assert_allclose(nats, np.log(VOCABULARY), rtol=1e-6)


def test_cross_entropy_of_huge_logits_does_not_overflow():
    logits = jnp.asarray([[[1e4, -1e4, 0.0]]])
    nats, log_partition = cross_entropy(logits, jnp.asarray([[1]]))
    np.testing.assert_allclose((nats[0, 0], log_partition[0, 0]), (2e4, 1e4))


def test_cross_entropy_of_bfloat16_logits_is_computed_in_float32():
    logits, targets, _ = arrays()
    low = jnp.asarray(logits, jnp.bfloat16)
    nats, _ = cross_entropy(low, jnp.asarray(targets))
    expected, _ = plain(np.asarray(low.astype(jnp.float32)), targets)
    np.testing.assert_allclose(nats, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_the_loss_is_a_weighted_sum_and_the_penalty_is_in_the_gradient_alone(z_loss):
    logits, targets, weights = arrays()
    total, sums = loss_of(z_loss)(logits, batch_of(targets, weights))
    nats, log_partition = plain(logits, targets)
    loss, penalty = (nats * weights).sum(), (log_partition**2 * weights).sum()
    np.testing.assert_allclose(sums["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(sums["weight"], weights.sum())
    np.testing.assert_allclose(total, loss + z_loss * penalty, rtol=1e-5)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_the_gradient_of_the_sum_is_its_closed_form(z_loss):
    """The gradient of log Z is the softmax p: weight * (p - onehot + 2 z log Z p)."""
    logits, targets, weights = arrays(1)
    gradient, _ = jax.grad(loss_of(z_loss), has_aux=True)(logits, batch_of(targets, weights))
    wide = logits.astype(np.float64)
    log_partition = np.log(np.exp(wide).sum(-1))
    softmax = np.exp(wide - log_partition[..., None])
    expected = softmax * (1 + 2 * z_loss * log_partition[..., None]) - np.eye(VOCABULARY)[targets]
    np.testing.assert_allclose(gradient, expected * weights[..., None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 3e38])
def test_what_padding_predicts_changes_neither_loss_nor_gradient(garbage):
    logits, targets, weights = arrays(2)
    weights[1, 3:] = 0.0
    spoilt = np.where((weights > 0)[..., None], logits, np.float32(garbage))
    loss = jax.value_and_grad(loss_of(1e-2), has_aux=True)
    (clean, sums), gradient = loss(logits, batch_of(targets, weights))
    (found, found_sums), found_gradient = loss(spoilt, batch_of(targets, weights))
    assert found == clean and found_sums["loss"] == sums["loss"]
    padding = (weights == 0)[..., None]
    np.testing.assert_array_equal(np.where(padding, 0.0, found_gradient), gradient)
    np.testing.assert_array_equal(np.where(padding, found_gradient, 0.0), np.zeros_like(gradient))


def test_logits_that_nobody_scores_get_no_gradient_even_if_they_are_nan():
    logits, targets, _ = arrays(4)
    logits[1] = np.nan

    def loss(logits):
        nats, log_partition = cross_entropy(logits, jnp.asarray(targets))
        return nats[0].sum() + jnp.square(log_partition[2]).sum()

    gradient = jax.grad(loss)(jnp.asarray(logits))
    assert np.isfinite(gradient).all() and not np.asarray(gradient[1]).any()
    assert np.asarray(gradient[0]).any() and np.asarray(gradient[2]).any()


def test_sums_of_parts_add_up_to_the_whole():
    logits, targets, weights = arrays(3)
    loss = loss_of(1e-2)
    whole, sums = loss(logits, batch_of(targets, weights))
    rows = [slice(i, i + 1) for i in range(BATCH)]
    parts = [loss(logits[row], batch_of(targets[row], weights[row])) for row in rows]
    np.testing.assert_allclose(sum(part for part, _ in parts), whole, rtol=1e-6)
    for name in ("loss", "weight"):
        np.testing.assert_allclose(sum(part[name] for _, part in parts), sums[name], rtol=1e-6)
