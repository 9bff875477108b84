"""What a finished classifier says: the metrics of GLUE on the validation examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from research.data.files import read_json
from research.data.labelled_rows import LabelledBatches, LabelledRows
from research.data.labelled_text import LABELS, LabelledText, PreparedLabels
from research.evaluation.classification import correlations, label_metrics
from research.objectives.classification import Classification
from research.scale.hosts import whole
from research.training.conclusion import Conclusion
from research.training.experiment import Experiment
from research.training.program import Functions
from research.training.trained import Trained


def conclude(
    experiment: Experiment,
    prepared: PreparedLabels,
    parts: Functions,
    params: Any,
    report: Callable[[str], None],
) -> Conclusion:
    """Measures accuracy, F1 and Matthews correlation, or the correlations of scores.

    Those of further validation splits have the split's name before their own: "mismatched/accuracy".
    """
    del parts
    report("measuring the validation examples")
    params = whole(params)  # each process by itself: labels and logits are wanted in one place
    found, line = _measured(experiment, params, prepared.valid, prepared.names)
    lines = [f"validation: {line}"]
    for name, rows in prepared.others.items():
        more, line = _measured(experiment, params, rows, prepared.names)
        found |= {f"{name}/{metric}": value for metric, value in more.items()}
        lines.append(f"{name} validation: {line}")
    return Conclusion({"metrics": found}, tuple(lines), ("show {run}",))


def evaluate(trained: Trained, data: LabelledText, *, report: Callable[[str], None]) -> dict[str, Any]:
    """Returns what ``conclude`` measures, of a file; "summary" is the same for a reader.

    Args:
      trained: a run of a classifier.
      data: the description of the file, at its path.
      report: receives messages.

    Raises:
      UserError: the file cannot be read, or has a label that the run does not know.
    """
    names = tuple(read_json(trained.directory.path / LABELS))
    rows = data.rows_of_file(trained.tokenizer, names, report)
    found, line = _measured(trained.experiment, trained.params, rows, names)
    run = {"run": str(trained.directory), "step": trained.step, "examples": len(rows)}
    return {**run, "metrics": found, "summary": line}


def _measured(
    experiment: Experiment, params: Any, rows: LabelledRows, names: Sequence[str]
) -> tuple[dict[str, float], str]:
    """Returns the metrics of labelled rows, and the same for a reader."""
    batches = LabelledBatches(rows, batch=experiment.data.batch, limit=None, rows=slice(None))
    labels, logits = predictions(experiment, params, batches)
    if not names:
        found = correlations(labels, logits[:, 0])
        return found, _words(found)
    found = label_metrics(labels, logits.argmax(-1), len(names))
    of = f" (f1 of {names[1]!r})" if "f1" in found else ""
    most = np.bincount(labels).max() / len(labels)
    return found, f"{_words(found)}{of}; always the commonest label: {most:.4f}"


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
