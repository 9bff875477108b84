"""Detokenised lines against raw text, of Multi30k's owners and by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from research.data.parallel import ParallelText, lines_of
from research.evaluation.bleu import scores
from research.evaluation.detokenization import detokenised
from research.training.translation import raw_scores


@pytest.mark.parametrize(
    ("language", "tokens", "text"),
    [
        ("en", "the dogs &apos; bowl , &quot; 5 &lt; 6 &quot; ( he doesn &apos;t )",
         "the dogs' bowl, \"5 < 6\" (he doesn't)"),
        ("fr", "l&apos; homme qu&apos; on voit : &quot; d&apos; accord &quot; !",
         "l'homme qu'on voit: \"d'accord\"!"),
        ("de", "ein saftig-grüner ball ... &amp;quot;", "ein saftig-grüner ball... &quot;"),
        ("de", "", ""),
    ],
)  # fmt: skip
def test_lines_by_hand(language, tokens, text):
    assert detokenised(tokens, language) == text


@pytest.mark.skipif("HEADWAY_DATA" not in os.environ, reason="HEADWAY_DATA names no data")
@pytest.mark.parametrize("language", ["de", "fr"])
def test_what_its_owners_tokenised_is_their_raw_text_again(language):
    directory = Path(os.environ["HEADWAY_DATA"]) / "multi30k"
    stem = "test_2016_flickr"
    written = [
        detokenised(line, language) for line in lines_of(directory / f"tok/{stem}.lc.norm.tok.{language}.xz")
    ]
    raw = list(lines_of(directory / f"{stem}.{language}.gz"))
    # What is missing is what their normalisation changed: quotation marks, double spaces.
    assert sum(a == b.lower().strip() for a, b in zip(written, raw, strict=True)) >= 995
    assert scores(written, raw, lowercase=True)["bleu"]["score"] > 99.9


def test_translations_of_the_tokenised_form_are_scored_on_raw_text(tmp_path):
    for stem in ("train", "val", "test_2016_flickr", "test_2017_flickr", "test_2017_mscoco"):
        for language in ("en", "de"):
            (tmp_path / f"{stem}.{language}").write_text('Ein Hund, der "bellt", ist laut.\n')
    data = ParallelText(directory=str(tmp_path), tokenised=True)
    found = raw_scores(data, "test_2016_flickr", ["ein hund , der &quot; bellt &quot; , ist laut ."])
    assert found["bleu"]["score"] == pytest.approx(100) and "case:lc" in found["bleu"]["signature"]
    assert raw_scores(ParallelText(corpus="test"), "test", ["ein hund"]) is None
