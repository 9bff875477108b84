"""Translation options: what each phrase of a text may become, and the features of the log-linear model.

Koehn, Och & Marcu (2003); Koehn, "Statistical Machine Translation" (2010), sections 5.3 and 6.2. Options
carry feature values, not scores: they are collected once for a text and weighted anew by every tuning step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int64

from research.errors import UserError, nearest
from research.statistical.language_model import LanguageModel, TargetPhrases, target_phrases
from research.statistical.phrase_table import PhraseTable

FEATURES = (
    "language_model",
    "distortion",
    "words",
    "phrases",
    "unknown",
    "inverse_phrase",
    "inverse_lexical",
    "direct_phrase",
    "direct_lexical",
    "previous_monotone",
    "previous_swap",
    "previous_discontinuous",
    "next_monotone",
    "next_swap",
    "next_discontinuous",
)
"""Features of a derivation, in the order of feature vectors.

Natural log-probabilities (language model; phrase table: inverse is p(source | target); lexicalised
reordering of each phrase towards the one before and the one after it), minus the words jumped over
(distortion), and numbers of target words, of phrases, and of unknown words, which are copied.
"""
OWN = 9
"""The first features are an option's own; the last six depend on its neighbours."""

DEFAULT_WEIGHTS: dict[str, float] = {
    "language_model": 0.5,
    "distortion": 0.3,
    "words": 1.0,
    "phrases": 0.2,
    "unknown": -100.0,
    **dict.fromkeys(FEATURES[5:9], 0.2),
    **dict.fromkeys(FEATURES[9:], 0.3),
}
"""Moses's weights before tuning."""
FIXED = ("unknown",)
"""Weights that are not tuned: every derivation of a sentence has as many unknown words."""


