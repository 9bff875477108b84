"""Baselines for language models: interpolated Kneser-Ney n-grams over the same tokens, and xz.

All are in bits per UTF-8 byte of the validation text, so they compare with any model over any tokenizer. The
<eot> after each document is predicted and paid for as well; contexts do not reach back across it.
"""

from __future__ import annotations

import dataclasses
import lzma

import numpy as np
from jaxtyping import Float64, Int64

from research.data.stream import TokenStream
from research.data.text import PreparedText


@dataclasses.dataclass(frozen=True, eq=False)
class _Level:
    """Counts of the n-grams of one order, in ascending order of key (context * vocabulary + token).

    Attributes:
      keys: n-grams that were seen.
      discounted: count - discount of each.
      contexts: contexts that were seen.
      totals: sum of the counts in each context.
      freed: sum of the discounts in each context: the mass that goes to the next lower order.
    """

    keys: Int64[np.ndarray, " ngrams"]
    discounted: Float64[np.ndarray, " ngrams"]
    contexts: Int64[np.ndarray, " contexts"]
    totals: Float64[np.ndarray, " contexts"]
    freed: Float64[np.ndarray, " contexts"]


class KneserNey:
    """Interpolated, modified Kneser-Ney (Chen & Goodman, 1999, section 3), orders 1 to 3.

        p(w | h) = (c(h w) - D(c(h w))) / c(h) + d(h) / c(h) * p(w | h without its first token)

    ends in the uniform distribution. c counts occurrences at the highest order and, below it, distinct tokens
    seen before the n-gram; d(h) is the sum of the discounts D of the n-grams that begin with h. D has three
    values, for counts of 1, 2, and 3 or more, estimated from the counts of counts. At the start of a document
    the context is filled up with <eot>.
    """

    def __init__(self, stream: TokenStream, order: int, vocabulary: int) -> None:
        """Counts the n-grams of ``stream``; ``order`` 1, 2 or 3."""
        if order not in (1, 2, 3) or vocabulary**order > np.iinfo(np.int64).max:
            raise ValueError(f"no n-grams of order {order} over {vocabulary} tokens")
        self._vocabulary = vocabulary
        contexts, tokens = ngrams(stream, order)
        keys, counts = np.unique(_key(contexts, tokens, vocabulary), return_counts=True)
        self._levels = [_level(keys, counts, vocabulary)]
        for lower in range(order - 1, 0, -1):
            keys, counts = np.unique(keys % vocabulary**lower, return_counts=True)
            self._levels.append(_level(keys, counts, vocabulary))

    def probabilities(
        self, contexts: Int64[np.ndarray, "queries context"], tokens: Int64[np.ndarray, " queries"]
    ) -> Float64[np.ndarray, " queries"]:
        """Returns p(token | context), oldest token of the context first."""
        keys = _key(contexts, tokens, self._vocabulary)
        p = np.full(len(tokens), 1 / self._vocabulary)
        for n, level in enumerate(reversed(self._levels), start=1):
            gram = keys % self._vocabulary**n
            at, seen = _find(level.contexts, gram // self._vocabulary)
            gram_at, gram_seen = _find(level.keys, gram)
            mass = np.where(gram_seen, level.discounted[gram_at], 0.0) + level.freed[at] * p
            p = np.where(seen, mass / level.totals[at], p)
        return p


def ngrams(
    stream: TokenStream, order: int
) -> tuple[Int64[np.ndarray, "tokens context"], Int64[np.ndarray, " tokens"]]:
    """Returns the ``order - 1`` tokens before each target of ``stream``, and the targets."""
    tokens = np.asarray(stream.tokens, np.int64)
    opened = np.repeat(stream.starts, np.diff(np.append(stream.starts, len(stream))))
    ages = range(order - 2, -1, -1)
    index = np.arange(len(stream))
    # Before its document, a context repeats the <eot> that opens it.
    contexts = [tokens[np.maximum(index - age, opened)] for age in ages]
    return np.stack(contexts, axis=1) if contexts else np.empty((len(stream), 0), np.int64), tokens[1:]


def ngram_bits_per_byte(train: TokenStream, valid: TokenStream, order: int, vocabulary: int) -> float:
    """Returns what a Kneser-Ney model of ``train`` needs for ``valid``, in bits per byte of its text.

    Args:
      train: tokens to count.
      valid: tokens to predict.
      order: 1, 2 or 3.
      vocabulary: number of token ids; each has some mass in every context.
    """
    probabilities = KneserNey(train, order, vocabulary).probabilities(*ngrams(valid, order))
    return float(-np.log2(probabilities).sum() / valid.bytes)


def xz_bits_per_byte(text: bytes) -> float:
    """Returns the size of ``text`` compressed by ``xz -9``, in bits per byte."""
    return 8 * len(lzma.compress(text, preset=9)) / len(text)


def baselines(prepared: PreparedText) -> dict[str, float]:
    """Returns bits per byte of the validation text by name: n-grams of orders 1 to 3, then xz."""
    names = ("unigram", "bigram (Kneser-Ney)", "trigram (Kneser-Ney)")
    vocabulary = prepared.tokenizer.vocabulary
    results = {
        name: ngram_bits_per_byte(prepared.train, prepared.valid, order, vocabulary)
        for order, name in enumerate(names, start=1)
    }
    return results | {"xz -9": xz_bits_per_byte(prepared.valid_path.read_bytes())}


def _level(keys: np.ndarray, counts: np.ndarray, vocabulary: int) -> _Level:
    discount = discounts(counts)[np.minimum(counts, 3)]
    contexts, first = np.unique(keys // vocabulary, return_index=True)
    return _Level(
        keys=keys,
        discounted=counts - discount,
        contexts=contexts,
        totals=np.add.reduceat(counts, first).astype(np.float64),
        freed=np.add.reduceat(discount, first),
    )


def discounts(counts: Int64[np.ndarray, " ngrams"]) -> Float64[np.ndarray, " 4"]:
    """Returns D(0) = 0, D(1), D(2) and D(3 or more) by the counts of counts (Chen & Goodman, 1999, eq. 26).

    Where they give no value above 0 (little text), the single discount n1 / (n1 + 2 n2) stands in, or a half.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6)[:5].astype(np.float64)
    single = n[1] / (n[1] + 2 * n[2]) if n[1] and n[2] else 0.5
    result = np.array([0.0, single, single, single])
    for k in (1, 2, 3):
        if n[k] and n[k + 1]:
            estimate = k - (k + 1) * single * n[k + 1] / n[k]
            result[k] = estimate if estimate > 0 else single
    return result


def _key(contexts: np.ndarray, tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    key = np.zeros(len(tokens), np.int64)
    for column in contexts.T:
        key = (key + column) * vocabulary
    return key + tokens


def _find(table: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the index of each value in the sorted ``table``, or a valid one, and whether it is there."""
    at = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return at, table[at] == values
