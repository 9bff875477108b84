"""The masked LM objective against plain NumPy in float64, and the gathered loss against the full softmax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from research.data.masked_text import MaskedText
from research.models.bert import BERT
from research.objectives.masked_lm import MaskedLM

MODEL = BERT(
    vocabulary=29, context=12, layers=1, width=16, heads=2, feed_forward_width=24, dropout=0.0, depth="unroll"
)


def batch():
    random = np.random.default_rng(0)
    segments = np.array([[1] * 7 + [2] * 5, [1] * 9 + [0] * 3, [1] * 12, [0] * 12], np.int32)
    positions = np.array([[*range(7), *range(5)], [*range(9), 0, 0, 0], [*range(12)], [0] * 12], np.int32)
    return {
        "tokens": random.integers(0, 29, segments.shape, dtype=np.int32),
        "positions": positions,
        "segments": segments,
        "selected": np.array([[1, 8, 3], [2, 0, 0], [11, 4, 5], [0, 0, 0]], np.int32),
        "targets": np.array([[4, 8, 1], [20, 0, 0], [3, 3, 28], [0, 0, 0]], np.int32),
        "weights": np.array([[1, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0]], np.float32),
        "types": (segments == 2).astype(np.int32),
        "pair": np.array([0, 1, 1, -1], np.int32),
    }


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def drawn():
    rows = jax.tree.map(jnp.asarray, batch())
    inputs, named = MaskedLM().inputs(rows)
    apply = jax.jit(MODEL.build().apply)
    params = jax.jit(MODEL.build().init)(jax.random.key(0), *inputs, **named)["params"]
    # Far from uniform, so that a wrong place shows.
    return apply, jax.tree.map(lambda leaf: 8 * leaf if leaf.ndim > 1 else leaf, params), rows


def test_sums_are_those_of_numpy_from_the_logits_of_all_places():
    apply, params, rows = drawn()
    objective = MaskedLM(pair_weight=0.5)
    total, sums = jax.jit(lambda params: objective.loss(apply)(params, rows, None))(params)
    (tokens, place, types, _), _ = objective.inputs(rows)
    logits, pair = apply({"params": params}, tokens, place, types)
    at = np.arange(4)[:, None], batch()["selected"]
    scores, weights = log_softmax(logits)[at], batch()["weights"]
    chosen = np.take_along_axis(scores, batch()["targets"][..., None], -1)[..., 0]
    nats, right = -(chosen * weights).sum(), ((scores.argmax(-1) == batch()["targets"]) * weights).sum()
    pair_scores = log_softmax(pair)[:3]
    pair_nats = -pair_scores[np.arange(3), [0, 1, 1]].sum()
    assert sums["weight"] == 7 and sums["pairs"] == 9  # three selected in a row, three pairs
    np.testing.assert_allclose(sums["loss"], nats, rtol=1e-5)
    np.testing.assert_allclose(sums["accuracy"], right)
    np.testing.assert_allclose(sums["pair_loss"], 3 * pair_nats, rtol=1e-5)
    np.testing.assert_allclose(sums["pair_accuracy"], 3 * (pair_scores.argmax(1) == [0, 1, 1]).sum())
    np.testing.assert_allclose(total, nats + 0.5 * 3 * pair_nats, rtol=1e-5)


def test_the_gradient_of_the_gathered_loss_is_that_of_the_full_softmax():
    apply, params, rows = drawn()
    rows = {name: array for name, array in rows.items() if name != "pair"}
    (tokens, place, types, selected), _ = MaskedLM().inputs(rows)

    def full(params):
        logits, _ = apply({"params": params}, tokens, place, types)
        everywhere = jnp.zeros(tokens.shape).at[jnp.arange(4)[:, None], selected].add(rows["weights"])
        targets = jnp.zeros(tokens.shape, jnp.int32).at[jnp.arange(4)[:, None], selected].add(rows["targets"])
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        return -(chosen * everywhere).sum()

    def gathered(params):
        return MaskedLM().loss(apply)(params, rows, None)[0]

    one, other = (jax.jit(jax.grad(loss))(params) for loss in (gathered, full))
    for path, leaf in jax.tree_util.tree_leaves_with_path(one):
        expected = other
        for key in path:
            expected = expected[key.key]
        np.testing.assert_allclose(leaf, expected, atol=2e-5, rtol=1e-4, err_msg=str(path))


def test_what_does_not_fit_is_said():
    def said(model, **data):
        return list(MaskedLM().problems(model, MaskedText(length=12, **data)))

    assert said(MODEL) == said(MODEL, pairs="order") == []
    assert "model.context 8" in said(BERT(context=8))[0]
    assert "needs model.pooler true" in said(BERT(pooler=False), pairs="next")[0]
    assert "needs model.token_types 2, not 0" in said(BERT(token_types=0), pairs="next")[0]
