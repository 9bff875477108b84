"""Metrics of classification against their definitions, example by example."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from research.evaluation.classification import correlations, f1, label_metrics, macro_f1, matthews

RANDOM = np.random.default_rng(0)


def test_binary_metrics_from_the_four_counts():
    labels, predicted = RANDOM.integers(0, 2, 200), RANDOM.integers(0, 2, 200)
    labels[:60] = predicted[:60]
    tp, tn, fp, fn = (
        int(((labels == a) & (predicted == b)).sum()) for a, b in ((1, 1), (0, 0), (0, 1), (1, 0))
    )
    found = label_metrics(labels, predicted, 2)
    assert found["accuracy"] == pytest.approx((tp + tn) / 200)
    assert found["f1"] == pytest.approx(tp / (tp + (fp + fn) / 2))
    denominator = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert found["matthews"] == pytest.approx((tp * tn - fp * fn) / denominator)


def test_metrics_of_many_classes():
    labels, predicted = RANDOM.integers(0, 5, 300), RANDOM.integers(0, 5, 300)
    labels[:100] = predicted[:100]
    scores = [f1((labels == c).astype(int), (predicted == c).astype(int)) for c in range(5)]
    assert macro_f1(labels, predicted) == pytest.approx(np.mean(scores))
    one_hot = [np.eye(5)[x] - np.eye(5)[x].mean(0) for x in (labels, predicted)]
    covariance = [[(a * b).sum() for b in one_hot] for a in one_hot]  # Gorodkin's definition
    expected = covariance[0][1] / math.sqrt(covariance[0][0] * covariance[1][1])
    assert matthews(labels, predicted) == pytest.approx(expected)
    for part in (slice(None), labels < 2):  # three labels may be missing from what is measured
        found = label_metrics(labels[part], np.minimum(predicted[part], labels[part]), 5)
        assert set(found) == {"accuracy", "macro_f1", "matthews"}


def test_correlations_from_ranks_and_moments():
    x = RANDOM.normal(size=40).round(1)  # with ties
    y = x**3 + RANDOM.normal(size=40)

    def pearson(a, b):
        a, b = a - a.mean(), b - b.mean()
        return (a @ b) / math.sqrt((a @ a) * (b @ b))

    def ranks(a):
        return np.array([(a < v).sum() + ((a == v).sum() + 1) / 2 for v in a])

    found = correlations(x, y)
    assert found["pearson"] == pytest.approx(pearson(x, y))
    assert found["spearman"] == pytest.approx(pearson(ranks(x), ranks(y)))


def test_what_does_not_vary_has_no_correlation():
    for labels, predicted in itertools.product(([1, 1, 1], [0, 1, 1]), ([1, 1, 1], [0, 0, 0])):
        assert matthews(np.array(labels), np.array(predicted)) == 0.0
    assert correlations(np.ones(3), np.arange(3.0)) == {"pearson": 0.0, "spearman": 0.0}
    assert f1(np.zeros(3, int), np.zeros(3, int)) == 0.0
