"""What a finished classifier says: the metrics of GLUE on the validation examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from research.data.labelled_text import PreparedLabels
from research.evaluation.classification import correlations, label_metrics
from research.objectives.classification import Classification
from research.scale.hosts import whole
from research.training.conclusion import Conclusion
from research.training.experiment import Experiment
from research.training.program import ALL, Functions


def conclude(
    experiment: Experiment,
    prepared: PreparedLabels,
    parts: Functions,
    params: Any,
    report: Callable[[str], None],
) -> Conclusion:
    """Measures accuracy, F1 and Matthews correlation, or the correlations of scores."""
    del parts
    report("measuring the validation examples")
    # Each process by itself: labels and logits are wanted in one place.
    labels, logits = predictions(experiment, whole(params), prepared.valid_batches(**ALL))
    if prepared.data.task == "score":
        found = correlations(labels, logits[:, 0])
        lines = [f"validation: {_words(found)}"]
    else:
        found = label_metrics(labels, logits.argmax(-1), len(prepared.names))
        most = np.bincount(labels).max() / len(labels)
        of = f" (f1 of {prepared.names[1]!r})" if "f1" in found else ""
        lines = [f"validation: {_words(found)}{of}; always the commonest label: {most:.4f}"]
    return Conclusion({"metrics": found}, tuple(lines), ("show {run}",))


def predictions(
    experiment: Experiment, params: Any, batches: Iterable[dict[str, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels [examples] and logits [examples, classes] of what has weight in the batches."""
    apply = jax.jit(experiment.model.build().apply)
    labels, logits = [], []
    for batch in batches:
        inputs, named = Classification().inputs(batch)  # type: ignore[arg-type]  # NumPy arrays will do
        real = batch["weights"] > 0
        labels.append(batch["labels"][real])
        logits.append(np.asarray(apply({"params": params}, *inputs, **named))[real])
    return np.concatenate(labels), np.concatenate(logits)


def _words(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items())
