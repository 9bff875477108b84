"""N-gram models against a dictionary implementation, KenLM's figures, and ARPA files."""

from __future__ import annotations

import itertools
import lzma
import math
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from kneser_ney import DictionaryKneserNey

from research.errors import UserError
from research.statistical.arpa import read_arpa, write_arpa
from research.statistical.hash_index import HashIndex
from research.statistical.ngram_model import Ngrams, assemble, estimate, perplexity


def text(sentences=60, words="abcdefg", seed=0):
    draw = random.Random(seed)
    weights = [1 / (k + 1) for k in range(len(words))]
    return [draw.choices(words, weights, k=draw.randrange(0, 7)) for _ in range(sentences)]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("sentences", [3, 80])
def test_every_probability_is_the_dictionary_implementations(order, sentences):
    ours, theirs = estimate(text(sentences), order), DictionaryKneserNey(text(sentences), order)
    words = [word for word in ours.words if word != "<s>"]
    assert set(words) == theirs.words
    for history in itertools.chain([[]], itertools.product([*words[2:5], "<unk>"], repeat=2)):
        state = ours.begin
        for word in history:
            _, states = ours.advance(np.array([state], np.int32), ours.ids([word]))
            state = states[0]
        ids = np.array([ours.words.index(word) for word in words], np.int32)
        found, _ = ours.advance(np.full(len(ids), state, np.int32), ids)
        expected = [math.log(theirs.probability(["<s>", *history], word)) for word in words]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_sum_to_one_in_every_state(order):
    model = estimate(text(200, "abcdefghijkl"), order)
    size = len(model.words)
    states, words = np.divmod(np.arange(len(model.backoffs) * size, dtype=np.int32), np.int32(size))
    found, _ = model.advance(states, words)
    table = np.exp(found).reshape(-1, size)
    np.testing.assert_allclose(np.delete(table, 1, axis=1).sum(axis=1), 1, atol=1e-12)  # all but <s>


def test_states_hold_no_more_than_can_matter():
    model = estimate([["a", "b", "c"], ["x", "b", "d"]], 3)

    def after(*words):
        state = model.begin
        for word in words:
            _, states = model.advance(np.array([state], np.int32), model.ids([word]))
            state = states[0]
        return state

    assert after("a", "b") != after("x", "b")
    assert after("d", "c") == after("c")  # nothing was seen after d c
    assert after("a", "unheard") == 0
    np.testing.assert_array_equal(model.ids(["a", "<s>", "</s>", "unheard"])[1:], 0)


def test_scores_are_sums_over_words_and_the_end():
    model = estimate(text(), 3)
    sentences = [["a", "zz", "b"], [], ["c"], list("abcabc")]
    rows = model.score_words(sentences)
    assert [len(row) for row in rows] == [4, 1, 2, 7]
    assert [model.score(s) for s in sentences] == pytest.approx([row.sum() for row in rows], abs=1e-12)
    with_unknown, without, unknown = perplexity(model, sentences)
    everything = np.concatenate(rows)
    assert with_unknown == pytest.approx(math.exp(-everything.mean()))
    assert without == pytest.approx(math.exp(-np.delete(everything, 1).mean())) and unknown == 1


@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_an_arpa_file_is_the_model_again(tmp_path, suffix):
    model = estimate(text(), 3)
    write_arpa(model, tmp_path / "lm.arpa")
    if suffix:
        (tmp_path / "lm.arpa.xz").write_bytes(lzma.compress((tmp_path / "lm.arpa").read_bytes()))
    again = read_arpa(tmp_path / f"lm.arpa{suffix}")
    assert again.words == model.words
    for name in ("contexts", "shorter", "keys", "following"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))
    np.testing.assert_allclose(again.log_probabilities, model.log_probabilities, rtol=5e-7)
    np.testing.assert_allclose(again.backoffs, model.backoffs, rtol=5e-7, atol=1e-12)
    write_arpa(again, tmp_path / "again.arpa")
    assert (tmp_path / "again.arpa").read_text() == (tmp_path / "lm.arpa").read_text()


