"""Word classes by exchange clustering (Kneser & Ney, 1993; Martin, Liermann & Ney, 1998).

Classes C(w) are chosen so that a class bigram model finds the text likely,
P(w | v) = p(w | C(w)) p(C(w) | C(v)). With h(n) = n log n, what depends on the classes is

    F = sum_{c, d} h(N(c, d)) - 2 sum_c h(N(c))

where N(c, d) counts a word of class c before one of class d. The ends of sentences are a class of their own.
One word after another is moved to the class where F is highest, until no word moves. Here many rare words
are moved at once: what each would gain by itself is exact, and where together they gain less than nothing,
the half of them is tried instead. F never decreases.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int32, Int64

from research.statistical.bitext import Side

_BATCHES = 64
"""Words are moved in batches of at most this part of all the text."""


def word_classes(side: Side, classes: int = 50, *, sweeps: int = 20) -> Int32[np.ndarray, " words"]:
    """Returns the class of every word, 0..classes-1; words that do not occur are in the last.

    Args:
      side: a text.
      classes: their number, at least 1.
      sweeps: most often that every word is considered.
    """
    text = _Bigrams(side)
    order = np.argsort(-text.frequency, kind="stable")
    found = np.full(len(text.frequency), classes - 1, np.int64)
    found[order[:classes]] = np.arange(min(classes, len(order)))
    order = order[text.frequency[order] > 0]
    batches = np.array_split(order, _cuts(text.frequency[order]))
    value = text.objective(found, classes)
    for _ in range(sweeps):
        before = value
        for batch in batches:
            value = _exchange(text, found, batch, classes, value)
        if value - before < 1e-7 * abs(before):
            break
    return found.astype(np.int32)


def objective(side: Side, found: Int32[np.ndarray, " words"], classes: int) -> float:
    """Returns F of a choice of classes."""
    return _Bigrams(side).objective(found.astype(np.int64), classes)


class _Bigrams:
    """Counts of a text: of words, and of pairs of neighbours, the ends of sentences left to ``edges``."""

    def __init__(self, side: Side) -> None:
        words = len(side.words)
        self.frequency = np.bincount(side.tokens, minlength=words)
        first, last = side.tokens[side.starts[:-1]], side.tokens[side.starts[1:] - 1]
        self.edges = np.stack([np.bincount(part, minlength=words) for part in (first, last)])
        inside = np.ones(len(side.tokens), bool)
        inside[side.starts[1:] - 1] = False
        at = np.flatnonzero(inside)
        pairs = side.tokens[at].astype(np.int64) * words + side.tokens[at + 1]
        pairs, self.count = np.unique(pairs, return_counts=True)
        self.left, self.right = np.divmod(pairs, words)  # ascending by left word
        self.by_right = np.argsort(self.right, kind="stable")
        self.own = np.zeros(words, np.int64)
        same = self.left == self.right
        self.own[self.left[same]] = self.count[same]
        self.starts = tuple(
            np.searchsorted(part, np.arange(words + 1)) for part in (self.left, self.right[self.by_right])
        )

    def table(
        self, found: Int64[np.ndarray, " words"], classes: int
    ) -> Float64[np.ndarray, "classes_1 classes_1"]:
        """Returns N(c, d); the last class is that of the ends of sentences."""
        size = classes + 1
        cells = np.bincount(found[self.left] * size + found[self.right], self.count, minlength=size * size)
        table = cells.astype(np.float64).reshape(size, size)  # of nothing, bincount counts in integers
        table[-1] += np.bincount(found, self.edges[0], minlength=size)
        table[:, -1] += np.bincount(found, self.edges[1], minlength=size)
        return table

    def objective(self, found: Int64[np.ndarray, " words"], classes: int) -> float:
        """Returns F."""
        totals = np.bincount(found, self.frequency, minlength=classes)
        return float(_h(self.table(found, classes)).sum() - 2 * _h(totals).sum())

    def neighbours(
        self,
        batch: Int64[np.ndarray, " batch"],
        found: Int64[np.ndarray, " words"],
        classes: int,
        after: bool,
    ) -> Float64[np.ndarray, "batch classes_1"]:
        """Returns how often each word of a batch stands before (after: behind) words of each class, itself
        left out."""
        starts = self.starts[0 if after else 1]
        lengths = starts[batch + 1] - starts[batch]
        row = np.repeat(np.arange(len(batch)), lengths)
        at = np.arange(lengths.sum()) + np.repeat(starts[batch] - np.cumsum(lengths) + lengths, lengths)
        at = at if after else self.by_right[at]
        other = (self.right if after else self.left)[at]
        count = np.where(other == batch[row], 0, self.count[at])
        size = classes + 1
        flat = np.bincount(row * size + found[other], count, minlength=len(batch) * size)
        cells = flat.astype(np.float64).reshape(-1, size)
        cells[:, -1] += self.edges[1 if after else 0][batch]
        return cells


def _h(count: np.ndarray) -> np.ndarray:
    return count * np.log(np.maximum(count, 1))


def _cuts(frequency: Int64[np.ndarray, " words"]) -> Int64[np.ndarray, " cuts"]:
    """Returns where to cut the words, the most frequent first, so that no batch is much of the text."""
    cumulated = np.cumsum(frequency)
    most = max(int(cumulated[-1]) // _BATCHES, 1) if len(cumulated) else 1
    part, cuts = 0, list[int]()
    for at, count in enumerate(frequency.tolist()):
        if at and (part + count > most or at - (cuts[-1] if cuts else 0) >= 512):
            cuts.append(at)
            part = 0
        part += count
    return np.array(cuts, np.int64)


def _gains(
    text: _Bigrams, found: Int64[np.ndarray, " words"], batch: Int64[np.ndarray, " batch"], classes: int
) -> Float64[np.ndarray, "batch classes"]:
    """Returns what F gains when one word of a batch moves to each class, exactly; 0 for its own.

    A word of class c with r(d) words of class d behind it, l(d) before it, and s times itself behind it,
    takes r(d) from N(c, d) to N(k, d) and l(d) from N(d, c) to N(d, k). The four cells in which both change
    are corrected: N(c, c) loses r(c) + l(c) + s, N(k, k) gains r(k) + l(k) + s, N(c, k) loses r(k) and gains
    l(c), N(k, c) loses l(k) and gains r(c).
    """
    table = text.table(found, classes)
    totals = np.bincount(found, text.frequency, minlength=classes)[:classes]
    right, left = (text.neighbours(batch, found, classes, after) for after in (True, False))
    row, own, n = np.arange(len(batch)), found[batch], text.frequency[batch]
    gains = np.zeros((len(batch), classes))
    lost = np.zeros(len(batch))
    for counts, cells in ((right, table), (left, table.T)):
        at, other = np.nonzero(counts)
        value = counts[at, other]
        to, before = cells[:classes, other].T, cells[own[at], other]
        first = np.flatnonzero(np.diff(at, prepend=-1))  # every word has a neighbour, if only an end
        gains += np.add.reduceat(_h(to + value[:, None]) - _h(to), first)
        lost += np.add.reduceat(_h(before - value) - _h(before), first)
    gains += lost[:, None]
    # What was added up for the four corners is taken away, and what is true put in its place.
    k = np.arange(classes)
    c = own[:, None]
    at = row[:, None]
    r_c, l_c, r_k, l_k = right[at, c], left[at, c], right[:, :classes], left[:, :classes]
    cc, kk, ck, kc = table[c, c], table[k, k][None, :], table[c, k[None, :]], table[k[None, :], c]
    wrong = _h(cc - r_c) + _h(cc - l_c) - 2 * _h(cc)  # lost at (c, c), by rows and by columns
    wrong = wrong + _h(kk + r_k) + _h(kk + l_k) - 2 * _h(kk)  # added at (k, k)
    wrong = wrong + _h(ck - r_k) + _h(ck + l_c) - 2 * _h(ck)  # (c, k): lost by rows, added by columns
    wrong = wrong + _h(kc + r_c) + _h(kc - l_k) - 2 * _h(kc)  # (k, c): added by rows, lost by columns
    s = text.own[batch][:, None]
    right_ones = _h(cc - r_c - l_c - s) - _h(cc) + _h(kk + r_k + l_k + s) - _h(kk)
    right_ones = right_ones + _h(ck - r_k + l_c) - _h(ck) + _h(kc - l_k + r_c) - _h(kc)
    marginal = _h(totals[own] - n) - _h(totals[own])
    marginals = marginal[:, None] + _h(totals[None, :] + n[:, None]) - _h(totals)[None, :]
    gains = gains - wrong + right_ones - 2 * marginals
    gains[row, own] = 0.0
    return gains


def _exchange(
    text: _Bigrams,
    found: Int64[np.ndarray, " words"],
    batch: Int64[np.ndarray, " batch"],
    classes: int,
    value: float,
) -> float:
    """Moves the words of a batch to their best classes, in place, and returns the new F."""
    gains = _gains(text, found, batch, classes)
    best = gains.argmax(axis=1)
    moving = gains.max(axis=1) > 1e-9
    words, to = batch[moving], best[moving]
    while len(words):
        previous = found[words].copy()
        found[words] = to
        new = text.objective(found, classes)
        if new >= value - 1e-9 * abs(value):
            return new
        found[words] = previous
        half = len(words) // 2
        words, to = words[:half], to[:half]
    return value
