"""BLEU of our wrapper against its formula and the published signature; lengths; significance; bad input."""

from __future__ import annotations

import math

import pytest

from research.errors import UserError
from research.evaluation.bleu import by_length, compared, scores

REFERENCES = ["the cat sat on the mat .", "a dog barks at the moon tonight .", "birds sing in the old tree ."]
HYPOTHESES = ["the cat sat on the mat .", "a dog barks at a moon .", "birds sing in an old tree ."]


def plain_bleu(hypotheses, references):
    """Papineni et al. (2002), corpus level, one reference, four orders, on words as they stand."""
    matched, total = [0] * 4, [0] * 4
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        h, r = hypothesis.split(), reference.split()
        for n in range(1, 5):
            grams = [tuple(h[i : i + n]) for i in range(len(h) - n + 1)]
            theirs = [tuple(r[i : i + n]) for i in range(len(r) - n + 1)]
            total[n - 1] += len(grams)
            matched[n - 1] += sum(min(grams.count(g), theirs.count(g)) for g in set(grams))
    ours, wanted = (sum(len(line.split()) for line in side) for side in (hypotheses, references))
    brevity = min(0.0, 1 - wanted / ours)
    return 100 * math.exp(brevity + sum(math.log(m / t) for m, t in zip(matched, total, strict=True)) / 4)


def test_bleu_is_the_formula():
    found = scores(HYPOTHESES, REFERENCES, tokenised=True)
    assert found["bleu"]["score"] == pytest.approx(plain_bleu(HYPOTHESES, REFERENCES))
    assert "tok:none" in found["bleu"]["signature"]
    assert "tok:13a" in scores(HYPOTHESES, REFERENCES)["bleu"]["signature"]
    perfect = scores(REFERENCES, REFERENCES)
    assert perfect["bleu"]["score"] == pytest.approx(100) and perfect["ter"]["score"] == 0
    assert perfect["chrf2"]["score"] == pytest.approx(100)


def test_scores_by_length_count_every_sentence_once():
    sources = ["one", "one two three", "one two three four"]
    rows = by_length(sources, HYPOTHESES, REFERENCES, tokenised=True, borders=(2, 4))
    assert [(row["first"], row["last"], row["sentences"]) for row in rows] == [
        (0, 1, 1),
        (2, 3, 1),
        (4, 4, 1),
    ]
    assert rows[0]["bleu"] == pytest.approx(100)


def test_a_better_system_is_significantly_better():
    references = [f"{line} {i}" for i, line in enumerate(REFERENCES * 30)]
    worse = [" ".join(line.split()[::-1]) for line in references]
    found = compared(references, worse, references, tokenised=True)
    assert found["first"] > found["second"] and found["p_value"] < 0.01
    assert {"nrefs:1", "bs:1000", "seed:12345", "tok:none"} <= set(found["signature"].split("|"))
    assert compared(worse, worse, references, tokenised=True)["p_value"] == 1.0


def test_bad_input_is_one_line():
    with pytest.raises(UserError, match="2 translations and 3 references"):
        scores(HYPOTHESES[:2], REFERENCES)
    with pytest.raises(UserError, match="nothing to score"):
        scores([], [])
