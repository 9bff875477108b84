"""Phrase pairs that are consistent with a word alignment, all sentence pairs at once.

Koehn, Och & Marcu (2003): a source span and a target span make a phrase pair if there is a link between them
and none from either to outside the other; unaligned words at their edges may belong to them or not. Lengths
are limited. Orientations are those of word-based msd-bidirectional-fe reordering (Koehn et al., 2005): a
phrase pair is *monotone* to what comes before it if the words diagonally before both spans are linked, and
*swapped* if the word before the target span is linked to that after the source span; likewise to what
follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int8, Int64

from research.statistical.bitext import Side

MONOTONE, SWAP, DISCONTINUOUS = range(3)
_CELLS = 1 << 24
"""Cells of alignment matrices held at a time: what bounds memory."""


class Links(NamedTuple):
    """The links of all sentence pairs, by pair.

    Attributes:
      pair: number of the sentence pair, ascending.
      source: position in the source sentence, from 0.
      target: position in the target sentence.
    """

    pair: Int64[np.ndarray, " links"]
    source: Int64[np.ndarray, " links"]
    target: Int64[np.ndarray, " links"]


class Occurrences(NamedTuple):
    """Occurrences of phrase pairs.

    Attributes:
      source: where the source phrase begins in the source side's tokens.
      source_length: its words.
      target: where the target phrase begins in the target side's tokens.
      target_length: its words.
      before: orientation to the phrase before it (MONOTONE, SWAP or DISCONTINUOUS).
      after: orientation to the phrase after it.
    """

    source: Int64[np.ndarray, " occurrences"]
    source_length: Int64[np.ndarray, " occurrences"]
    target: Int64[np.ndarray, " occurrences"]
    target_length: Int64[np.ndarray, " occurrences"]
    before: Int8[np.ndarray, " occurrences"]
    after: Int8[np.ndarray, " occurrences"]


def extract(source: Side, target: Side, links: Links, longest: int = 7) -> Occurrences:
    """Returns every occurrence of a consistent phrase pair.

    Args:
      source: source sentences.
      target: their translations, in the same order.
      links: the word alignment; pairs without links have no phrases.
      longest: most words of a phrase, on either side.
    """
    found = [_extract(source, target, part, longest) for part in _parts(source, target, links)]
    columns = zip(*found, strict=True) if found else ([np.empty(0, np.int64)],) * 6
    joined = [np.concatenate(list(column)) for column in columns]
    return Occurrences(*joined[:4], *(column.astype(np.int8) for column in joined[4:]))


def _parts(source: Side, target: Side, links: Links) -> Iterator[Links]:
    """Divides the links between sentence pairs so that the matrices of each part fit into memory."""
    pairs = np.unique(links.pair)
    cells = np.cumsum((source.lengths[pairs] + 2) * (target.lengths[pairs] + 2)) // _CELLS
    cuts = np.searchsorted(links.pair, pairs[np.flatnonzero(np.diff(cells)) + 1])
    for first, last in zip([0, *cuts], [*cuts, len(links.pair)], strict=True):
        if last > first:
            yield Links(*(column[first:last] for column in links))


class _Spans(NamedTuple):
    """The words of some sentences, and, by length and first word, what spans of them are linked to.

    Attributes:
      tokens: place of each word in the side's tokens.
      sentence: sentence of each word, by its place among these sentences.
      within: place of each word in its sentence.
      left: words of its sentence from each word on, itself included.
      lowest: first word of the other side that a span is linked to; very large if none is.
      highest: last such word; -1 if there is none. Both have one row for each length.
    """

    tokens: np.ndarray
    sentence: np.ndarray
    within: np.ndarray
    left: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray


def _words(side: Side, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns tokens, sentence, place within it and words left of the words of some sentences."""
    lengths = side.lengths[pairs]
    sentence = np.repeat(np.arange(len(pairs)), lengths)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return side.starts[pairs][sentence] + within, sentence, within, lengths[sentence] - within


def _spans(side: Side, pairs: np.ndarray, own: np.ndarray, other: np.ndarray, longest: int) -> _Spans:
    words = _words(side, pairs)
    size = len(words[0])
    lowest, highest = np.full(size, np.iinfo(np.int64).max), np.full(size, -1)
    np.minimum.at(lowest, own, other)
    np.maximum.at(highest, own, other)
    low, high = [lowest], [highest]
    for length in range(1, longest):
        # A span that leaves its sentence is never asked for, whatever it is linked to.
        low.append(np.minimum(low[-1], np.append(lowest[length:], lowest[: min(length, size)])))
        high.append(np.maximum(high[-1], np.append(highest[length:], highest[: min(length, size)])))
    return _Spans(*words, np.stack(low), np.stack(high))


