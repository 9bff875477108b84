"""Scores of translations: BLEU, chrF2 and TER, by sacreBLEU (Post, 2018)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest, Result

from research.errors import UserError

LENGTHS = (10, 15, 20, 30)
"""Borders between groups of sentences by source length, in words."""


def _metrics(tokenised: bool, lowercase: bool = False) -> dict[str, Any]:
    # `force` only silences a warning that the text looks tokenised, which it is.
    how: dict[str, Any] = {"tokenize": "none", "force": True} if tokenised else {}
    # TER never minds case unless told to.
    return {"bleu": BLEU(lowercase=lowercase, **how), "chrf2": CHRF(lowercase=lowercase), "ter": TER()}


def scores(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    tokenised: bool = False,
    lowercase: bool = False,
) -> dict[str, dict[str, Any]]:
    """Returns {metric: {"score", "signature", "text"}} of a corpus.

    Args:
      hypotheses: one translation per sentence.
      references: one reference per sentence.
      tokenised: whether the lines are tokenised already and BLEU is to take their words as they stand; if
        not, it tokenises them as WMT does ("13a").
      lowercase: whether case plays no part in BLEU and chrF2 (it never does in TER).

    Raises:
      UserError: not as many translations as references, or none.
    """
    _check(hypotheses, references)
    found = {}
    for name, metric in _metrics(tokenised, lowercase).items():
        score = metric.corpus_score(list(hypotheses), [list(references)])
        found[name] = {
            "score": score.score,
            "signature": str(metric.get_signature()),
            "text": score.format(width=2, signature=str(metric.get_signature())),
        }
    return found


def by_length(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    tokenised: bool = False,
    borders: Sequence[int] = LENGTHS,
) -> list[dict[str, Any]]:
    """Returns BLEU of the sentences between each two borders: first and last length, sentences, score."""
    _check(hypotheses, references)
    lengths = [len(source.split()) for source in sources]
    edges = [0, *borders, max([*lengths, *borders]) + 1]
    rows = []
    for first, end in itertools.pairwise(edges):
        chosen = [i for i, length in enumerate(lengths) if first <= length < end]
        if chosen:
            bleu = _metrics(tokenised)["bleu"].corpus_score(
                [hypotheses[i] for i in chosen], [[references[i] for i in chosen]]
            )
            rows.append({"first": first, "last": end - 1, "sentences": len(chosen), "bleu": bleu.score})
    return rows


def compared(
    first: Sequence[str], second: Sequence[str], references: Sequence[str], *, tokenised: bool = False
) -> dict[str, Any]:
    """Returns BLEU of two systems, and the p-value of their difference by paired bootstrap (Koehn, 2004).

    {"first"; "second"; "p_value"; "signature": sacreBLEU's, of the scores and of the bootstrap}.
    """
    _check(first, references)
    _check(second, references)
    systems: list[tuple[str, Sequence[str]]] = [("first", list(first)), ("second", list(second))]
    metrics = {"BLEU": _metrics(tokenised)["bleu"]}
    test = PairedTest(systems, metrics, [list(references)], test_type="bs", n_samples=1000)
    signatures, found = test()
    one, two = (cast(Result, result) for result in found["BLEU"])
    # Of two that are the same, every resampled difference is "as large": sacreBLEU would say significant.
    p_value = 1.0 if list(first) == list(second) else two.p_value
    signature = str(signatures["BLEU"])
    return {"first": one.score, "second": two.score, "p_value": p_value or 0.0, "signature": signature}


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        raise UserError(
            f"{len(hypotheses)} translations and {len(references)} references; they must be as many"
        )
    if not references:
        raise UserError("there is nothing to score: no sentences")
