"""Pictures: lines and Pareto plots, as SVG for a page and as files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
"""Okabe and Ito's, told apart by the colour-blind too, less the yellow, which is pale on white."""
MARKERS = "osD^vPX"
"""Seven to eight colours, so that the pairs repeat late."""
_ENTRY = 0.21
"""Height of a legend's entry, inches."""
_STYLES = ("-", "--", ":", "-.")
_SETTINGS: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "headway",
}
Points = Sequence[tuple[float, float]]


def lines(
    series: Mapping[str, Points],
    *,
    x: str,
    y: str,
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    marked: bool = False,
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
) -> Figure:
    """Returns a picture with a line for each series, and a legend beside it.

    Args:
      series: points by name, ascending.
      x: label of the horizontal axis, with its unit.
      y: label of the vertical axis, with its unit.
      title: what stands above.
      log_x: logarithmic horizontal axis; its ticks are those of the points.
      log_y: logarithmic vertical axis.
      marked: put a marker at each point.
      bands: (x, low, high) by name, shaded.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure(x, y, title)
        for number, (name, points) in enumerate(series.items()):
            colour, marker, style = _look(number)
            xs, ys = zip(*points, strict=True) if points else ((), ())
            axes.plot(
                xs, ys, style, color=colour, marker=marker if marked else "", markersize=5, label=name, lw=1.6
            )
            if bands and (band := bands.get(name)):
                at, low, high = zip(*band, strict=True)
                axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        _scale(axes, sorted({px for points in series.values() for px, _ in points}), log_x, log_y)
        _legend(axes, len(series))
    return figure


def pareto(
    points: Mapping[str, tuple[float, float, float | None]],
    *,
    x: str,
    y: str,
    title: str = "",
    higher_is_better: bool,
    log_x: bool = True,
) -> Figure:
    """Returns a picture of cost against quality, with those that nothing beats in both joined by a line.

    Args:
      points: (cost, quality, half width of its interval or None) by name.
      x: label of the horizontal axis: the cost, lower is better.
      y: label of the vertical axis: the quality.
      title: what stands above.
      higher_is_better: whether quality is a score, not a loss.
      log_x: logarithmic horizontal axis.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure(x, y, title)
        for number, (name, (cost, quality, half)) in enumerate(points.items()):
            colour, marker, _ = _look(number)
            axes.errorbar(
                [cost], [quality], yerr=None if half is None else [half], fmt=marker, color=colour,
                markersize=8, capsize=3, label=name, zorder=3,
            )  # fmt: skip
        front = frontier([(cost, quality) for cost, quality, _ in points.values()], higher_is_better)
        axes.plot(
            *zip(*front, strict=True), color="#999999", lw=1, drawstyle="steps-post", zorder=2,
            label="nothing is better in both",
        )  # fmt: skip
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            costs = [cost for cost, _, _ in points.values()]
            if max(costs) < 12 * min(costs):  # less than a decade: a plain axis reads better
                axes.set_xscale("linear")
                axes.set_xlim(left=0)
            elif max(costs) < 100 * min(costs):  # labels between the decades too
                axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
        axes.margins(x=0.08, y=0.1)
        _legend(axes, len(points) + 1)
    return figure


def frontier(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[tuple[float, float]]:
    """Returns the (cost, quality) points that no other is at least as good as in both, by ascending cost."""
    sign = 1.0 if higher_is_better else -1.0
    found: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not found or sign * quality > sign * found[-1][1]:
            found.append((cost, quality))
    return found


def svg(figure: Figure) -> str:
    """Returns the picture as an element for an HTML page; text is drawn as paths, so no font is needed."""
    with matplotlib.rc_context(_SETTINGS):
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def save(figure: Figure, path: Path) -> None:
    """Writes the picture as ``path`` with .png and with .svg."""
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(path.with_suffix(".png"), dpi=150)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _figure(x: str, y: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    return figure, axes


def _look(number: int) -> tuple[str, str, str]:
    """Returns colour, marker and line style of the ``number``-th series; no two of the first 56 are alike."""
    return (
        COLOURS[number % len(COLOURS)],
        MARKERS[number % len(MARKERS)],
        _STYLES[number // len(COLOURS) % len(_STYLES)],
    )


def _scale(axes: Axes, at: Sequence[float], log_x: bool, log_y: bool) -> None:
    if log_x:
        axes.set_xscale("log")
        axes.set_xticks(at, [_plain(value) for value in at])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.minorticks_off()
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _plain(value: float) -> str:
    """Returns a label of a logarithmic axis without powers."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _legend(axes: Axes, entries: int) -> None:
    """Puts the legend beside the axes, where it can cover nothing, and makes the figure as high as it is."""
    if entries:
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.set_figheight(max(figure.get_figheight(), _ENTRY * entries + 0.4))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