def _extract(source: Side, target: Side, links: Links, longest: int) -> tuple[np.ndarray, ...]:
    pairs, number = np.unique(links.pair, return_inverse=True)
    first_source, first_target = (
        np.cumsum(side.lengths[pairs]) - side.lengths[pairs] for side in (source, target)
    )
    e, f = links.source + first_source[number], links.target + first_target[number]
    ours, theirs = _spans(source, pairs, e, f, longest), _spans(target, pairs, f, e, longest)
    before, after = _unaligned_around(theirs)
    matrix = _Matrix.of(source.lengths[pairs], target.lengths[pairs], number, links)
    found = []
    for length in range(1, longest + 1):
        start = np.flatnonzero((ours.left >= length) & (ours.highest[length - 1] >= 0))
        low, high = ours.lowest[length - 1, start], ours.highest[length - 1, start]
        size = high - low + 1
        fits = size <= longest
        start, low, high, size = start[fits], low[fits], high[fits], size[fits]
        inside = (theirs.lowest[size - 1, low] >= start) & (theirs.highest[size - 1, low] < start + length)
        start, low, high, size = start[inside], low[inside], high[inside], size[inside]
        for more_before in range(longest):
            for more_after in range(longest - more_before):
                may = (before[low] >= more_before) & (after[high] >= more_after)
                may &= size + more_before + more_after <= longest
                at, first = start[may], low[may] - more_before
                spans = (at, np.full(len(at), length), first, size[may] + more_before + more_after)
                found.append(_occurrences(ours, theirs, matrix, *spans))
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))


def _unaligned_around(spans: _Spans) -> tuple[np.ndarray, np.ndarray]:
    """Returns the words without links directly before and directly after each word, in its sentence."""
    at = np.arange(len(spans.tokens))
    linked = spans.highest[0] >= 0
    last = np.maximum.accumulate(np.where(linked, at, -1))
    last = np.append(-1, last[:-1])
    before = at - 1 - np.maximum(last, at - spans.within - 1)
    following = np.minimum.accumulate(np.where(linked, at, len(at))[::-1])[::-1]
    following = np.append(following[1:], len(at))
    return before, np.minimum(following, at + spans.left) - at - 1


def _occurrences(
    ours: _Spans,
    theirs: _Spans,
    matrix: _Matrix,
    source: np.ndarray,
    source_length: np.ndarray,
    target: np.ndarray,
    target_length: np.ndarray,
) -> tuple[np.ndarray, ...]:
    pair, i, j = ours.sentence[source], ours.within[source], theirs.within[target]
    after_i, after_j = i + source_length, j + target_length
    before = _orientation(matrix.linked(pair, i - 1, j - 1), matrix.linked(pair, after_i, j - 1))
    after = _orientation(matrix.linked(pair, after_i, after_j), matrix.linked(pair, i - 1, after_j))
    return ours.tokens[source], source_length, theirs.tokens[target], target_length, before, after


def _orientation(straight: np.ndarray, crossed: np.ndarray) -> np.ndarray:
    return np.select([straight & ~crossed, crossed & ~straight], [MONOTONE, SWAP], DISCONTINUOUS)


class _Matrix(NamedTuple):
    """Alignment matrices with a border: the beginnings of both sentences are linked, and so are their ends.

    Attributes:
      cells: all matrices, one after the other.
      starts: where each begins.
      widths: its columns: target words and two.
    """

    cells: Bool[np.ndarray, " cells"]
    starts: Int64[np.ndarray, " pairs"]
    widths: Int64[np.ndarray, " pairs"]

    @classmethod
    def of(cls, sources: np.ndarray, targets: np.ndarray, pair: np.ndarray, links: Links) -> _Matrix:
        """Returns the matrices of sentence pairs of these lengths."""
        widths = targets + 2
        sizes = (sources + 2) * widths
        ends = np.cumsum(sizes)
        matrix = cls(np.zeros(ends[-1], bool), ends - sizes, widths)
        matrix.cells[matrix._at(pair, links.source, links.target)] = True
        matrix.cells[matrix.starts] = matrix.cells[ends - 1] = True
        return matrix

    def linked(self, pair: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Returns whether words i and j are linked; -1 and the sentence's length are its borders."""
        return self.cells[self._at(pair, i, j)]

    def _at(self, pair: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return self.starts[pair] + (i + 1) * self.widths[pair] + j + 1


class Numbering(NamedTuple):
    """Numbers of all phrases of one side, equal phrases having equal ones.

    Attributes:
      numbers: by length - 1 and first word; -1 where a span leaves its sentence.
      first: a word where each phrase begins.
      length: its words.
    """

    numbers: Int64[np.ndarray, "longest tokens"]
    first: Int64[np.ndarray, " phrases"]
    length: Int64[np.ndarray, " phrases"]


def number_phrases(side: Side, longest: int) -> Numbering:
    """Numbers the phrases of up to ``longest`` words: each is what the number of all its words but the last,
    and the last, make it."""
    left = np.repeat(side.starts[1:], side.lengths) - np.arange(len(side.tokens))
    numbers = np.full((longest, len(side.tokens)), -1)
    firsts, lengths, total = [], [], 0
    for length in range(1, longest + 1):
        at = np.flatnonzero(left >= length)
        shorter = numbers[length - 2, at] if length > 1 else np.zeros(len(at), np.int64)
        last = side.tokens[at + length - 1].astype(np.int64)
        keys, first, inverse = np.unique(
            shorter * len(side.words) + last, return_index=True, return_inverse=True
        )
        numbers[length - 1, at] = total + inverse
        firsts.append(at[first])
        lengths.append(np.full(len(keys), length))
        total += len(keys)
    return Numbering(numbers, np.concatenate(firsts), np.concatenate(lengths))
