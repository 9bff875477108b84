"""Metrics of classification as GLUE reports them (Wang et al., 2019): from labels and predictions."""

from __future__ import annotations

import numpy as np
import scipy.stats
from jaxtyping import Float, Int


def accuracy(labels: Int[np.ndarray, " examples"], predicted: Int[np.ndarray, " examples"]) -> float:
    """Returns the share of examples predicted right."""
    return float(np.mean(labels == predicted))


def f1(labels: Int[np.ndarray, " examples"], predicted: Int[np.ndarray, " examples"]) -> float:
    """Returns the harmonic mean of precision and recall of class 1; 0 if there is nothing right."""
    right = int(((labels == 1) & (predicted == 1)).sum())
    found, there = int((predicted == 1).sum()), int((labels == 1).sum())
    return 2.0 * right / (found + there) if found + there else 0.0


def macro_f1(labels: Int[np.ndarray, " examples"], predicted: Int[np.ndarray, " examples"]) -> float:
    """Returns the mean, over the classes that occur in either, of the F1 of each."""
    classes = np.union1d(labels, predicted)
    return float(np.mean([f1((labels == c).astype(int), (predicted == c).astype(int)) for c in classes]))


def matthews(labels: Int[np.ndarray, " examples"], predicted: Int[np.ndarray, " examples"]) -> float:
    """Returns the correlation of labels and predictions, for any number of classes (Gorodkin, 2004).

    0 where either is of one class only.
    """
    classes = int(max(labels.max(), predicted.max())) + 1
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (labels, predicted), 1)
    there, found, count = confusion.sum(1), confusion.sum(0), confusion.sum()
    spread = (count**2 - there @ there) * (count**2 - found @ found)
    return float((np.trace(confusion) * count - there @ found) / np.sqrt(spread)) if spread else 0.0


def correlations(
    scores: Float[np.ndarray, " examples"], predicted: Float[np.ndarray, " examples"]
) -> dict[str, float]:
    """Returns Pearson's and Spearman's correlation; 0 where either side does not vary."""
    if np.ptp(scores) == 0 or np.ptp(predicted) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": float(scipy.stats.pearsonr(scores, predicted).statistic),
        "spearman": float(scipy.stats.spearmanr(scores, predicted).statistic),
    }


def label_metrics(labels: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float]:
    """Returns accuracy, Matthews correlation, and F1 (of class 1 for two classes, else the macro mean)."""
    name, score = ("f1", f1) if classes == 2 else ("macro_f1", macro_f1)
    return {
        "accuracy": accuracy(labels, predicted),
        name: score(labels, predicted),
        "matthews": matthews(labels, predicted),
    }
