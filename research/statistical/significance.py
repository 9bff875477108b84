"""Significance of phrase pairs: Fisher's exact test on the sentence pairs they occur in.

Johnson, Martin, Foster & Kuhn (2007): of N sentence pairs c(s) have phrase s on the one side, c(t) have t on
the other, and c(s, t) have both. The p-value is the probability of so many or more by chance,

    sum over k >= c(s, t) of  binomial(c(s), k) binomial(N - c(s), c(t) - k) / binomial(N, c(t))
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import gammaln

from research.statistical.bitext import Side
from research.statistical.phrases import Numbering

_QUERIES = 1 << 22
"""Sentences looked up at a time: what bounds memory."""


def significance(
    source_numbering: Numbering,
    target_numbering: Numbering,
    source: Side,
    target: Side,
    s: Int64[np.ndarray, " pairs"],
    t: Int64[np.ndarray, " pairs"],
) -> Float64[np.ndarray, " pairs"]:
    """Returns -ln p of phrase pairs (s, t), numbered as in the numberings of both sides."""
    ours, theirs = _postings(source_numbering, source, s), _postings(target_numbering, target, t)
    together = np.zeros(len(s), np.int64)
    fewer = ours.counts[s] <= theirs.counts[t]
    together[fewer] = _common(ours, theirs, s[fewer], t[fewer])
    together[~fewer] = _common(theirs, ours, t[~fewer], s[~fewer])
    return surprise(len(source.lengths), ours.counts[s], theirs.counts[t], together)


class _Postings(NamedTuple):
    """The sentences that phrases occur in.

    Attributes:
      keys: phrase times the number of sentences, plus sentence; ascending, each once.
      counts: sentences of each phrase.
      sentences: number of all sentences.
    """

    keys: Int64[np.ndarray, " postings"]
    counts: Int64[np.ndarray, " phrases"]
    sentences: int


def _postings(numbering: Numbering, side: Side, phrases: np.ndarray) -> _Postings:
    sentences = len(side.lengths)
    wanted = np.zeros(len(numbering.length), bool)
    wanted[phrases] = True
    sentence = np.repeat(np.arange(sentences), side.lengths)
    keys = []
    for numbers in numbering.numbers:
        at = np.flatnonzero((numbers >= 0) & wanted[numbers])
        keys.append(np.unique(numbers[at] * sentences + sentence[at]))
    joined = np.concatenate(keys)  # ascending: longer phrases have higher numbers
    return _Postings(joined, np.bincount(joined // sentences, minlength=len(wanted)), sentences)


def _common(few: _Postings, many: _Postings, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the number of sentences that phrases a and b have in common, a being the rarer of each two."""
    starts = np.cumsum(few.counts) - few.counts
    lengths = few.counts[a]
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths) // _QUERIES)) + 1
    found = []
    for part in np.split(np.arange(len(a)), cuts):
        sizes = lengths[part]
        owner = np.repeat(part, sizes)
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        keys = b[owner] * many.sentences + few.keys[starts[a[owner]] + within] % few.sentences
        at = np.minimum(np.searchsorted(many.keys, keys), len(many.keys) - 1)
        found.append(np.bincount(owner - (part[0] if len(part) else 0), many.keys[at] == keys, len(part)))
    return np.concatenate(found).astype(np.int64)


def surprise(
    total: int,
    first: Int64[np.ndarray, " pairs"],
    second: Int64[np.ndarray, " pairs"],
    both: Int64[np.ndarray, " pairs"],
) -> Float64[np.ndarray, " pairs"]:
    """Returns -ln of the probability that as many or more of ``total`` draws have both of two properties.

    Args:
      total: draws.
      first: how many have the first property.
      second: how many have the second.
      both: how many have both.
    """
    n, a, b, k = (np.asarray(x, np.float64) for x in (total, first, second, both))
    lead = _ln_binomial(a, k) + _ln_binomial(n - a, b - k) - _ln_binomial(n, b)
    # Terms relative to the first one.
    term, tail = np.ones(len(k)), np.ones(len(k))
    active = np.arange(len(k))
    while len(active):
        x, y, z = a[active], b[active], k[active]
        ratio = np.maximum(x - z, 0) * np.maximum(y - z, 0) / ((z + 1) * np.maximum(n - x - y + z + 1, 1))
        term[active] *= ratio
        tail[active] += term[active]
        k[active] += 1
        active = active[(term[active] > 1e-14 * tail[active]) | (ratio > 1)]
    return -(lead + np.log(tail))


def _ln_binomial(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
