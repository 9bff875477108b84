"""Phrase extraction: the textbook's worked example, and every span tried by brute force."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from research.statistical import phrases
from research.statistical.bitext import encode
from research.statistical.phrases import DISCONTINUOUS, MONOTONE, SWAP, Links, extract, number_phrases

# Koehn, "Statistical Machine Translation" (2010), section 5.2.3; the comma has no link.
GERMAN = ["michael", "geht", "davon", "aus", ",", "dass", "er", "im", "haus", "bleibt"]
ENGLISH = ["michael", "assumes", "that", "he", "will", "stay", "in", "the", "house"]
LINKS = [(0, 0), (1, 1), (2, 1), (3, 1), (5, 2), (6, 3), (7, 6), (7, 7), (8, 8), (9, 4), (9, 5)]
PAIRS = """
michael = michael
michael geht davon aus = michael assumes
michael geht davon aus , = michael assumes
michael geht davon aus , dass = michael assumes that
michael geht davon aus , dass er = michael assumes that he
michael geht davon aus , dass er im haus bleibt = michael assumes that he will stay in the house
geht davon aus = assumes
geht davon aus , = assumes
geht davon aus , dass = assumes that
geht davon aus , dass er = assumes that he
geht davon aus , dass er im haus bleibt = assumes that he will stay in the house
dass = that
, dass = that
dass er = that he
, dass er = that he
dass er im haus bleibt = that he will stay in the house
, dass er im haus bleibt = that he will stay in the house
er = he
er im haus bleibt = he will stay in the house
im = in the
im haus = in the house
im haus bleibt = will stay in the house
haus = house
bleibt = will stay
"""


def extracted(bitext, longest):
    """All occurrences as tuples: pair, source span, target span (last words included), orientations."""
    source, target = (encode([pair[side] for pair in bitext]) for side in (0, 1))
    rows = [(n, i, j) for n, (_, _, links) in enumerate(bitext) for i, j in sorted(links)]
    found = extract(source, target, Links(*np.array(rows, np.int64).reshape(-1, 3).T), longest)
    result = []
    for s, n, t, m, before, after in zip(*(column.tolist() for column in found), strict=True):
        pair = int(np.searchsorted(source.starts, s, side="right")) - 1
        i, j = s - int(source.starts[pair]), t - int(target.starts[pair])
        result.append((pair, i, i + n, j, j + m, before, after))
    return result


def by_brute_force(bitext, longest):
    found = []
    for number, (source, target, links) in enumerate(bitext):
        ends = {(-1, -1), (len(source), len(target))}
        for i in range(len(source)):
            for i_end in range(i + 1, min(i + longest, len(source)) + 1):
                for j in range(len(target)):
                    for j_end in range(j + 1, min(j + longest, len(target)) + 1):
                        inside = [i <= a < i_end and j <= b < j_end for a, b in links]
                        either = [i <= a < i_end or j <= b < j_end for a, b in links]
                        if any(inside) and inside == either:
                            corners = links | ends
                            before = orientation((i - 1, j - 1) in corners, (i_end, j - 1) in corners)
                            after = orientation((i_end, j_end) in corners, (i - 1, j_end) in corners)
                            found.append((number, i, i_end, j, j_end, before, after))
    return found


def orientation(straight, crossed):
    return DISCONTINUOUS if straight == crossed else MONOTONE if straight else SWAP


def test_the_textbooks_example():
    found = extracted([(GERMAN, ENGLISH, set(LINKS))], 10)
    texts = {(" ".join(GERMAN[i:k]), " ".join(ENGLISH[j:m])) for _, i, k, j, m, _, _ in found}
    assert texts == {tuple(line.split(" = ")) for line in PAIRS.strip().split("\n")}
    assert len(found) == len(texts) == 24


def test_orientations_of_the_textbooks_example():
    found = extracted([(GERMAN, ENGLISH, set(LINKS))], 10)
    orientations = {(" ".join(GERMAN[i:k]), j): (before, after) for _, i, k, j, _, before, after in found}
    assert orientations["michael", 0] == (MONOTONE, MONOTONE)
    assert orientations["im haus", 6] == (SWAP, DISCONTINUOUS)  # after "bleibt", which stands behind it
    assert orientations["bleibt", 4] == (DISCONTINUOUS, DISCONTINUOUS)


@st.composite
def bitexts(draw):
    pairs = []
    for _ in range(draw(st.integers(1, 3))):
        sizes = draw(st.integers(0, 7)), draw(st.integers(0, 7))
        source, target = (draw(st.lists(st.sampled_from("abc"), min_size=n, max_size=n)) for n in sizes)
        cells = [(i, j) for i in range(sizes[0]) for j in range(sizes[1])]
        links = draw(st.sets(st.sampled_from(cells), max_size=9)) if cells else set()
        pairs.append((source, target, links))
    return pairs


@given(bitexts(), st.integers(1, 5))
def test_extraction_is_what_brute_force_finds(bitext, longest):
    assert sorted(extracted(bitext, longest)) == sorted(by_brute_force(bitext, longest))


def test_parts_of_a_bitext_are_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    bitext = []
    for _ in range(30):
        cells = {(int(i), int(j)) for i, j in rng.integers(0, 8, (6, 2))}
        bitext.append((list("abcdefgh"), list("stuvwxyz"), cells if rng.random() < 0.8 else set()))
    whole = sorted(extracted(bitext, 4))
    monkeypatch.setattr(phrases, "_CELLS", 250)
    assert sorted(extracted(bitext, 4)) == whole


def test_equal_phrases_have_equal_numbers():
    side = encode([list("abab"), list("ba"), []])
    found = number_phrases(side, 3)
    spans = {}
    for length in (1, 2, 3):
        for first in range(len(side.tokens)):
            number = found.numbers[length - 1, first]
            if length > (4 - first if first < 4 else 6 - first):
                assert number == -1
            else:
                text = tuple("ababba"[first : first + length])
                assert spans.setdefault(text, number) == number
                start = found.first[number]
                assert tuple("ababba"[start : start + found.length[number]]) == text
    assert sorted(spans.values()) == list(range(len(found.length))) == list(range(6))
