"""What the report of runs says of word aligners: results, likelihoods, and the links against gold."""

from __future__ import annotations

from collections.abc import Sequence

from research.data.files import read_json
from research.evaluation.alignment import Gold
from research.report import page
from research.report.alignments import pictures
from research.report.figures import lines
from research.statistical.iterations import WAYS
from research.training.alignment_training import GOLD, LINKS, read_links
from research.training.run_directory import RunDirectory
from research.training.trained_aligner import log_likelihoods, summary


def results(runs: Sequence[RunDirectory], names: Sequence[str]) -> str:
    """Returns a table: sizes, the last log-likelihoods; precision, recall and AER where gold was given."""
    header = ["run", "model", "sentence pairs", "source words", "target words", "iterations"]
    header += [f"log-likelihood a pair, {way}" for way in WAYS]
    header += ["links", "precision, %", "recall, %", "AER, %", "gold pairs", "seconds"]
    body: list[list[page.Cell]] = []
    for run, name in zip(runs, names, strict=True):
        found, last = summary(run.path), run.rows()[-1]
        score = found.get("score")
        rates = (
            [round(100 * score[rate], 2) for rate in ("precision", "recall", "aer")] if score else [None] * 3
        )
        body.append([
            name, found["experiment"]["aligner"]["model"],
            *(found["text"]["source"][figure] for figure in ("sentences", "words")),
            found["text"]["target"]["words"], last["step"],
            *(round(values[-1], 3) if values else None for values in found["log_likelihood"].values()),
            found.get("links"), *rates, score and score["pairs"], round(last["seconds"]),
        ])  # fmt: skip
    return page.table(header, body, text_columns=2)


def curves(runs: Sequence[RunDirectory], names: Sequence[str]) -> list[str]:
    """Returns a picture of each direction's log-likelihood by iteration."""
    parts = []
    for way in WAYS:
        values = {name: log_likelihoods(run, way) for run, name in zip(runs, names, strict=True)}
        points = {name: list(enumerate(found, start=1)) for name, found in values.items() if found}
        if points:
            figure = lines(points, x=f"iteration, {way}", y="log-likelihood of a sentence pair", marked=True)
            parts.append(page.picture(figure))
    return parts


def drawn(runs: Sequence[RunDirectory], names: Sequence[str]) -> list[str]:
    """Returns the sentence pairs of each run with most errors, gold links over those found."""
    parts = []
    for run, name in zip(runs, names, strict=True):
        if not (run.path / GOLD).exists():
            continue
        stored, found = read_json(run.path / GOLD), read_links(run.path / LINKS)
        gold = [Gold(*(frozenset(map(tuple, links)) for links in both))
                for both in zip(stored["sure"], stored["possible"], strict=True)]  # fmt: skip
        links = [found.links(pair) for pair in range(len(gold))]
        most = 12 if len(runs) == 1 else 4
        parts.append(page.heading(f"Alignments of {name}"))
        parts += pictures(stored["source"], stored["target"], links, gold, most=most)
    return parts