def weight_vector(weights: Mapping[str, float]) -> Float64[np.ndarray, " features"]:
    """Returns weights in the order of ``FEATURES``.

    Raises:
      UserError: a name is unknown or missing, or a weight is not a finite number.
    """
    for name, weight in weights.items():
        if name not in FEATURES:
            raise UserError(f"weight of an unknown feature {name!r}{nearest(name, FEATURES)}")
        if not math.isfinite(weight):
            raise UserError(f"weight {name} is {weight}; it must be a finite number")
    missing = [name for name in FEATURES if name not in weights]
    if missing:
        raise UserError(f"no weight for {', '.join(missing)}: each of {len(FEATURES)} features needs one")
    return np.array([weights[name] for name in FEATURES], np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class PhraseOptions:
    """Translations of phrases; those of one phrase are neighbours.

    Attributes:
      phrases: index of each phrase.
      longest: words of the longest phrase.
      starts: first translation of each phrase and, last, the number of translations.
      targets: words of each translation.
      translations: the same for the language model.
      features: values of the first ``OWN`` features; that of the language model is without context.
      reordering: log-probabilities, in the order of the last six features.
    """

    phrases: dict[tuple[str, ...], int]
    longest: int
    starts: Int64[np.ndarray, " phrases_and_end"]
    targets: list[tuple[str, ...]]
    translations: TargetPhrases
    features: Float32[np.ndarray, "options own"]
    reordering: Float32[np.ndarray, "options six"]

    def best(self, weights: Float64[np.ndarray, " features"], limit: int) -> PhraseOptions:
        """Returns the ``limit`` translations of each phrase that have the highest score on their own."""
        score = self.features @ weights[:OWN]
        counts = np.diff(self.starts)
        phrase = np.repeat(np.arange(len(counts)), counts)
        order = np.lexsort((-score, phrase))
        kept = order[np.arange(len(order)) - self.starts[phrase] < limit]
        starts = np.concatenate([[0], np.cumsum(np.minimum(counts, limit))])
        return dataclasses.replace(
            self,
            starts=starts.astype(np.int64),
            targets=[self.targets[row] for row in kept.tolist()],
            translations=self.translations.take(kept),
            features=self.features[kept],
            reordering=self.reordering[kept],
        )

    def of(self, sentence: Sequence[str]) -> SentenceOptions:
        """Returns the options of a sentence, whose phrases must be among those collected."""
        words, spans = tuple(sentence), []
        for start, end in _spans(len(words), self.longest):
            number = self.phrases.get(words[start:end])
            if number is not None:
                spans.append((start, end, number))
        starts, ends, phrases = np.array(spans, np.int64).reshape(-1, 3).T
        counts = self.starts[phrases + 1] - self.starts[phrases]
        first = np.concatenate([[0], np.cumsum(counts)])
        rows = np.repeat(self.starts[phrases] - first[:-1], counts) + np.arange(first[-1])
        return SentenceOptions(
            length=len(words),
            start=starts,
            end=ends,
            first=first.astype(np.int64),
            rows=rows,
            translations=self.translations.take(rows),
            features=self.features[rows],
            reordering=self.reordering[rows],
        )


@dataclasses.dataclass(frozen=True, eq=False)
class SentenceOptions:
    """Options of one sentence, by span of source words, spans in order of start and end.

    Attributes:
      length: words of the sentence.
      start: first source word of each span.
      end: the source word after its last.
      first: first option of each span and, last, the number of options.
      rows: row of each option in the `PhraseOptions` it came from.
      translations: target words of each option.
      features: values of the first ``OWN`` features.
      reordering: log-probabilities of the last six.
    """

    length: int
    start: Int64[np.ndarray, " spans"]
    end: Int64[np.ndarray, " spans"]
    first: Int64[np.ndarray, " spans_and_end"]
    rows: Int64[np.ndarray, " options"]
    translations: TargetPhrases
    features: Float32[np.ndarray, "options own"]
    reordering: Float32[np.ndarray, "options six"]

    @property
    def span(self) -> Int64[np.ndarray, " options"]:
        """Span of each option."""
        return np.repeat(np.arange(len(self.start)), np.diff(self.first))


def collect(sentences: Sequence[Sequence[str]], table: PhraseTable, model: LanguageModel) -> PhraseOptions:
    """Returns the translations of every phrase that occurs in ``sentences``.

    A word that has no translation of its own is copied, whatever longer phrases it is part of.

    Args:
      sentences: words of each source sentence.
      table: the phrase table.
      model: language model of the target language.
    """
    longest = max(map(len, table.sources), default=1)
    phrases: dict[tuple[str, ...], int] = {}
    ranges: list[tuple[int, int]] = []
    targets: list[tuple[str, ...]] = []
    for sentence in sentences:
        words = tuple(sentence)
        for start, end in _spans(len(words), longest):
            phrase = words[start:end]
            known = table.sources.get(phrase)
            if phrase in phrases or (known is None and end > start + 1):
                continue
            phrases[phrase] = len(ranges)
            ranges.append(known or (-1, 0))
            targets.extend(table.targets[slice(*known)] if known else [phrase])
    begins, ends = np.array(ranges, np.int64).reshape(-1, 2).T
    starts = np.concatenate([[0], np.cumsum(ends - begins)])
    rows = np.repeat(begins - starts[:-1], ends - begins) + np.arange(starts[-1])
    translations, alone = target_phrases(targets, model)
    features = np.zeros((len(rows), OWN), np.float32)
    features[:, 0] = alone
    features[:, 2] = translations.lengths
    features[:, 3] = 1
    features[:, 4] = rows < 0
    features[:, 5:] = _known(table.scores, rows)
    return PhraseOptions(
        phrases=phrases,
        longest=longest,
        starts=starts.astype(np.int64),
        targets=targets,
        translations=translations,
        features=features,
        reordering=_known(table.reordering, rows),
    )


def _spans(length: int, longest: int) -> list[tuple[int, int]]:
    return [
        (start, end) for start in range(length) for end in range(start + 1, min(start + longest, length) + 1)
    ]


def _known(values: np.ndarray, rows: np.ndarray) -> Float32[np.ndarray, "options columns"]:
    """Returns the rows of a table, and zeros for what is not in it."""
    found = np.zeros((len(rows), values.shape[1]), np.float32)
    found[rows >= 0] = values[rows[rows >= 0]]
    return found
