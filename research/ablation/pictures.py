"""Pictures of an ablation: curves, quality against cost, decoding, learning rates, longer rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from research.ablation.grid import Ablation
from research.ablation.runner import quality
from research.ablation.summary import Summary
from research.ablation.worker import RUN
from research.report.figures import lines, pareto
from research.report.runs import metric_label, series
from research.training.run_directory import RunDirectory


def pictures_of(
    ablation: Ablation, found: Sequence[Summary], directory: Path
) -> Iterator[tuple[str, Figure]]:
    """Yields (file name, picture), of rows that did not fail."""
    done = [one for one in found if one.quality is not None]
    if not done:
        return
    for name, metric in (("training_loss", "train/loss"), ("validation", ablation.quality)):
        curves, bands = _curves(done, directory, metric)
        if any(len(points) > 1 for points in curves.values()):
            marked = max(map(len, curves.values())) < 30
            yield name, lines(
                curves, bands=bands, x="step", y=metric_label(metric), marked=marked,
                title=f"{metric_label(metric).partition(' (')[0].capitalize()} during training",
            )  # fmt: skip
    yield from _against_cost(ablation, done)
    longest = str(max(ablation.contexts))
    if len(ablation.contexts) > 1 and any(one.mean("decode_seconds", longest) for one in done):
        yield "decoding", lines(
            {
                one.row.title: [
                    (n, 1e6 * seconds)
                    for n in ablation.contexts
                    if (seconds := one.mean("decode_seconds", str(n))) is not None
                ]
                for one in done
            },
            x="context (tokens)", y="time (µs per token)", log_x=True, log_y=True, marked=True,
            title="Decoding one token of one sequence",
        )  # fmt: skip
    yield from _swept(ablation, done)
    yield from _longer(done)


def _against_cost(ablation: Ablation, done: Sequence[Summary]) -> Iterator[tuple[str, Figure]]:
    """Yields quality against state, training time and decoding time."""
    longest = str(max(ablation.contexts))
    costs: dict[str, tuple[str, Callable[[Summary], float | None]]] = {
        "quality_against_state": (
            f"decoding state at {int(longest):,} tokens (bytes per sequence)",
            lambda one: one.mean("state_bytes", longest),
        ),
        "quality_against_training_time": (
            "training time (µs per token)",
            lambda one: _inverse(one.mean("tokens_per_second")),
        ),
        "quality_against_decoding_time": (
            f"decoding time at {int(longest):,} tokens (µs per token)",
            lambda one: _times(one.mean("decode_seconds", longest), 1e6),
        ),
    }
    for name, (label, cost) in costs.items():
        points = {}
        for one in done:
            value = cost(one)
            if value is not None and one.quality is not None:
                points[one.row.title] = (value, one.quality.mean, one.quality.half_width)
        if len(points) > 1:
            yield name, pareto(
                points, x=label, y=metric_label(ablation.quality),
                higher_is_better=ablation.higher_is_better,
                title=f"Quality against {name.rpartition('against_')[2].replace('_', ' ')}",
            )  # fmt: skip


def _swept(ablation: Ablation, done: Sequence[Summary]) -> Iterator[tuple[str, Figure]]:
    if len(ablation.learning_rates) < 2:
        return
    curves = {
        one.row.title: sorted(
            (result["learning_rate"], quality(ablation, result))
            for result in one.tried
            if "failed" not in result
        )
        for one in done
    }
    yield "learning_rates", lines(
        curves, x="peak learning rate", y=metric_label(ablation.quality), log_x=True, marked=True,
        title=f"Every learning rate (seed {ablation.seeds[0]})",
    )  # fmt: skip


def _longer(done: Sequence[Summary]) -> Iterator[tuple[str, Figure]]:
    """Yields the accuracy against the length of test rows, where there are such tests."""
    prefix = "test/length "
    curves = {
        one.row.title: sorted(
            (float(name.removeprefix(prefix)), one.mean("metrics", name) or 0.0)
            for name in one.results[0]["metrics"]
            if name.startswith(prefix)
        )
        for one in done
    }
    if any(len(points) > 1 for points in curves.values()):
        yield "test_lengths", lines(
            curves, x="length of the test rows (tokens)", y="accuracy", log_x=True, marked=True,
            title="Accuracy on longer rows",
        )  # fmt: skip


def _curves(
    done: Sequence[Summary], directory: Path, metric: str
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, list[tuple[float, float, float]]]]:
    """Returns the mean over seeds at each step, and the least and greatest where there are several seeds."""
    curves, bands = {}, {}
    for one in done:
        at: dict[float, list[float]] = {}
        for result in one.results:
            for step, value in series(RunDirectory(directory / result["directory"] / RUN).rows(), metric):
                at.setdefault(step, []).append(value)
        curves[one.row.title] = [(step, sum(values) / len(values)) for step, values in sorted(at.items())]
        if len(one.results) > 1:
            bands[one.row.title] = [(step, min(values), max(values)) for step, values in sorted(at.items())]
    return curves, bands


def _inverse(rate: float | None) -> float | None:
    return 1e6 / rate if rate else None


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value
