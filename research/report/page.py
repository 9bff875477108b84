"""A page: one HTML file with its pictures inside, which asks nothing of a network."""

from __future__ import annotations

import html
import os
import platform
from collections.abc import Sequence

from matplotlib.figure import Figure

from research.report.figures import svg

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums }
.wide { overflow-x: auto }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #888; vertical-align: bottom; font-weight: 600 }
td.text, th.text { text-align: left } td.failed { text-align: left; color: #a00; white-space: normal }
tr.best td { background: #eef6ee } p.note { color: #555; max-width: 60rem }
svg { max-width: 100%; height: auto }
pre { background: #f6f6f6; padding: 0.7rem; overflow-x: auto; font-size: 0.8rem } summary { cursor: pointer }
"""
Cell = str | float | int | None


def page(title: str, parts: Sequence[str]) -> str:
    """Returns the page; ``parts`` are HTML, as the other functions here return."""
    import jax

    where = (
        f"Python {platform.python_version()}, JAX {jax.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores; written by headway."
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{html.escape(title)}</h1>\n"
        + "\n".join(parts)
        + f'\n<p class="note">{html.escape(where)}</p>\n</body></html>\n'
    )


def heading(text: str) -> str:
    """Returns a section's heading."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    """Returns an explanation."""
    return f'<p class="note">{html.escape(text)}</p>'


def picture(figure: Figure) -> str:
    """Returns a picture, drawn in the page itself."""
    return f"<figure>{svg(figure)}</figure>"


def preformatted(summary: str, text: str) -> str:
    """Returns text that unfolds when its summary is clicked."""
    return f"<details><summary>{html.escape(summary)}</summary><pre>{html.escape(text)}</pre></details>"


def table(
    header: Sequence[str], rows: Sequence[Sequence[Cell]], *, text_columns: int = 1, best: int | None = None
) -> str:
    """Returns a table.

    Args:
      header: names of the columns.
      rows: cells; a row that is shorter than the header ends in a reason for its failure, which takes the
        rest of the line.
      text_columns: leading columns that hold text.
      best: row to set off.
    """
    head = "".join(
        f'<th class="text">{html.escape(name)}</th>'
        if column < text_columns
        else f"<th>{html.escape(name)}</th>"
        for column, name in enumerate(header)
    )
    body = []
    for number, row in enumerate(rows):
        cells = []
        for column, value in enumerate(row):
            escaped = html.escape(text_of(value))
            if len(row) < len(header) and column == len(row) - 1:
                cells.append(f'<td class="failed" colspan="{len(header) - column}">{escaped}</td>')
            else:
                kind = ' class="text"' if column < text_columns else ""
                cells.append(f"<td{kind}>{escaped}</td>")
        mark = ' class="best"' if number == best else ""
        body.append(f"<tr{mark}>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def text_of(value: Cell) -> str:
    """Returns a cell's text: whole numbers with separators, others with four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else value
