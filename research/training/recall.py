"""What is measured of a model that has learned to recall: its accuracy, baselines, and longer rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from research.data.generated import PreparedTask
from research.training.conclusion import Conclusion
from research.training.experiment import Experiment
from research.training.program import Functions, measure, share
from research.training.trained import Trained


def conclude(
    experiment: Experiment,
    prepared: PreparedTask,
    parts: Functions,
    params: Any,
    report: Callable[[str], None],
) -> Conclusion:
    """Sets baselines beside the accuracy, and measures it on the task's test rows."""
    del experiment
    baselines, tests = dict(prepared.baselines), _tests(prepared, parts, params, report)
    lines = ["accuracy of what needs no model:"]
    lines += [f"  {name:30} {value:.4f}" for name, value in baselines.items()]
    if tests:
        lines.append("accuracy on test rows:")
        lines += [f"  {name:30} {value:.4f}" for name, value in tests.items()]
    return Conclusion(
        {"baselines": baselines, "tests": tests}, tuple(lines), ("evaluate {run}", "show {run}")
    )


def evaluate(trained: Trained, *, report: Callable[[str], None]) -> dict[str, Any]:
    """Returns a checkpoint's accuracy on validation and test rows, beside that of what needs no model."""
    experiment = trained.experiment
    prepared = experiment.data.prepare(vocabulary=experiment.model.vocabulary, report=report)
    assert isinstance(prepared, PreparedTask)
    found = prepared.metrics(
        measure(trained.functions, trained.params, prepared.valid_batches(**share(trained.functions.mesh)))
    )
    return {
        "run": str(trained.directory),
        "step": trained.step,
        **found,
        "baselines": dict(prepared.baselines),
        "tests": _tests(prepared, trained.functions, trained.params, report),
    }


def _tests(
    prepared: PreparedTask, parts: Functions, params: Any, report: Callable[[str], None]
) -> dict[str, float]:
    """Returns the accuracy on each kind of test rows."""
    found = {}
    for name, batches in prepared.tests.items():
        report(f"testing on {name}")
        found[name] = prepared.metrics(measure(parts, params, batches()))["accuracy"]
    return found
