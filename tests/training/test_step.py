"""The step: clipping, averaging, keys, and what a bad batch leaves behind, on a model that fits NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.training.state import State
from research.training.step import (
    PURPOSES,
    accumulated_gradient,
    descent,
    initialise,
    key_for,
    whole_gradient,
)

RATE = 0.1
DIMENSIONS = 3


def squares(params, batch, key):
    """Half the weighted squared error of a linear map, summed; with a key, noise of that key is the loss."""
    error = batch["x"] @ params["w"] + params["b"] - batch["y"]
    loss = (0.5 * batch["weights"] * error**2).sum()
    noise = jnp.zeros(()) if key is None else jax.random.uniform(key)
    return loss, {"loss": loss + noise, "weight": batch["weights"].sum()}


def batches(count: int, rows: int = 8):
    random = np.random.default_rng(0)
    for _ in range(count):
        x = random.normal(size=(rows, DIMENSIONS)).astype(np.float32)
        y = random.normal(size=rows).astype(np.float32) + 3
        yield {"x": x, "y": y, "weights": random.choice([0.0, 0.5, 1.0, 2.0], rows).astype(np.float32)}


def start(optimizer, *, ema=False, seed=0) -> State:
    def parameters(key):
        return {"w": jax.random.normal(key, (DIMENSIONS,)), "b": jnp.zeros(())}

    return initialise(parameters, optimizer, seed=seed, ema=ema)


def build(gradient=None, *, optimizer=None, **changes):
    optimizer = optax.sgd(RATE) if optimizer is None else optimizer
    rest = {"schedule": lambda step: 1.0, "seed": 0, "dropout": False, "clip": None, "ema": None} | changes
    return jax.jit(descent(gradient or whole_gradient(squares), optimizer, **rest))


def plain_gradient(w, b, batch):
    """The mean gradient over the weight, float64."""
    x, y, weights = (batch[name].astype(np.float64) for name in ("x", "y", "weights"))
    error = weights * (x @ w + b - y)
    return error @ x / weights.sum(), error.sum() / weights.sum()


@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
def test_the_update_is_the_mean_gradient_clipped_by_its_global_norm(clip):
    step, state = build(clip=clip), start(optax.sgd(RATE))
    w, b = np.asarray(state.params["w"], np.float64), 0.0
    for batch in batches(5):
        state, metrics = step(state, batch)
        gw, gb = plain_gradient(w, b, batch)
        norm = np.sqrt((gw**2).sum() + gb**2)
        np.testing.assert_allclose(metrics["train/gradient_norm"], norm, rtol=1e-5)
        assert clip is None or clip > 1e3 or norm > clip  # so that it clips
        factor = 1.0 if clip is None else min(1.0, clip / norm)
        w, b = w - RATE * factor * gw, b - RATE * factor * gb
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.params["b"], b, rtol=1e-5, atol=1e-6)
    assert state.step == 5 and state.ok


def test_the_loss_reported_is_the_mean_over_the_weight():
    state = start(optax.sgd(RATE))
    w = np.asarray(state.params["w"], np.float64)
    batch = next(batches(1))
    _, metrics = build()(state, batch)
    expected = (0.5 * batch["weights"] * (batch["x"] @ w - batch["y"]) ** 2).sum() / batch["weights"].sum()
    np.testing.assert_allclose(metrics["train/loss"], expected, rtol=1e-5)


def test_a_batch_without_weight_moves_nothing_and_is_no_error():
    state = start(optax.sgd(RATE))
    batch = next(batches(1)) | {"weights": np.zeros(8, np.float32)}
    after, metrics = build(clip=1.0)(state, batch)
    assert after.ok and metrics["train/loss"] == 0.0
    np.testing.assert_array_equal(after.params["w"], state.params["w"])


def test_the_average_follows_the_parameters_and_is_what_is_evaluated():
    step, state = build(ema=0.75), start(optax.sgd(RATE), ema=True)
    expected = np.asarray(state.params["w"], np.float64)
    for batch in batches(4):
        state, _ = step(state, batch)
        expected = 0.75 * expected + 0.25 * np.asarray(state.params["w"], np.float64)
        np.testing.assert_allclose(state.average["w"], expected, rtol=1e-5, atol=1e-6)
    assert state.evaluated is state.average
    without = start(optax.sgd(RATE))
    assert without.average is None and without.evaluated is without.params


def test_the_learning_rate_reported_is_that_of_the_step_taken():
    step, state = build(schedule=lambda count: 0.5 * jnp.asarray(count, jnp.float32)), start(optax.sgd(RATE))
    for number, batch in enumerate(batches(3)):
        state, metrics = step(state, batch)
        assert metrics["train/learning_rate"] == 0.5 * number


def test_keys_are_functions_of_seed_purpose_and_step():
    drawn = {
        (seed, purpose, step): float(jax.random.uniform(key_for(seed, purpose, step)))
        for seed in (0, 1)
        for purpose in PURPOSES
        for step in range(3)
    }
    assert len(set(drawn.values())) == len(drawn)
    assert jax.random.uniform(key_for(1, "dropout", jnp.asarray(2, jnp.int32))) == drawn[1, "dropout", 2]


def test_each_step_and_each_seed_has_its_own_dropout_and_initialisation():
    zeros = next(batches(1)) | {"weights": np.zeros(8, np.float32)}
    noise, initial = {}, {}
    for seed in (0, 1):
        step, state = build(seed=seed, dropout=True), start(optax.sgd(RATE), seed=seed)
        initial[seed] = np.asarray(state.params["w"])
        noise[seed] = []
        for _ in range(3):
            state, metrics = step(state, zeros)
            noise[seed].append(float(metrics["train/loss"]))
    assert len({*noise[0], *noise[1]}) == 6
    assert not np.array_equal(initial[0], initial[1])
    np.testing.assert_array_equal(initial[0], start(optax.sgd(RATE)).params["w"])


def test_micro_batches_have_keys_of_their_own():
    seen = []

    def loss(params, batch, key):
        jax.debug.callback(lambda x: seen.append(float(x)), jax.random.uniform(key))
        return squares(params, batch, None)

    build(accumulated_gradient(loss, 4), dropout=True)(start(optax.sgd(RATE)), next(batches(1)))
    jax.effects_barrier()
    assert len(set(seen)) == 4


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_over_uneven_weights_equals_the_whole_batch(parts):
    gradient = accumulated_gradient(squares, parts)
    whole, part = (build(g, clip=0.7) for g in (whole_gradient(squares), gradient))
    one, other = start(optax.sgd(RATE)), start(optax.sgd(RATE))
    for batch in batches(5):
        batch["weights"][::parts] = 0.0  # a micro-batch without any weight
        one, expected = whole(one, batch)
        other, found = part(other, batch)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
        np.testing.assert_allclose(other.params["w"], one.params["w"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["x", "y", "weights"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_batch_leaves_the_state_bit_for_bit_and_every_later_step_too(name, bad):
    optimizer = optax.adam(RATE)
    step, state = build(optimizer=optimizer, ema=0.9, clip=1.0), start(optimizer, ema=True)
    first, second, third = batches(3)
    state, _ = step(state, first)
    second[name].flat[0] = bad
    second["weights"][1:] = 1.0
    second["weights"][0] = bad if name == "weights" else 1.0
    for batch in (second, third):  # the third is a good one
        after, metrics = step(state, batch)
        assert not after.ok and not metrics["ok"]
        before = State(state.step, state.params, state.optimizer, state.average, after.ok)
        jax.tree.map(np.testing.assert_array_equal, after, before)
        state = after
    assert state.step == 1
