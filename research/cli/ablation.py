"""Commands that run grids of experiments and report on runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from research.errors import UserError
from research.training.progress import say
from research.training.run_directory import on_disk

FIELDS = (
    "model", "data", "objective", "optimizer", "schedule", "steps", "accumulate", "clip", "ema", "sharding",
    "evaluation", "checkpointing", "log_every",
)  # fmt: skip
"""Fields of an ablation's base that the command line may set; the grid itself sets name and seed."""


@dataclasses.dataclass(frozen=True)
class Ablate:
    """Runs a grid of experiments, or goes on with one, and reports quality, speed, memory and state."""

    workdir: str | None = None
    """Directory of the ablation; default: runs/NAME of the ablation."""
    parallel: int = 1
    """Points to run at a time. They share out the cores, and slow each other down where memory is what they
    wait for: times are those of points with such neighbours."""
    seeds: tuple[int, ...] | None = None
    """Seeds to run, separated by commas; default: the ablation's."""
    learning_rates: tuple[float, ...] | None = None
    """Peak learning rates to try, separated by commas; default: the ablation's."""
    json: bool = False
    """Print the results of all points as one JSON object."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Writes one HTML page about runs, with curves and tables."""

    out: str | None = None
    """File to write; default: report.html, in the run directory if there is but one run."""
    json: bool = False
    """Print where it lies as one JSON object."""


def ablate(target: str, options: Ablate, overrides: Mapping[str, str]) -> None:
    """Runs ``headway ablate``."""
    if options.parallel < 1:
        raise UserError(f"--parallel {options.parallel}: at least 1")

    from research.ablation.grid import load_ablation, rows, with_overrides

    ablation = with_overrides(load_ablation(target), overrides)
    if options.seeds is not None:
        ablation = dataclasses.replace(ablation, seeds=options.seeds)
    if options.learning_rates is not None:
        ablation = dataclasses.replace(ablation, learning_rates=options.learning_rates)
    combinations = rows(ablation, say)
    directory = on_disk(options.workdir or f"runs/{ablation.name}")

    from research.ablation.report import summaries, table, text_table, write
    from research.ablation.runner import run

    results = run(ablation, combinations, directory, parallel=options.parallel, report=say)
    page = write(ablation, combinations, results, directory)
    if options.json:
        print(json.dumps({"report": str(page), "points": results}))
    else:
        print(text_table(*table(ablation, summaries(ablation, combinations, results))))
        print(f"\nreport: {page}")
    failures = [result["failed"] for result in results if "failed" in result]
    if len(failures) == len(results):
        raise UserError(f"none of {len(results)} points came to its end; the first: {failures[0]}")


def report(*runs: str, options: Report, overrides: Mapping[str, str]) -> None:
    """Runs ``headway report``."""
    del overrides
    from research.report.runs import write_report

    page = write_report(runs, None if options.out is None else Path(options.out))
    print(json.dumps({"report": str(page)}) if options.json else page)
