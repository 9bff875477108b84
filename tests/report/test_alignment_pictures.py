"""Matrices of links: what is drawn for right, wrong, missed and possible links."""

from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from research.evaluation.alignment import Gold
from research.report.alignments import matrix
from research.report.figures import COLOURS, svg


def squares(figure):
    """Fill (or None) and line style of each rectangle by the link it stands for."""
    found = {}
    for patch in figure.axes[0].patches:
        assert isinstance(patch, Rectangle)
        j, i = (
            round(at + size / 2) for at, size in zip(patch.get_xy(), (patch.get_width(),) * 2, strict=True)
        )
        look = to_hex(patch.get_facecolor()) if patch.get_fill() else patch.get_linestyle()
        found.setdefault((i, j), []).append(look)
    return found


def test_links_and_gold():
    gold = Gold(frozenset({(0, 0)}), frozenset({(0, 0), (1, 2)}))
    figure = matrix(["costs", "$5"], ["kostet", "5", "$_x^"], {(0, 0), (0, 1)}, gold, title="pair 1")
    assert squares(figure) == {(0, 0): [COLOURS[0], "-"], (0, 1): [COLOURS[1]], (1, 2): [":"]}
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["costs", r"\$5"]
    assert svg(figure).startswith("<svg")


def test_links_alone():
    assert squares(matrix(["a"], ["b", "c"], {(0, 1)})) == {(0, 1): [COLOURS[0]]}
