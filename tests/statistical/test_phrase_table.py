"""Phrase tables: scores by hand and by dictionaries, smoothing, significance, files."""

from __future__ import annotations

import collections
import dataclasses
import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats

from research.errors import UserError
from research.statistical.phrase_counting import write_counted
from research.statistical.phrase_table import (
    REORDERING,
    SCORES,
    Phrases,
    PhraseTable,
    build,
    read_table,
    write_table,
)
from research.statistical.phrases import Links
from research.statistical.significance import surprise

SOURCE = [["das", "haus"], ["das", "haus"], ["das", "buch"], ["haus", "das"], []]
TARGET = [["the", "house"], ["the", "building"], ["book"], ["the", "house"], ["x"]]
LINKS = [[(0, 0), (1, 1)], [(0, 0), (1, 1)], [(1, 0)], [(0, 1), (1, 0)], []]


def links(per_pair):
    rows = [(n, i, j) for n, found in enumerate(per_pair) for i, j in found]
    return Links(*np.array(rows, np.int64).reshape(-1, 3).T)


def rows(table):
    """{(source phrase, target phrase): (scores, reordering)} as probabilities."""
    return {
        (" ".join(source), " ".join(table.targets[row])): (
            np.exp(table.scores[row].astype(np.float64)),
            np.exp(table.reordering[row].astype(np.float64)),
        )
        for source, (first, last) in table.sources.items()
        for row in range(first, last)
    }


