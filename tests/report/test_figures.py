"""Pictures: what is on the frontier, axes with labels and units, files, and SVG that needs nothing else."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from research.report.figures import frontier, lines, pareto, save, svg


@pytest.mark.parametrize("higher", [True, False])
def test_the_frontier_is_what_nothing_dominates(higher):
    random = np.random.default_rng(0)
    points = [tuple(point) for point in random.integers(0, 8, (30, 2)).astype(float).tolist()]
    sign = 1 if higher else -1
    expected = {
        p for p in points
        if not any(q != p and q[0] <= p[0] and sign * q[1] >= sign * p[1] for q in points)
    }  # fmt: skip
    found = frontier(points, higher)
    assert set(found) == expected and len(found) == len(expected)
    assert all(a[0] < b[0] and sign * a[1] < sign * b[1] for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("count", [12, 40])
def test_a_picture_has_labels_a_legend_beside_it_and_every_series(tmp_path, count):
    series = {f"mechanism {n}": [(64.0, n + 1.0), (256.0, n + 2.0)] for n in range(count)}
    figure = lines(series, x="context (tokens)", y="time (ms)", log_x=True, log_y=True, marked=True)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "context (tokens)" and axes.get_ylabel() == "time (ms)"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(series)
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.get_lines()}
    assert len(looks) == count
    save(figure, tmp_path / "picture")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    figure.canvas.draw()
    legend, box = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert legend.x0 >= box.x1 and legend.x1 <= figure.bbox.x1
    assert legend.y0 >= 0 and legend.y1 <= figure.bbox.y1
    ElementTree.parse(tmp_path / "picture.svg")


def test_a_pareto_plot_shows_intervals_and_asks_nothing_of_a_network():
    figure = pareto(
        {"a": (10.0, 0.5, 0.1), "b": (1000.0, 0.9, None)}, x="state (bytes)", y="accuracy",
        higher_is_better=True,
    )  # fmt: skip
    assert figure.axes[0].get_xscale() == "log"
    text = svg(figure)
    assert text.startswith("<svg") and not re.search(r'(href|src)="(?!#)', text)
    assert "<text" not in text  # drawn as paths: no font is needed
    ElementTree.fromstring(text)


@pytest.mark.parametrize("least", [0.006, 2080.0, 5e6])
@pytest.mark.parametrize("ratio", [13.0, 31.0, 99.0, 150.0, 900.0, 16_000.0])
def test_the_labels_of_costs_can_be_read(least, ratio):
    costs = {"a": least, "b": least * ratio**0.5, "c": least * ratio}
    points = {name: (cost, 0.1 * n, None) for n, (name, cost) in enumerate(costs.items())}
    figure = pareto(points, x="state (bytes)", y="accuracy", higher_is_better=True)
    figure.draw_without_rendering()
    axis = figure.axes[0].xaxis
    low, high = axis.get_view_interval()
    boxes = sorted(
        (tick.label1.get_window_extent().x0, tick.label1.get_window_extent().x1)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if low <= tick.get_loc() <= high and tick.label1.get_text()
    )
    assert len(boxes) >= 2
    assert all(left[1] < right[0] for left, right in itertools.pairwise(boxes))
