"""Pictures of word alignments: the matrix of a sentence pair, links found over gold links."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from research.errors import UserError
from research.evaluation.alignment import AlignmentScore, Gold, Link
from research.report.figures import COLOURS, save
from research.report.page import heading, page, paragraph, picture, table

_RIGHT, _WRONG, _GOLD = COLOURS[0], COLOURS[1], "#000000"
_WORD = 0.26
"""Inches of a row or column."""


def matrix(
    source: Sequence[str],
    target: Sequence[str],
    links: Collection[Link],
    gold: Gold | None = None,
    *,
    title: str = "",
) -> Figure:
    """Returns a picture with a row for each source word and a column for each target word.

    Args:
      source: source words.
      target: target words.
      links: links (i, j), filled squares; with ``gold``, in another colour if they are not possible.
      gold: sure links, drawn as frames, and possible ones, as dashed frames.
      title: what stands above.
    """
    size = (max(2.5 + _WORD * len(target), 4.5), 1.9 + _WORD * len(source))
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "headway"}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlim(-0.5, len(target) - 0.5)
        axes.set_ylim(len(source) - 0.5, -0.5)
        axes.set_aspect("equal")
        # A dollar sign would begin a formula.
        axes.set_xticks(range(len(target)), [w.replace("$", r"\$") for w in target], rotation=90)
        axes.set_yticks(range(len(source)), [w.replace("$", r"\$") for w in source])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        for at in range(1, max(len(source), len(target))):
            for line, words in ((axes.axhline, source), (axes.axvline, target)):
                if at < len(words):
                    line(at - 0.5, color="#dddddd", lw=0.6, zorder=0)
        for i, j in links:
            colour = _RIGHT if gold is None or (i, j) in gold.possible else _WRONG
            axes.add_patch(Rectangle((j - 0.36, i - 0.36), 0.72, 0.72, color=colour, lw=0))
        for i, j in gold.possible if gold else ():
            style = "-" if gold and (i, j) in gold.sure else ":"
            frame = Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, ec=_GOLD, lw=1.3, ls=style)
            axes.add_patch(frame)
        handles = [Patch(color=_RIGHT, label="link" if gold is None else "link, right")]
        if gold is not None:
            handles += [Patch(color=_WRONG, label="link, wrong")]
            handles += [
                Patch(fill=False, ec=_GOLD, ls=style, lw=1.3, label=name)
                for name, style in (("gold, sure", "-"), ("gold, possible", ":"))
            ]
        figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=8)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def write_pictures(
    directory: Path,
    source: Sequence[Sequence[str]],
    target: Sequence[Sequence[str]],
    links: Sequence[Collection[Link]],
    gold: Sequence[Gold],
    score: AlignmentScore,
    *,
    most: int = 12,
) -> Path:
    """Draws the sentence pairs with most errors, as PNG, SVG and on a page, and returns the page.

    Args:
      directory: where to; made if it is not there.
      source: source sentences.
      target: target sentences.
      links: links of each pair.
      gold: gold links of each pair.
      score: of all of them.
      most: number of pairs to draw.

    Raises:
      UserError: the directory cannot be written.
    """
    parts, figures = _worst(source, target, links, gold, most)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for number, figure in figures.items():
            save(figure, directory / f"pair-{number}")
        parts = [paragraph(_summary(score)), *parts]
        (directory / "report.html").write_text(page("Word alignment", parts), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write pictures to {directory}: {error.strerror}") from error
    return directory / "report.html"


def pictures(
    source: Sequence[Sequence[str]],
    target: Sequence[Sequence[str]],
    links: Sequence[Collection[Link]],
    gold: Sequence[Gold],
    *,
    most: int = 12,
) -> list[str]:
    """Returns the sentence pairs with most errors as parts of a page; see ``write_pictures``."""
    return _worst(source, target, links, gold, most)[0]


def _summary(score: AlignmentScore) -> str:
    return (
        f"Precision {100 * score.precision:.2f} %, recall {100 * score.recall:.2f} %, alignment error "
        f"rate {100 * score.aer:.2f} %: {score.links:,} links in {score.pairs:,} sentence pairs."
    )


def _worst(
    source: Sequence[Sequence[str]],
    target: Sequence[Sequence[str]],
    links: Sequence[Collection[Link]],
    gold: Sequence[Gold],
    most: int,
) -> tuple[list[str], dict[int, Figure]]:
    """Returns parts of a page about the sentence pairs with most errors, and their pictures by number."""
    missed = [len(g.sure.difference(a)) for a, g in zip(links, gold, strict=True)]
    wrong = [len(set(a) - g.possible) for a, g in zip(links, gold, strict=True)]
    order = sorted(range(len(links)), key=lambda k: (-missed[k] - wrong[k], k))
    sizes = [sorted((len(e), len(f))) for e, f in zip(source, target, strict=True)]
    drawn = [k for k in order if sizes[k][0] > 0 and sizes[k][1] <= 60][:most]
    parts = [
        paragraph(
            f"The {len(drawn)} sentence pairs with most errors are drawn. Rows are source words, columns "
            "target words."
        ),
        table(
            ["pair", "links", "wrong", "sure links missed"],
            [[str(k + 1), len(links[k]), wrong[k], missed[k]] for k in drawn],
        ),
    ]
    figures = {}
    for k in drawn:
        title = f"pair {k + 1}: {wrong[k]} wrong, {missed[k]} sure links missed"
        figures[k + 1] = matrix(source[k], target[k], links[k], gold[k], title=title)
        parts += [heading(f"Pair {k + 1}"), picture(figures[k + 1])]
    return parts, figures
