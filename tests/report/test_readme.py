"""The README's table of mechanisms is the one that the code gives; run this file to write it anew."""

from __future__ import annotations

import pathlib
import re

from research.attention.catalogue import capabilities
from research.attention.mechanisms import SlidingWindow
from research.attention.recurrent_mechanisms import Recurrent
from research.attention.sparse_mechanisms import BigBird, Longformer, SparseTransformer
from research.report.mechanisms import table

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"
BEGIN, END = "<!-- mechanisms: written by tests/report/test_readme.py -->\n", "<!-- end of mechanisms -->"


def oracles() -> dict[type, str]:
    """What tests compare each mechanism with."""
    layers = (ROOT / "tests/modules/test_mechanisms_oracle.py").read_text("utf-8")
    found = {}
    for cls in capabilities():
        if re.search(rf"\b{cls.__name__}\(", layers):
            found[cls] = "the layer in NumPy"
        elif issubclass(cls, (SlidingWindow, Longformer, BigBird, SparseTransformer)):
            found[cls] = "the mask, densely"  # tests/attention/test_masks.py
        elif issubclass(cls, Recurrent):
            found[cls] = "the recurrence"  # tests/attention/test_recurrent.py
    return found


def test_the_table_of_mechanisms_is_up_to_date():
    text = README.read_text("utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0] == table(oracles()) + "\n"


if __name__ == "__main__":
    before, _, rest = README.read_text("utf-8").partition(BEGIN)
    README.write_text(before + BEGIN + table(oracles()) + "\n" + END + rest.partition(END)[2], "utf-8")
