"""What is measured of a model that has learned to recall: its accuracy, baselines, and longer rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from research.data.generated import PreparedTask
from research.training.conclusion import Conclusion
from research.training.experiment import Experiment
from research.training.program import Functions, measure


def conclude(
    experiment: Experiment,
    prepared: PreparedTask,
    parts: Functions,
    params: Any,
    report: Callable[[str], None],
) -> Conclusion:
    """Sets baselines beside the accuracy, and measures it on the task's test rows."""
    del experiment
    values: dict[str, Any] = {"baselines": dict(prepared.baselines), "tests": {}}
    lines = ["accuracy of what needs no model:"]
    lines += [f"  {name:30} {value:.4f}" for name, value in prepared.baselines.items()]
    for name, batches in prepared.tests.items():
        report(f"testing on {name}")
        values["tests"][name] = prepared.metrics(measure(parts, params, batches()))["accuracy"]
    if values["tests"]:
        lines.append("accuracy on test rows:")
        lines += [f"  {name:30} {value:.4f}" for name, value in values["tests"].items()]
    return Conclusion(values, tuple(lines), ("show {run}",))
