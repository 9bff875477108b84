"""Sufficient statistics of BLEU (Papineni et al., 2002): counts that are added up over sentences."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int64

ORDER = 4
WIDTH = 2 + 2 * ORDER
"""Counts of a sentence: words, words of its reference, n-grams that match, n-grams; n from 1 to 4."""

Ngrams = collections.Counter[tuple[str, ...]]


def ngrams(words: Sequence[str]) -> Ngrams:
    """Returns the n-grams of a sentence, n from 1 to 4."""
    words = tuple(words)
    return collections.Counter(
        words[at : at + n] for n in range(1, ORDER + 1) for at in range(len(words) - n + 1)
    )


class Reference:
    """A reference translation, ready to count the matches of many others."""

    def __init__(self, words: Sequence[str]) -> None:
        self._length, self._ngrams = len(words), ngrams(words)

    def counts(self, words: Sequence[str]) -> Int64[np.ndarray, " 10"]:
        """Returns the counts of one translation."""
        correct = [0] * ORDER
        for ngram, count in ngrams(words).items():
            if ngram in self._ngrams:
                correct[len(ngram) - 1] += min(count, self._ngrams[ngram])
        total = [max(len(words) - n, 0) for n in range(ORDER)]
        return np.array([len(words), self._length, *correct, *total], np.int64)


def counts(translations: Iterable[Sequence[str]], references: Iterable[Sequence[str]]) -> np.ndarray:
    """Returns the counts of each translation, [sentences, 10]."""
    pairs = zip(translations, references, strict=True)
    return np.array([Reference(right).counts(words) for words, right in pairs], np.int64).reshape(-1, WIDTH)


def bleu(counts: Float[np.ndarray, "... 10"] | Int64[np.ndarray, "... 10"]) -> Float[np.ndarray, ...]:
    """Returns BLEU in percent of summed counts, as sacreBLEU has it.

    Where no n-gram of an order matches, half a match is counted, a quarter for the next such order, and so on
    (Chen & Cherry, 2014, method 3); without a single match, or a single 4-gram, BLEU is 0.
    """
    counts = np.asarray(counts, np.float64)
    length, reference = counts[..., 0], counts[..., 1]
    correct, total = counts[..., 2 : 2 + ORDER], counts[..., 2 + ORDER :]
    none = correct == 0
    halved = np.where(none, 0.5 ** np.cumsum(none, axis=-1), correct)
    defined = (total > 0).all(axis=-1) & (correct > 0).any(axis=-1)
    log_precision = np.log(halved) - np.log(np.maximum(total, 1))
    brevity = np.minimum(1 - reference / np.maximum(length, 1), 0)
    return np.where(defined, 100 * np.exp(log_precision.mean(axis=-1) + brevity), 0.0)
