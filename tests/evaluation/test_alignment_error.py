"""Alignment error rate on hand-worked cases, and gold standards that cannot be."""

import pytest

from research.errors import UserError
from research.evaluation.alignment import Gold, alignment_score, parse_gold


def test_by_hand():
    # A = 4 links, S = 3, P = 5 (with the sure): |A & S| = 2, |A & P| = 3.
    gold = [Gold(frozenset({(0, 0), (1, 1), (2, 2)}), frozenset({(0, 0), (1, 1), (2, 2), (2, 3), (3, 3)}))]
    score = alignment_score([{(0, 0), (1, 1), (2, 3), (9, 9)}], gold)
    assert score.precision == pytest.approx(3 / 4)
    assert score.recall == pytest.approx(2 / 3)
    assert score.aer == pytest.approx(1 - (2 + 3) / (4 + 3))
    assert score.links == 4


def test_pairs_are_pooled_and_extremes():
    sure = Gold(frozenset({(0, 0)}), frozenset({(0, 0)}))
    possible = Gold(frozenset(), frozenset({(0, 0), (0, 1)}))
    assert alignment_score([{(0, 0)}, {(0, 1)}], [sure, possible]).aer == 0
    assert alignment_score([set(), set()], [sure, possible]).aer == 1
    assert alignment_score([set(), set()], [sure, possible]).precision == 1
    # Pooled: (1 + 1) / (2 + 1), not the mean of 0 and 1.
    assert alignment_score([{(0, 0)}, {(5, 5)}], [sure, possible]).aer == pytest.approx(1 / 3)


def test_both_formats_are_the_same():
    compact = parse_gold(["1-1 2p3\n", "\n", "10-2"], "gold")
    numbered = parse_gold(["0001 1 1 S", "0001 2 3 P", "", "0003 10 2"], "gold")
    assert compact == numbered
    assert compact[0] == Gold(frozenset({(0, 0)}), frozenset({(0, 0), (1, 2)}))
    assert compact[2].sure == {(9, 1)}
    assert len(parse_gold(["1 1 1 S"], "gold", [(1, 1), (4, 4)])) == 2


@pytest.mark.parametrize(
    ("lines", "lengths", "message"),
    [
        (["1-1", "0-1"], None, "gold, line 2: '0-1' is no link: expected i-j"),
        (["1-1 2-x"], None, "gold, line 1: '2-x' is no link"),
        (["1 1 1 S", "1 1 Q"], None, r"gold, line 2: expected NUMBER i j \[S|P\], from 1, found '1 1 Q'"),
        (["1-1", "3p9"], [(5, 5), (3, 8)], "gold, line 2: link 3-9 is outside .* 3 source and 8 target"),
        (["1 1 1 S", "2 6 1 P"], [(5, 5), (3, 8)], "gold, line 2: link 6-1 is outside"),
        (["1-1", "1-1"], [(1, 1)], "gold links for 2 sentence pairs, but there are 1"),
    ],
)
def test_bad_gold(lines, lengths, message):
    with pytest.raises(UserError, match=message):
        parse_gold(lines, "gold", lengths)


def test_bad_scoring():
    possible = Gold(frozenset(), frozenset({(0, 0)}))
    with pytest.raises(UserError, match="links for 1 sentence pairs, but gold links for 2"):
        alignment_score([set()], [possible, possible])
    with pytest.raises(UserError, match="no sure links"):
        alignment_score([set()], [possible])
