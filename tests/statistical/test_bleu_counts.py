"""BLEU from our counts against sacreBLEU."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from research.statistical.bleu_counts import bleu, counts

SENTENCES = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=0, max_size=12)


@given(pairs=st.lists(st.tuples(SENTENCES, SENTENCES.filter(bool)), min_size=1, max_size=6))
def test_bleu_is_that_of_sacrebleu(pairs):
    translations, references = zip(*pairs, strict=True)
    lines = [[" ".join(words) for words in side] for side in (translations, references)]
    expected = BLEU(tokenize="none", force=True).corpus_score(lines[0], [lines[1]])
    found = counts(translations, references)
    assert bleu(found.sum(axis=0)) == pytest.approx(expected.score, abs=1e-9)
    assert found.sum(axis=0)[2:].tolist() == [*expected.counts, *expected.totals]


def test_many_at_once():
    found = counts([["a"] * 5, ["b", "a", "c", "d", "e"]], [["a"] * 5, ["a", "c", "d", "e", "f"]])
    np.testing.assert_allclose(bleu(found), [bleu(row) for row in found])
    assert bleu(found)[0] == pytest.approx(100)
