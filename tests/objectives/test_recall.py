"""Recall: sums against NumPy, and what is refused."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from research.data.induction import Induction
from research.models.gpt import GPT
from research.objectives.recall import Recall


def test_sums_are_those_of_the_answers_alone():
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 5, 7)).astype(np.float32)
    logits[0, 0] = np.nan  # where nothing is asked, anything may be predicted
    targets = random.integers(7, size=(2, 5)).astype(np.int32)
    weights = np.zeros((2, 5), np.float32)
    weights[0, 3] = weights[1, 1] = weights[1, 4] = 1
    targets[0, 3] = logits[0, 3].argmax()
    targets[1, 1], targets[1, 4] = logits[1, 1].argmin(), logits[1, 4].argmax()
    batch = {
        "tokens": targets, "targets": targets, "weights": weights,
        "positions": targets, "segments": np.ones_like(targets),
    }  # fmt: skip
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    loss = Recall().loss(lambda variables, tokens, place, key: (jnp.asarray(logits), None))
    total, sums = loss({}, batch, None)
    chances = np.exp(logits.astype(np.float64))
    chances /= chances.sum(-1, keepdims=True)
    expected = -sum(np.log(chances[i, j, targets[i, j]]) for i, j in np.argwhere(weights))
    assert float(total) == float(sums["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(sums["weight"]) == 3 and float(sums["accuracy"]) == 2


def test_rows_that_do_not_fit_the_model_are_problems():
    data = Induction(symbols=16, length=64, questions=2, test_lengths=(128,))
    problems = list(Recall().problems(GPT(vocabulary=16, context=64), data))
    assert problems == [
        "the data has rows of 128 tokens, longer than model.context 64; use --model.context 128 or shorter "
        "rows",
        "the data has 17 different tokens, model.vocabulary is 16; use --model.vocabulary 17",
    ]
    assert not list(Recall().problems(GPT(vocabulary=17, context=128), data))
