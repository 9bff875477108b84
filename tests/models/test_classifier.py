"""Heads on an encoder: shapes, pooling, and the loss against plain NumPy."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.masks import Tokens
from research.data.labelled_text import LabelledText, PreparedLabels
from research.evaluation.classification import correlations, label_metrics
from research.models.bert import BERT
from research.models.classifier import Classifier
from research.objectives.classification import Classification

BODY = BERT(
    vocabulary=23, context=10, layers=1, width=16, heads=2, feed_forward_width=24, dropout=0.0, depth="unroll"
)
SEGMENTS = np.array([[1] * 8, [1] * 5 + [0] * 3, [0] * 8], np.int32)


def drawn(model, labels, weights):
    tokens = np.random.default_rng(0).integers(0, 23, SEGMENTS.shape, dtype=np.int32)
    batch = {
        "tokens": tokens,
        "positions": np.tile(np.arange(8, dtype=np.int32), (3, 1)),
        "segments": SEGMENTS,
        "types": np.zeros(SEGMENTS.shape, np.int32),
        "labels": labels,
        "weights": weights,
    }
    inputs, named = Classification().inputs(batch)
    params = jax.jit(model.build().init)(jax.random.key(0), *inputs, **named)["params"]
    return batch, params, jax.jit(model.build().apply)


@pytest.mark.parametrize("task", ["labels", "score", "tags"])
def test_sums_are_those_of_numpy(task):
    random = np.random.default_rng(1)
    model = Classifier(BODY, classes=1 if task == "score" else 3, per_token=task == "tags", pooling="mean")
    if task == "score":
        labels, weights = np.array([2.5, -1.0, 0.0], np.float32), np.array([1, 1, 0], np.float32)
    elif task == "labels":
        labels, weights = np.array([2, 0, 0], np.int32), np.array([1, 1, 0], np.float32)
    else:
        labels = random.integers(0, 3, SEGMENTS.shape, dtype=np.int32)
        weights = (SEGMENTS * (random.random(SEGMENTS.shape) < 0.6)).astype(np.float32)
    batch, params, apply = drawn(model, labels, weights)
    total, sums = Classification().loss(apply)(params, jax.tree.map(jnp.asarray, batch), None)
    inputs, _ = Classification().inputs(batch)
    logits = np.asarray(apply({"params": params}, *inputs), np.float64)
    assert logits.shape == (*labels.shape, model.classes)
    if task == "score":
        expected = (np.square(logits[:, 0] - labels) * weights).sum()
        assert "accuracy" not in sums
    else:
        scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        chosen = np.take_along_axis(scores, labels[..., None], -1)[..., 0]
        expected = -(chosen * weights).sum()
        np.testing.assert_allclose(sums["accuracy"], ((scores.argmax(-1) == labels) * weights).sum())
    np.testing.assert_allclose([total, sums["loss"]], expected, rtol=1e-5)
    assert sums["weight"] == weights.sum()


@pytest.mark.parametrize("classes", [2, 1])
def test_what_validation_measures_comes_from_sums_over_batches(classes):
    random = np.random.default_rng(2)
    rows, weights = 48, (np.arange(48) < 45).astype(np.float32)  # the last batch is filled up
    if classes == 1:
        labels = random.normal(3.0, 1.0, rows).astype(np.float32)
        logits = (labels[:, None] + random.normal(size=(rows, 1))).astype(np.float32)
        expected = {"pearson": correlations(labels[:45], logits[:45, 0])["pearson"]}
    else:
        labels, logits = random.integers(0, 2, rows, dtype=np.int32), random.normal(size=(rows, 2))
        logits[np.arange(rows), labels] += 0.5
        expected = label_metrics(labels[:45], logits[:45].argmax(-1), 2)
    sums = {}
    for part in (slice(0, 24), slice(24, 48)):
        batch = {
            **dict.fromkeys(("tokens", "positions", "segments", "types"), np.zeros((24, 1), np.int32)),
            "labels": jnp.asarray(labels[part]),
            "weights": jnp.asarray(weights[part]),
        }
        apply = functools.partial(lambda part, *inputs, **named: jnp.asarray(logits[part], jnp.float32), part)
        _, found = Classification().loss(apply)({}, batch, None)
        sums = {name: sums.get(name, 0.0) + float(value) for name, value in found.items()}
    tokenizer, data = object(), LabelledText(task="score" if classes == 1 else "labels", classes=classes)
    metrics = PreparedLabels(tokenizer, (), None, None, data).metrics(sums)
    assert metrics.keys() - {"loss"} == expected.keys()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-5)
    nothing = {name: 0.0 for name in sums} | {"weight": 4.0}  # nothing varies
    assert set(PreparedLabels(tokenizer, (), None, None, data).metrics(nothing).values()) == {0.0}


def test_a_row_is_its_first_token_through_the_pooler_or_the_mean_of_its_tokens():
    labels, weights = np.zeros(3, np.int32), np.ones(3, np.float32)
    batch, params, apply = drawn(Classifier(BODY, classes=3), labels, weights)
    encode = jax.jit(lambda *inputs: BODY.build().apply({"params": params["bert"]}, *inputs, method="encode"))
    place = Tokens(jnp.asarray(batch["positions"]), jnp.asarray(SEGMENTS))
    x = np.asarray(encode(jnp.asarray(batch["tokens"]), place, jnp.asarray(batch["types"])))
    head, pooler = jax.tree.map(np.asarray, (params["class_head"], params["bert"]["pooler"]))
    pooled = np.tanh(x[:, 0] @ pooler["kernel"] + pooler["bias"])
    inputs, _ = Classification().inputs(batch)
    expected = pooled @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(apply({"params": params}, *inputs), expected, atol=1e-5)
    mean = Classifier(BODY, classes=3, pooling="mean").build()
    means = np.stack(
        [row[real > 0].mean(0) if real.any() else 0 * row[0] for row, real in zip(x, SEGMENTS, strict=True)]
    )
    found = jax.jit(mean.apply)({"params": params}, *inputs)
    np.testing.assert_allclose(found, means @ head["kernel"] + head["bias"], atol=1e-5)


def test_an_encoder_without_a_pooler_gets_one_and_only_then():
    def names(**fields):
        model = Classifier(dataclasses.replace(BODY, pooler=fields.pop("pooler")), **fields)
        tokens = jnp.ones((1, 4), jnp.int32)
        params = jax.eval_shape(model.build().init, jax.random.key(0), tokens, Tokens(tokens, tokens))[
            "params"
        ]
        return set(params) - {"class_head"}, "pooler" in params["bert"]

    assert names(pooler=True) == ({"bert"}, True)
    assert names(pooler=False) == ({"bert", "pooler"}, False)
    assert names(pooler=True, pooling="mean") == names(pooler=False, per_token=True) == ({"bert"}, False)


def test_what_does_not_fit_names_the_encoders_field():
    wrong = Classifier(dataclasses.replace(BODY, heads=3))
    assert "model.bert.heads 3 does not divide model.bert.width 16" in next(wrong.problems())
