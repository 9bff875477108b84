"""What is done with a masked language model: measuring how it fills gaps, and filling them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from research.attention.masks import Tokens
from research.data.masked_rows import PackedRows, PairRows
from research.data.masked_text import MaskedText, PreparedMaskedText
from research.data.sentences import Sentences
from research.errors import UserError
from research.models.bert import BERT
from research.training.conclusion import Conclusion
from research.training.experiment import Experiment
from research.training.program import ALL, Functions, measure, share
from research.training.trained import Trained

_ROWS = 1 << 10
"""Rows counted at once."""


def conclude(
    experiment: Experiment,
    prepared: PreparedMaskedText,
    parts: Functions,
    params: Any,
    report: Callable[[str], None],
) -> Conclusion:
    """Measures how many gaps baselines fill, if the experiment asks for it."""
    values: dict[str, Any] = {}
    lines: list[str] = []
    if experiment.baselines:
        from research.evaluation.gaps import Bigrams, gap_accuracies

        report("measuring the whole validation text, and baselines on it")
        found = prepared.metrics(measure(parts, params, prepared.valid_batches(**share(parts.mesh))))
        values["validation"] = {f"valid/{name}": value for name, value in found.items()}
        tokenizer = prepared.tokenizer
        bigrams = Bigrams.of(_whole(prepared.train), tokenizer.vocabulary)
        values["baselines"] = gap_accuracies(bigrams, prepared.valid_batches(**ALL), tokenizer.special)
        accuracy = found["accuracy"]
        lines.append(f"masked tokens of the validation text filled right: {accuracy:.2%}; baselines on them:")
        lines += [
            f"  {name:22} {value:.2%}{'  (better than the model)' if value >= accuracy else ''}"
            for name, value in values["baselines"].items()
        ]
    if isinstance(prepared.train, PackedRows):
        values["fill"] = prepared.train.fill
        kind = "packed rows" if prepared.data.packed else "rows of one piece"
        lines.append(f"real tokens in {kind}: {prepared.train.fill:.2%}")
    following = ('fill {run} "The value is ' + prepared.tokenizer.mask_name + '."', "show {run}")
    return Conclusion(values, tuple(lines), following)


def evaluate(
    trained: Trained, data: MaskedText, *, whole: bool, report: Callable[[str], None]
) -> dict[str, Any]:
    """Returns how well a checkpoint fills gaps in text: nats, accuracy, and the number of gaps.

    Args:
      trained: the checkpoint.
      data: the text.
      whole: measure all of the text that ``data`` names, and not only the part that it holds out.
      report: receives messages.
    """
    tokenizer = trained.tokenizer
    if whole:
        texts = (text for _, text in data.texts(data.open(report).get()))
        rows = PackedRows.of(Sentences.of(texts, tokenizer), tokenizer, data.length, packed=data.packed)
        prepared = PreparedMaskedText(tokenizer, rows, rows, data)
    else:
        vocabulary = trained.experiment.model.vocabulary
        prepared = data.prepare(vocabulary=vocabulary, tokenizer=tokenizer, report=report)
    sums = measure(trained.functions, trained.params, prepared.valid_batches(**share(trained.functions.mesh)))
    return {
        "run": str(trained.directory),
        "step": trained.step,
        **prepared.metrics(sums),
        "gaps": int(sums["weight"]),
    }


def _whole(rows: PackedRows | PairRows) -> Any:
    """Yields all rows without gaps; pairs as they stand in the text."""
    for start in range(0, len(rows), _ROWS):
        numbers = np.arange(start, min(start + _ROWS, len(rows)))
        yield rows.rows(numbers, np.full((len(numbers), 4), 0.5))


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A token that may fill a gap."""

    token: str
    """As the tokenizer writes it ("##" before what goes on with a word)."""
    probability: float
    text: str
    """The whole text with it in the gap; other gaps stay."""


def fill(trained: Trained, text: str, *, top: int = 5) -> list[list[Candidate]]:
    """Returns the likeliest tokens for each mask token in a text, likeliest first.

    Args:
      trained: a run of a masked language model.
      text: with one or more mask tokens, "[MASK]".
      top: candidates for each.

    Raises:
      UserError: the run is no masked language model, the text has no mask token, or it is longer than the
        model's positions.
    """
    model, tokenizer = trained.experiment.model, trained.tokenizer
    if not isinstance(model, BERT) or not isinstance(trained.experiment.data, MaskedText):
        raise UserError(f"fill: {trained.directory} is not a run of a masked language model")
    name = tokenizer.mask_name
    parts = [part.rstrip() for part in text.strip().split(name)]  # a space before a word may be its token's
    if len(parts) == 1:
        raise UserError(f'fill: no {name} in the text; write one where a token is missing: "Two {name} two."')
    encoded = tokenizer.encode_batch(parts)
    ids = [tokenizer.first, *encoded[0]]
    gaps = []
    for part in encoded[1:]:
        gaps.append(len(ids))
        ids += [tokenizer.mask, *part]
    ids.append(tokenizer.separator)
    if len(ids) > model.context:
        raise UserError(f"fill: the text has {len(ids)} tokens, the model reads at most {model.context}")
    tokens, selected = np.array([ids], np.int32), np.array([gaps], np.int32)
    place = Tokens.arange(len(ids))
    logits, _ = jax.jit(model.build().apply)({"params": trained.params}, tokens, place, None, selected)
    probabilities = np.asarray(jax.nn.softmax(logits[0]), np.float64)[:, : tokenizer.vocabulary]
    probabilities[:, tokenizer.special] = 0.0
    return [
        [
            Candidate(tokenizer.name_of(int(i)), float(row[i]), _filled(trained, ids, gap, int(i)))
            for i in np.argsort(-row)[:top]
        ]
        for gap, row in zip(gaps, probabilities, strict=True)
    ]


def _filled(trained: Trained, ids: list[int], gap: int, token: int) -> str:
    """Returns the text with ``token`` in one gap and the mask token in all others."""
    tokenizer = trained.tokenizer
    pieces: list[str] = []
    run: list[int] = []
    for index, i in enumerate(ids[1:-1], start=1):
        if i == tokenizer.mask and index != gap:
            pieces += [tokenizer.decode(run), tokenizer.mask_name]
            run = []
        else:
            run.append(token if index == gap else i)
    return " ".join(piece for piece in [*pieces, tokenizer.decode(run)] if piece)
