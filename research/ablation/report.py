"""The report of an ablation: a page, tables as CSV, pictures as PNG and SVG."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from research.ablation.grid import Ablation, Row
from research.ablation.pictures import pictures_of
from research.ablation.runner import Result, quality
from research.ablation.summary import Summary, summaries
from research.data.replacing import write_atomically
from research.errors import UserError
from research.report import page
from research.report.figures import save
from research.report.runs import metric_label
from research.report.statistics import CONFIDENCE
from research.training.description import to_json
from research.training.run_directory import flatten

PAGE, POINTS, ROWS = "report.html", "points.csv", "rows.csv"


def write(ablation: Ablation, rows: Sequence[Row], results: Sequence[Result], directory: Path) -> Path:
    """Writes everything into the ablation's directory and returns where the page lies.

    Args:
      ablation: the grid.
      rows: its combinations.
      results: of all points.
      directory: the ablation's.

    Raises:
      UserError: the directory cannot be written.
    """
    found = summaries(ablation, rows, results)
    pictures = dict(pictures_of(ablation, found, directory))
    header, body = table(ablation, found)
    try:
        write_atomically(directory / ROWS, _csv(header, body))
        write_atomically(directory / POINTS, _points(ablation, results))
        for name, figure in pictures.items():
            save(figure, directory / name)
        parts = _parts(ablation, found, results, pictures)
        write_atomically(directory / PAGE, page.page(f"Ablation: {ablation.name}", parts))
    except OSError as error:
        raise UserError(f"cannot write the report to {directory}: {error.strerror}") from error
    return directory / PAGE


def table(ablation: Ablation, found: Sequence[Summary]) -> tuple[list[str], list[list[page.Cell]]]:
    """Returns the names of the columns and a row for each summary; a row cut short ends in why it failed.

    Columns of which no row has anything (an encoder decodes nothing) are left out.
    """
    longest = str(max(ablation.contexts))
    interval = f"± {CONFIDENCE:.0%} interval" if len(ablation.seeds) > 1 else "one seed"
    header = [
        *(factor.name for factor in ablation.factors),
        "parameters",
        "learning rate",
        f"{metric_label(ablation.quality)} ({interval})",
        "less the reference's, paired by seed",
        "training tokens/s",
        "seconds to train",
        "peak memory (MiB)",
        "GFLOP per step",
        *(f"state at {n} tokens (bytes)" for n in map(str, ablation.contexts)),
        f"decoding a token at {longest} tokens (ms)",
    ]
    body: list[list[page.Cell]] = []
    for one in found:
        cells: list[page.Cell] = [label for _, label in one.row.labels]
        cells.append(one.row.parameters)
        if one.quality is None:
            body.append([*cells, "failed: " + "; ".join(one.failures)])
            continue
        peak, flops = one.mean("peak_memory_bytes"), one.results[0]["flops_per_step"]["visible"]
        seconds = one.mean("decode_seconds", longest)
        cells += [
            one.rate,
            str(one.quality),
            None if one.less_reference is None else f"{one.less_reference}",
            _whole(one.mean("tokens_per_second")),
            _whole(one.mean("seconds")),
            None if peak is None else round(peak / 2**20),
            flops / 1e9,
            *(one.results[0]["state_bytes"].get(str(n)) for n in ablation.contexts),
            None if seconds is None else 1e3 * seconds,
        ]
        body.append(cells)
    return _filled(header, body)


def _filled(header: list[str], body: list[list[page.Cell]]) -> tuple[list[str], list[list[page.Cell]]]:
    whole = [row for row in body if len(row) == len(header)]
    kept = [n for n in range(len(header)) if not whole or any(row[n] is not None for row in whole)]
    pick = [[row[n] for n in kept] if len(row) == len(header) else row for row in body]
    return [header[n] for n in kept], pick


def text_table(header: Sequence[str], body: Sequence[Sequence[page.Cell]]) -> str:
    """Returns a table for the terminal."""
    rows = [list(header), *([page.text_of(cell) for cell in row] for row in body)]
    whole = [row for row in rows if len(row) == len(header)]
    widths = [max(len(row[column]) for row in whole) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _csv(header: Sequence[str], rows: Sequence[Sequence[page.Cell]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _points(ablation: Ablation, results: Sequence[Result]) -> str:
    """Returns a CSV with everything about every point, one a line."""
    columns = ("parameters", "steps", "seconds", "tokens_per_second", "peak_memory_bytes")
    nested = ("metrics", "baselines", "flops_per_step", "state_bytes", "decode_seconds")
    keys = [
        (group, key)
        for group in nested
        for key in dict.fromkeys(k for r in results for k in r.get(group, {}))
    ]
    factors = [factor.name for factor in ablation.factors]
    header = [*factors, "learning_rate", "seed", *columns, *(f"{g}/{k}" for g, k in keys), "failed"]
    body = [
        [
            *(result["labels"][name] for name in factors),
            result["learning_rate"],
            result["seed"],
            *(result.get(column) for column in columns),
            *(result.get(group, {}).get(key) for group, key in keys),
            result.get("failed", ""),
        ]
        for result in results
    ]
    return _csv(header, body)


def _parts(
    ablation: Ablation,
    found: Sequence[Summary],
    results: Sequence[Result],
    pictures: Mapping[str, Figure],
) -> list[str]:
    header, body = table(ablation, found)
    qualities = [one.quality.mean if one.quality else None for one in found]
    there = [value for value in qualities if value is not None]
    best = qualities.index((max if ablation.higher_is_better else min)(there)) if there else None
    factors = len(ablation.factors)
    parts = [page.paragraph(_introduction(ablation, found))]
    baselines: dict[str, float] = next((r["baselines"] for r in results if r.get("baselines")), {})
    if baselines:
        words = ", ".join(f"{name} {value:.4f}" for name, value in baselines.items())
        parts.append(page.paragraph(f"What needs no model, on the same validation data: {words}."))
    parts.append(page.table(header, body, text_columns=factors, best=best))
    tests = _tests(ablation, found)
    if tests:
        parts += [page.heading("Tests of the finished models"), page.table(*tests, text_columns=factors)]
    parts += [page.picture(figure) for figure in pictures.values()]
    if len(ablation.learning_rates) > 1:
        parts += [
            page.heading("Every learning rate"),
            page.paragraph(
                f"{metric_label(ablation.quality)} with seed {ablation.seeds[0]}; each row keeps its best."
            ),
            page.table(*_rates(ablation, found), text_columns=factors),
        ]
    failures = [f"{one.row.title}, {failure}" for one in found for failure in one.failures]
    if failures:
        parts += [page.heading("Points that failed"), *(page.paragraph(line) for line in failures)]
    parts.append(page.heading("What was run"))
    parts.append(page.preformatted("the base", json.dumps(to_json(ablation.base), indent=2)))
    parts += [page.preformatted(one.row.title, _differences(ablation, one.row)) for one in found]
    return parts


def _introduction(ablation: Ablation, found: Sequence[Summary]) -> str:
    counts = [one.row.parameters for one in found]
    matched = (
        f"Parameter counts are matched over {', '.join(ablation.across)} (within 1 %, by the feed-forward "
        f"width); they lie between {min(counts):,} and {max(counts):,}."
        if ablation.across
        else "Parameter counts are not matched."
    )
    seeds = len(ablation.seeds)
    said = (
        f"Means over {seeds} seeds with {CONFIDENCE:.0%} t intervals; runs of one seed saw the same data in "
        "the same order, and differences are taken seed by seed. Bands beside curves reach from the least to "
        "the greatest."
        if seeds > 1
        else "One seed, so there are no intervals: small differences mean nothing."
    )
    within = f" with the same {' and '.join(ablation.apart)}" if ablation.apart else ""
    rates = (
        " Each row has the best of the learning rates "
        f"{', '.join(f'{rate:g}' for rate in ablation.learning_rates)}."
        if len(ablation.learning_rates) > 1
        else ""
    )
    return (
        f"{ablation.base.steps:,} steps of {ablation.base.data.tokens_per_step:,} tokens. {said}{rates} "
        f"{matched} The reference of a row is the first{within}. Times are this machine's; peak memory is "
        "the accelerator's, or on a CPU that of the whole process, Python and compiler included."
    )


def _rates(ablation: Ablation, found: Sequence[Summary]) -> tuple[list[str], list[list[page.Cell]]]:
    header = [factor.name for factor in ablation.factors]
    header += [f"{rate:g}" for rate in ablation.learning_rates]
    body: list[list[page.Cell]] = []
    for one in found:
        own = {result["learning_rate"]: result for result in one.tried}
        cells: list[page.Cell] = [label for _, label in one.row.labels]
        for rate in ablation.learning_rates:
            failed = rate not in own or "failed" in own[rate]
            cells.append("failed" if failed else f"{quality(ablation, own[rate]):.4f}")
        body.append(cells)
    return header, body


def _tests(ablation: Ablation, found: Sequence[Summary]) -> tuple[list[str], list[list[page.Cell]]] | None:
    names = dict.fromkeys(
        name for one in found for r in one.results for name in r["metrics"] if name.startswith("test/")
    )
    if not names:
        return None
    header = [*(factor.name for factor in ablation.factors), *(name.removeprefix("test/") for name in names)]
    body: list[list[page.Cell]] = [
        [*(label for _, label in one.row.labels), *(one.mean("metrics", name) for name in names)]
        for one in found
        if one.results
    ]
    return header, body


def _differences(ablation: Ablation, row: Row) -> str:
    base, own = flatten(to_json(ablation.base)), flatten(to_json(row.experiment))
    changed = {field: own.get(field) for field in (*own, *base) if own.get(field) != base.get(field)}
    return "\n".join(f"{field}: {json.dumps(value)}" for field, value in changed.items()) or "as the base"
