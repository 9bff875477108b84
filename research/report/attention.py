"""Pictures of what a translation attends to: soft alignments of a network that translates."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from research.data.parallel import ParallelText, words_of
from research.errors import UserError
from research.inference.beam import Beam
from research.report import page
from research.report.figures import save
from research.training import translation
from research.training.run_directory import RunDirectory

_WORD = 0.28
"""Inches of a row or column."""
_LONGEST = 40
"""Words of the longest sentence that is drawn."""


def heatmap(
    weights: Float[np.ndarray, "target_words source_words"],
    source: Sequence[str],
    target: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """Returns a picture with a row for each target word and a column for each source word, dark where the
    one attends to the other (Bahdanau et al., 2015, figure 3).

    Args:
      weights: attention, between 0 and 1.
      source: source words.
      target: target words.
      title: what stands above.
    """
    size = (max(2.8 + _WORD * len(source), 4.5), 1.8 + _WORD * len(target))
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "headway"}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(weights, cmap="Blues", vmin=0.0, vmax=1.0, aspect="equal")
        # A dollar sign would begin a formula.
        axes.set_xticks(range(len(source)), [w.replace("$", r"\$") for w in source], rotation=90)
        axes.set_yticks(range(len(target)), [w.replace("$", r"\$") for w in target])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        figure.colorbar(image, ax=axes, shrink=0.7, label="attention")
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def soft_alignments(run: RunDirectory, *, count: int = 3) -> list[str]:
    """Returns a section of a page: what a run's translations of validation sentences attend to.

    The pictures lie in the run directory too, as attention/N.png and .svg.

    Args:
      run: of a network that translates, with attention to its source.
      count: sentences to draw: the first that are not too long for a picture.

    Raises:
      UserError: the text cannot be read any more, the run has no checkpoint or no such attention.
    """
    trained = translation.load(str(run))
    aligner = translation.aligner_of(trained)
    data = trained.experiment.data
    assert isinstance(data, ParallelText)
    text = data.open()
    valid = text.pairs("valid") if "valid" in text.splits() else data.training_pairs(text)[1]
    fit = (words for line, _ in valid if 0 < len(words := words_of(line)) <= _LONGEST)
    sources = list(itertools.islice(fit, count))
    model = translation.translator_of(trained, Beam())
    targets = [words_of(found[0].text) for found in model.translate(map(" ".join, sources))]
    drawn = [n for n, words in enumerate(targets) if 0 < len(words) <= 2 * _LONGEST]
    sources, targets = ([side[n] for n in drawn] for side in (sources, targets))
    directory = run.path / "attention"
    directory.mkdir(exist_ok=True)
    parts = [
        page.paragraph(
            "Translations of validation sentences at the best checkpoint, and the attention of each word "
            "(row) to the words of the source (columns), means over heads; of a Transformer, in the last "
            "decoder layer but one. Files: attention/ in the run directory."
        )
    ]
    for n, (source, target, weights) in enumerate(
        zip(sources, targets, aligner.align(sources, targets), strict=True), start=1
    ):
        figure = heatmap(weights, source, target)
        save(figure, directory / str(n))
        parts.append(page.picture(figure))
    run.publish()
    return parts if len(parts) > 1 else [page.paragraph("No translation of a validation sentence has words.")]


def draws(run: RunDirectory) -> bool:
    """Returns whether a run's description is that of a network that translates with attention."""
    description = run.description()
    model = description.get("model") or {}
    translates = (description.get("objective") or {}).get("kind") == "translation"
    return translates and not (model.get("kind") == "seq2seq" and model.get("attention") is None)


def section(runs: Sequence[RunDirectory], names: Sequence[str]) -> list[str]:
    """Returns the pictures of those runs that have any; UserError of one is a note."""
    parts: list[str] = []
    for run, name in zip(runs, names, strict=True):
        if draws(run):
            parts.append(page.heading(f"Attention of {name}"))
            try:
                parts += soft_alignments(run)
            except UserError as error:
                parts.append(page.paragraph(f"Not drawn: {error}"))
    return parts
