"""Label smoothing against its closed form; padding of batches changes nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.bitext import Bitext
from research.models.seq2seq import Seq2Seq
from research.objectives.translation import Translation, smoothed_cross_entropy

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_label_smoothing_is_its_closed_form(smoothing):
    logits, targets = RNG.normal(size=(2, 3, 7)) * 3, RNG.integers(0, 7, (2, 3))
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = (1 - smoothing) * np.eye(7)[targets] + smoothing / 7
    got, nats = smoothed_cross_entropy(
        jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.int32), smoothing
    )
    np.testing.assert_allclose(got, -(wanted * logs).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(nats, -np.take_along_axis(logs, targets[..., None], -1)[..., 0], rtol=1e-5)


def test_least_loss_of_smoothed_targets_is_their_entropy():
    # Reached by the smoothed distribution itself, where the gradient is 0.
    smoothing, classes = 0.2, 5
    best = np.full(classes, smoothing / classes)
    best[2] += 1 - smoothing
    logits = jnp.asarray(np.log(best), jnp.float32)[None, None]
    target = jnp.full((1, 1), 2, jnp.int32)
    loss, gradient = jax.value_and_grad(lambda x: smoothed_cross_entropy(x, target, smoothing)[0].sum())(
        logits
    )
    np.testing.assert_allclose(loss, -(best * np.log(best)).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_padding_of_a_batch_changes_neither_loss_nor_gradient():
    model = Seq2Seq(vocabulary=9, layers=1, width=6, dropout=0.0)
    objective = Translation(0.1)

    def batch(rows, width, dirt=0):
        arrays = {name: np.full((rows, width), dirt, np.int32) for name in Bitext().shapes()}
        for name in ("source_segments", "segments", "weights"):
            arrays[name][:] = 0
        arrays["weights"] = arrays["weights"].astype(np.float32)
        for name, values in (("source", [3, 4, 0]), ("tokens", [0, 5, 6]), ("targets", [5, 6, 0])):
            arrays[name][0, :3] = values
        for name in ("source_segments", "segments", "weights"):
            arrays[name][0, :3] = 1
        return {name: jnp.asarray(array) for name, array in arrays.items()}

    inputs, named = objective.inputs(batch(1, 3))
    module = model.build()
    params = jax.jit(module.init)(jax.random.key(0), *inputs, **named)["params"]
    run = jax.jit(jax.value_and_grad(objective.loss(module.apply), has_aux=True))
    (loss, sums), gradient = run(params, batch(1, 3), None)
    (padded, padded_sums), padded_gradient = run(params, batch(2, 5, dirt=7), None)
    np.testing.assert_allclose(padded, loss, rtol=1e-5)
    assert sums["weight"] == padded_sums["weight"] == 3.0
    np.testing.assert_allclose(padded_sums["loss"], sums["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), padded_gradient, gradient)
    assert float(loss) > float(sums["loss"]) * 0.9


def test_a_longer_sentence_than_the_model_takes_is_told():
    model = Seq2Seq(context=32)
    assert not list(Translation().problems(model, Bitext(length=32)))
    assert "the longest possible is 32" in next(Translation().problems(model, Bitext(length=64)))
