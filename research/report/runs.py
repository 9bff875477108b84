"""The report of one run, or of several side by side: what they are, how they went, what they came to."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.data.replacing import write_atomically
from research.errors import UserError
from research.report import aligner_runs, attention, page
from research.report.figures import lines
from research.training.run_directory import (
    RunDirectory,
    flatten,
    higher_is_better,
    open_run,
)
from research.training.trained_aligner import is_aligner


def write_report(runs: Sequence[str | Path], out: Path | None = None) -> Path:
    """Writes one HTML page about runs, with curves and tables, and returns where it lies.

    Args:
      runs: run directories.
      out: file to write; default: report.html, in the run directory if there is but one run, on this machine.

    Raises:
      UserError: no run directory, one without metrics, or a file that cannot be written.
    """
    found = [open_run(path) for path in runs]
    for run in found:
        if not run.rows():
            raise UserError(f"{run} has no metrics yet: nothing was logged before the run stopped")
    if out is None:
        alone = len(found) == 1 and not found[0].mirror
        out = found[0].path / "report.html" if alone else Path("report.html")
    names = _names(found)
    aligners = [is_aligner(run.path) for run in found]
    if any(aligners) and not all(aligners):
        raise UserError(
            f"{found[aligners.index(True)].path} is an aligner's run and "
            f"{found[aligners.index(False)].path} is not: there is nothing to compare"
        )
    results = aligner_runs.results(found, names) if all(aligners) else _results(found, names)
    parts = [page.heading("Results"), results]
    if len(found) > 1:
        parts += [page.heading("In what they differ"), _differences(found, names)]
    parts += [page.heading("Curves")]
    parts += aligner_runs.curves(found, names) if all(aligners) else _curves(found, names)
    parts += (aligner_runs.drawn if all(aligners) else attention.section)(found, names)
    parts.append(page.heading("Descriptions"))
    for run, name in zip(found, names, strict=True):
        parts.append(page.preformatted(name, json.dumps(run.description(), indent=2)))
    title = f"Run {found[0].description()['name']}" if len(found) == 1 else f"{len(found)} runs"
    try:
        write_atomically(out, page.page(title, parts))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error
    return out


def series(rows: Sequence[dict[str, Any]], metric: str) -> list[tuple[float, float]]:
    """Returns (step, value) of every line of metrics.jsonl that has the metric."""
    return [(row["step"], row[metric]) for row in rows if metric in row]


def metric_label(metric: str) -> str:
    """Returns an axis label for a metric, with its unit where it has one."""
    part, _, name = metric.partition("/")
    units = {"loss": "loss (nats)", "bits_per_byte": "bits per byte", "bleu": "BLEU"}
    side = {"train": "training ", "valid": "validation ", "test": "test "}.get(part, "")
    return side + units.get(name, name.replace("_", " "))


def _names(runs: Sequence[RunDirectory]) -> list[str]:
    """Returns a short name of each run: the end of its path that tells it from the others."""
    paths = [run.place.resolve().parts for run in runs]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise UserError("the same run is there twice")


def _results(runs: Sequence[RunDirectory], names: Sequence[str]) -> str:
    metrics = _metrics(runs, "valid/")
    header = ["run", "steps", *(f"best {metric_label(m)}" for m in metrics),
              "training tokens/s", "seconds"]  # fmt: skip
    body = []
    for run, name in zip(runs, names, strict=True):
        rows = run.rows()
        best: list[page.Cell] = []
        for metric in metrics:
            values = [value for _, value in series(rows, metric)]
            pick = max if higher_is_better(metric) else min
            best.append(pick(values) if values else None)
        rates = [rate for _, rate in series(rows, "tokens_per_second")]
        rate = round(statistics.median(rates)) if rates else None
        seconds = round(rows[-1]["seconds"]) if "seconds" in rows[-1] else None
        body.append([name, rows[-1]["step"], *best, rate, seconds])
    return page.table(header, body)


def _differences(runs: Sequence[RunDirectory], names: Sequence[str]) -> str:
    flat = [flatten(run.description()) for run in runs]
    fields = [
        field
        for field in dict.fromkeys(field for description in flat for field in description)
        if len({json.dumps(description.get(field)) for description in flat}) > 1 and field != "name"
    ]
    if not fields:
        return page.paragraph("In nothing but their names.")
    body = [
        [name, *(_plain(description.get(field)) for field in fields)]
        for name, description in zip(names, flat, strict=True)
    ]
    return page.table(["run", *fields], body)


def _plain(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)


def _curves(runs: Sequence[RunDirectory], names: Sequence[str]) -> list[str]:
    pictures = []
    for metric in (*_metrics(runs, "train/loss"), *_metrics(runs, "valid/")):
        curves = {name: series(run.rows(), metric) for run, name in zip(runs, names, strict=True)}
        curves = {name: points for name, points in curves.items() if points}
        marked = max(map(len, curves.values())) < 30
        figure = lines(curves, x="step", y=metric_label(metric), marked=marked)
        pictures.append(page.picture(figure))
    return pictures


def _metrics(runs: Sequence[RunDirectory], prefix: str) -> list[str]:
    """Returns the metrics that start so, of any of the runs, in the order in which they occur."""
    names = (name for run in runs for row in run.rows() for name in row if name.startswith(prefix))
    return list(dict.fromkeys(names))