def test_scores_by_hand():
    found = rows(build(SOURCE, TARGET, links(LINKS)))
    assert set(found) == {
        ("das", "the"), ("haus", "house"), ("haus", "building"), ("das haus", "the house"),
        ("das haus", "the building"), ("buch", "book"), ("das buch", "book"), ("haus das", "the house"),
    }  # fmt: skip
    # haus - house: "haus" occurs three times, "house" twice, always with "haus"; the same words are linked.
    np.testing.assert_allclose(found["haus", "house"][0], [1, 1, 2 / 3, 2 / 3], rtol=1e-6)
    # das buch - book: "das" is not linked here, and is the only word that ever is not.
    np.testing.assert_allclose(found["das buch", "book"][0], [0.5, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(found["buch", "book"][0], [0.5, 1, 1, 1], rtol=1e-6)
    # das haus - the house: w(das | the) = 1, w(haus | house) = 1; w(house | haus) = 2/3.
    np.testing.assert_allclose(found["das haus", "the house"][0], [0.5, 1, 0.5, 2 / 3], rtol=1e-6)
    # haus - house: after "das" twice monotone (once it is "building"), once swapped; half a count each.
    np.testing.assert_allclose(
        found["haus", "house"][1], np.array([1.5, 1.5, 0.5, 1.5, 0.5, 1.5]) / 3.5, rtol=1e-6
    )


def random_bitext(seed=0):
    rng = np.random.default_rng(seed)
    source = [[f"s{w}" for w in rng.integers(0, 6, rng.integers(1, 6))] for _ in range(120)]
    target = [[f"t{w}" for w in rng.integers(0, 6, len(sentence))] for sentence in source]
    return source, target, [{(i, i) for i in range(len(s)) if rng.random() < 0.8} for s in source]


@pytest.mark.parametrize("smoothing", ["none", "good-turing", "kneser-ney"])
def test_conditional_probabilities_of_many_pairs(smoothing):
    source, target, alignment = random_bitext()
    found = rows(build(source, target, links(alignment), Phrases(longest=3, smoothing=smoothing)))
    counts = collections.Counter()
    for s, t, linked in zip(source, target, alignment, strict=True):
        for i in range(len(s)):
            for n in range(1, 4):
                for j in range(len(t)):
                    for m in range(1, 4):
                        inside = [(a, b) for a, b in linked if i <= a < i + n and j <= b < j + m]
                        either = [(a, b) for a, b in linked if i <= a < i + n or j <= b < j + m]
                        if inside and inside == either and i + n <= len(s) and j + m <= len(t):
                            counts[" ".join(s[i : i + n]), " ".join(t[j : j + m])] += 1
    assert set(found) == set(counts)
    for side, column in ((1, 0), (0, 2)):  # p(f|e) is given the target, p(e|f) the source
        total = collections.Counter()
        for pair, count in counts.items():
            total[pair[side]] += count
        sums = collections.Counter()
        for pair, count in counts.items():
            p = found[pair][0][column]
            sums[pair[side]] += p
            if smoothing == "none":
                assert p == pytest.approx(count / total[pair[side]], rel=1e-5)
            elif smoothing == "good-turing":
                assert p <= count / total[pair[side]] * (1 + 1e-5)
        if smoothing == "kneser-ney":  # the rest goes to pairs that are not in the table
            assert all(0 < total <= 1 + 1e-6 for total in sums.values())


def test_surprise_is_fishers_exact_test():
    rng = np.random.default_rng(0)
    first, second = rng.integers(1, 300, (2, 400))
    both = np.minimum(np.minimum(first, second), rng.integers(0, 60, 400))
    both = np.maximum(both, first + second - 500)
    expected = -scipy.stats.hypergeom.logsf(both - 1, 500, first, second)
    np.testing.assert_allclose(surprise(500, first, second, both), expected, rtol=1e-9, atol=1e-9)
    assert surprise(500, *np.array([[1], [1], [1]])) == pytest.approx(math.log(500))


def test_pairs_that_chance_may_have_made_are_dropped():
    # Both sides of "x y" occur once; "a b" are together in every second of many sentences.
    source = [["a"] if n % 2 else ["c"] for n in range(40)] + [["x"]]
    target = [["b"] if n % 2 else ["d"] for n in range(40)] + [["y"]]
    alignment = links([[(0, 0)]] * 41)
    kept = {
        choice: set(rows(build(source, target, alignment, Phrases(significance=choice))))
        for choice in ("any", "alpha-epsilon", "alpha+epsilon")
    }
    assert kept["any"] == kept["alpha-epsilon"] == {("a", "b"), ("c", "d"), ("x", "y")}
    assert kept["alpha+epsilon"] == {("a", "b"), ("c", "d")}


def test_a_file_is_the_table_again(tmp_path):
    table = build(*random_bitext()[:2], links(random_bitext()[2]))
    write_table(table, tmp_path / "phrases.parquet")
    again = read_table(tmp_path / "phrases.parquet")
    assert again.sources == table.sources and again.targets == table.targets
    np.testing.assert_array_equal(again.scores, table.scores)
    np.testing.assert_array_equal(again.reordering, table.reordering)
    best = [table.scores[first:last, 2] for first, last in table.sources.values()]
    assert all((np.diff(column) <= 0).all() for column in best)


def test_a_bad_file_is_one_line(tmp_path):
    table = PhraseTable(
        {("a",): (0, 1)}, [("b",)], np.zeros((1, 4), np.float32), np.zeros((1, 6), np.float32)
    )
    path = tmp_path / "phrases.parquet"
    write_table(table, path)
    whole = pq.read_table(path)
    for column in ("target", SCORES[1], REORDERING[5]):
        pq.write_table(whole.drop_columns([column]), path)
        with pytest.raises(UserError, match=re.escape(f"{path} has no column {column!r}")):
            read_table(path)
    for column, values, words in (
        ("source", pa.array([1]), "'source' should be text, it has int64"),
        (SCORES[0], pa.array(["x"]), "should be numbers, it has string"),
        (REORDERING[0], pa.array([None], pa.float32()), "should be numbers, it has gaps in float"),
    ):
        pq.write_table(whole.set_column(whole.column_names.index(column), column, values), path)
        with pytest.raises(UserError, match=words):
            read_table(path)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"^cannot read the phrase table .*\.parquet: [^\n]*$"):
        read_table(path)
    with pytest.raises(UserError, match=r"^cannot read the phrase table"):
        read_table(tmp_path / "nowhere")


def test_no_links_no_phrases():
    with pytest.raises(UserError, match="no links"):
        build([["a"]], [["b"]], links([[]]))


@pytest.mark.parametrize("smoothing", ["none", "good-turing", "kneser-ney"])
def test_counted_on_disk_it_is_the_same_table(smoothing, tmp_path):
    pytest.importorskip("duckdb")
    source, target, alignment = random_bitext(seed=1)
    alignment[3] = set()
    how = Phrases(longest=4, smoothing=smoothing, memory=0.1)
    said = []
    write_counted(
        source, target, links(alignment), how, tmp_path / "it's.parquet", report=said.append, sentences=7
    )
    expected = build(source, target, links(alignment), dataclasses.replace(how, memory=None))
    found = read_table(tmp_path / "it's.parquet")
    assert len(found.targets) == len(expected.targets) and [p.name for p in tmp_path.iterdir()] == [
        "it's.parquet"
    ]
    theirs = rows(expected)
    ours = rows(found)
    assert ours.keys() == theirs.keys()
    for pair, columns in ours.items():
        for column, other in zip(columns, theirs[pair], strict=True):
            np.testing.assert_allclose(column, other, rtol=1e-6)
    for first, last in found.sources.values():  # the likeliest first
        assert (np.diff(found.scores[first:last, 2]) <= 0).all()
    assert said[1] == f"{len(found.targets):,} phrase pairs"


def test_counting_on_disk_refuses(tmp_path):
    pytest.importorskip("duckdb")
    with pytest.raises(UserError, match="has no links"):
        write_counted([["a"]], [["b"]], links([[]]), Phrases(memory=0.1), tmp_path / "table")
    with pytest.raises(UserError, match=r"phrases.memory 0.01: at least 0.1"):
        Phrases(memory=0.01).validate()
    with pytest.raises(UserError, match="is computed in memory"):
        Phrases(memory=1.0, significance="alpha-epsilon").validate()
