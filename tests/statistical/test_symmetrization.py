"""Symmetrisation on hand-worked matrices, and growing against the published pseudo-code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.statistical.symmetrization import SYMMETRIZATIONS

NEIGHBOURS = [(-1, 0), (0, -1), (1, 0), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1)]
SIZE = 6
LINKS = st.sets(st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1)), max_size=14)


def pseudo_code(forward, backward, final):
    """Koehn's GROW-DIAG(-FINAL(-AND)), line by line, over the whole matrix."""
    alignment = forward & backward
    union = forward | backward

    def source_free(i):
        return all(a != i for a, _ in alignment)

    def target_free(j):
        return all(b != j for _, b in alignment)

    added = True
    while added:
        added = False
        for i in range(SIZE):
            for j in range(SIZE):
                if (i, j) not in alignment:
                    continue
                for a, b in NEIGHBOURS:
                    new = (i + a, j + b)
                    if (source_free(new[0]) or target_free(new[1])) and new in union and new not in alignment:
                        alignment = alignment | {new}
                        added = True
    for direction in (forward, backward) if final else ():
        for i in range(SIZE):
            for j in range(SIZE):
                free = (source_free(i), target_free(j))
                if (i, j) in direction and (all(free) if final == "and" else any(free)):
                    alignment = alignment | {(i, j)}
    return alignment


@given(forward=LINKS, backward=LINKS)
def test_growing_against_pseudo_code(forward, backward):
    assert SYMMETRIZATIONS["grow-diag"](forward, backward) == pseudo_code(forward, backward, "")
    assert SYMMETRIZATIONS["grow-diag-final"](forward, backward) == pseudo_code(forward, backward, "or")
    assert SYMMETRIZATIONS["grow-diag-final-and"](forward, backward) == pseudo_code(forward, backward, "and")


@pytest.mark.parametrize(
    ("name", "links"),
    [
        ("intersection", {(0, 0), (2, 2)}),
        ("union", {(0, 0), (2, 2), (1, 1), (5, 5), (5, 0), (4, 1)}),
        ("grow-diag", {(0, 0), (2, 2), (1, 1)}),
        # 5-5 and 4-1 join free words; 5-0 then finds the source word taken by 5-5, and 0 is taken too.
        ("grow-diag-final", {(0, 0), (2, 2), (1, 1), (5, 5), (4, 1)}),
        ("grow-diag-final-and", {(0, 0), (2, 2), (1, 1), (5, 5)}),
        ("forward", {(0, 0), (2, 2), (1, 1), (5, 5)}),
        ("backward", {(0, 0), (2, 2), (5, 0), (4, 1)}),
    ],
)
def test_by_hand(name, links):
    forward, backward = {(0, 0), (2, 2), (1, 1), (5, 5)}, {(0, 0), (2, 2), (5, 0), (4, 1)}
    assert SYMMETRIZATIONS[name](forward, backward) == links