PRUNED = """\\data\\
ngram 1=4
ngram 2=1
ngram 3=1

\\1-grams:
-1.0	<s>	-0.25
-0.5	</s>
-0.5	a	-0.5
-1.5	b	-0.125

\\2-grams:
-0.25	a b	-0.75

\\3-grams:
-0.0625	b a </s>

\\end\\
"""


def test_a_model_that_lacks_prefixes_and_the_unknown_word(tmp_path):
    (tmp_path / "lm.arpa").write_text(PRUNED)
    model = read_arpa(tmp_path / "lm.arpa")
    # a b: both words' unigram of a after <s>, then the bigram, then </s> after backing off from a b and b.
    assert model.score(["a", "b"]) / math.log(10) == pytest.approx((-0.25 - 0.5) - 0.25 - 0.75 - 0.125 - 0.5)
    # b a </s> is known, although the bigram b a is not.
    assert model.score(["b", "a"]) / math.log(10) == pytest.approx((-0.25 - 1.5) + (-0.125 - 0.5) - 0.0625)
    assert model.score(["unheard"]) / math.log(10) == pytest.approx(-0.25 - 100 - 0.5)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: t[: t.index("\\3-grams")], "is cut short: it ends at line 14, before \\3-grams:"),
        (lambda t: t[: t.index("-0.5	a")], "is cut short: of 4 1-grams that its header promises"),
        (lambda t: t[: t.index("\n\\end")], "is cut short: it ends at line 16, before \\end\\"),
        (lambda t: t.replace("ngram 2=1", "ngram 2=2"), "line 14: expected log10 p, 2 words"),
        (lambda t: t.replace("-0.25	a b", "x	a b"), "line 13: expected log10 p, 2 words"),
        (lambda t: t.replace("a b	", "a zz	"), "the word 'zz' of the 2-grams is no 1-gram"),
        (lambda t: "", "is cut short: it ends at line 0, before \\data\\"),
        (lambda t: "hello\n", "line 1: expected \\data\\: this is no ARPA file"),
        (lambda t: t.replace("	a b	", "	a b c	"), "line 13: expected log10 p, 2 words"),
    ],
)
def test_a_bad_arpa_file_is_one_line(tmp_path, change, line):
    path = tmp_path / "lm.arpa"
    path.write_text(change(PRUNED))
    with pytest.raises(UserError, match=re.escape(line)) as error:
        read_arpa(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_an_ngram_that_is_there_twice():
    rows = np.array([[0], [1], [2], [2]], np.int32)
    with pytest.raises(UserError, match="twice"):
        assemble(("<unk>", "<s>", "</s>"), [Ngrams(rows, np.zeros(4), np.zeros(4))])


@pytest.mark.parametrize("sentences", [[], [["a", "<s>"]]])
def test_text_that_gives_no_model(sentences):
    with pytest.raises(UserError, match=r"no text|special word <s>"):
        estimate(sentences, 2)


def test_the_index_finds_what_is_there_and_nothing_else():
    keys = np.unique(np.random.default_rng(0).integers(0, 1 << 40, 5000))
    index = HashIndex.of(keys)
    np.testing.assert_array_equal(index.find(keys), np.arange(len(keys)))
    others = np.setdiff1d(keys + 1, keys)
    assert (index.find(others) == -1).all()
    assert len(index.find(np.empty(0, np.int64))) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "counts", "valid", "test"),
    [(3, [18725, 95945, 189550], 51.805, 48.071), (5, None, 50.354, 47.065)],
)
def test_kenlms_figures_on_multi30k(order, counts, valid, test):
    if "HEADWAY_DATA" not in os.environ:
        pytest.skip("HEADWAY_DATA is not set: no Multi30k here")
    directory = Path(os.environ["HEADWAY_DATA"]) / "multi30k" / "tok"

    def sentences(split):
        text = lzma.decompress((directory / f"{split}.lc.norm.tok.de.xz").read_bytes()).decode()
        return [line.split() for line in text.split("\n")[:-1]]

    model = estimate(sentences("train"), order)
    if counts:
        assert model.counts() == counts
    for split, expected, unknown in (("val", valid, 396), ("test_2016_flickr", test, 320)):
        found, _, missing = perplexity(model, sentences(split))
        assert found == pytest.approx(expected, abs=6e-4) and missing == unknown
