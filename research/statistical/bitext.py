"""A bitext as integer arrays: words by id, the word pairs that co-occur, and batches of sentence pairs.

The notation is that of Brown et al. (1993) without its French and English: a *source* sentence e of I words,
a *target* sentence f of J words. A *cell* is a pair of tokens (i, j) of one sentence pair; cells of equal
words share one *entry* (e, f), and a lexical table has one value for each entry, so that only pairs which
occur have any. Both directions, t(f|e) and t(e|f), use the same entries.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

LONGEST = 256
"""Longest sentence that can be aligned: work grows with the cube of it."""

_GRANULE = 8
_COMPILATION = 3_000_000
"""Padded cells that cost as much, over a training run, as compiling for one more length."""


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """One side of a bitext.

    Attributes:
      words: the vocabulary, by id.
      tokens: word ids of all sentences, one after the other.
      starts: where each sentence begins, and, last, where the last one ends.
    """

    words: list[str]
    tokens: Int32[np.ndarray, " tokens"]
    starts: Int64[np.ndarray, " sentences_and_end"]

    @functools.cached_property
    def lengths(self) -> Int64[np.ndarray, " sentences"]:
        """Words of each sentence."""
        return np.diff(self.starts)


@dataclasses.dataclass(frozen=True, eq=False)
class Bitext:
    """Sentence pairs, neither side of which is empty, and the word pairs that co-occur in them.

    Attributes:
      source: the sentences e, shorter pairs first.
      target: the sentences f, in the same order.
      order: place of each pair in what was given.
      entry_source: source word of each entry, ascending.
      entry_target: target word of each entry, ascending within a source word.
      cells: entry of each cell; source tokens in order, and for each the target tokens of its sentence.
    """

    source: Side
    target: Side
    order: Int64[np.ndarray, " pairs"]
    entry_source: Int32[np.ndarray, " entries"]
    entry_target: Int32[np.ndarray, " entries"]
    cells: Int32[np.ndarray, " cells"]

    def __len__(self) -> int:
        return len(self.order)

    @property
    def entries(self) -> int:
        """Number of different word pairs."""
        return len(self.entry_source)

    @functools.cached_property
    def cell_starts(self) -> Int64[np.ndarray, " pairs_and_end"]:
        """Where the cells of each sentence pair begin, and, last, where they end."""
        starts = np.zeros(len(self) + 1, np.int64)
        np.cumsum(self.source.lengths * self.target.lengths, out=starts[1:])
        return starts


class Batch(NamedTuple):
    """Sentence pairs padded to common lengths I and J.

    Arrays are NumPy's on the host and JAX's on a device.

    Attributes:
      cells: entry of each cell; past either length it is one past the last entry.
      source: source words; past the end, one past the last word.
      target: target words, likewise.
      source_length: words of each source sentence; 0 for a row that only fills the batch.
      target_length: words of each target sentence, likewise.
    """

    cells: Int32[Any, "batch I J"]
    source: Int32[Any, "batch I"]
    target: Int32[Any, "batch J"]
    source_length: Int32[Any, " batch"]
    target_length: Int32[Any, " batch"]


def encode(sentences: Sequence[Sequence[str]], words: Sequence[str] = ()) -> Side:
    """Numbers the words of ``sentences``: those of ``words`` by place, others in order of occurrence."""
    ids = {word: number for number, word in enumerate(words)}
    tokens = [ids.setdefault(word, len(ids)) for sentence in sentences for word in sentence]
    starts = np.zeros(len(sentences) + 1, np.int64)
    np.cumsum([len(sentence) for sentence in sentences], out=starts[1:])
    return Side(list(ids), np.array(tokens, np.int32), starts)


def make_bitext(
    source: Sequence[Sequence[str]],
    target: Sequence[Sequence[str]],
    words: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> Bitext:
    """Returns the bitext of tokenised sentence pairs, none of them empty or longer than ``LONGEST``.

    Args:
      source: source sentences.
      target: target sentences.
      words: words of both sides that have numbers already: their places.
    """
    if len(source) != len(target):
        raise ValueError(f"{len(source)} source sentences and {len(target)} target sentences")
    longest = np.array([max(len(e), len(f)) for e, f in zip(source, target, strict=True)], np.int64)
    if len(longest) and not (longest.max() <= LONGEST and all(map(len, source)) and all(map(len, target))):
        raise ValueError(f"a sentence is empty or has more than {LONGEST} words")
    order = np.argsort(longest, kind="stable")
    e, f = (
        encode([side[k] for k in order], known) for side, known in zip((source, target), words, strict=True)
    )
    return Bitext(e, f, order, *_entries(e, f))


@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive sentence pairs of a bitext that make one batch.

    Attributes:
      first: the first pair.
      last: one past the last.
      rows: rows of the batch, the rest of them empty.
      length: padded length of both sides.
    """

    first: int
    last: int
    rows: int
    length: int


def blocks(bitext: Bitext, *, cells: int = 1 << 19, multiple: int = 1) -> list[Block]:
    """Divides a bitext into batches of at most about ``cells`` padded cells, longest pairs first.

    Args:
      bitext: sentence pairs, shorter ones first.
      cells: most cells of a batch; what bounds memory.
      multiple: divides the rows of a batch (devices).
    """
    longest = np.maximum(bitext.source.lengths, bitext.target.lengths)
    found, first = [], 0
    for length in padded_lengths(longest):
        last = int(np.searchsorted(longest, length, side="right"))
        rows = min(max(cells // length**2, 1), last - first)
        rows = -(-rows // multiple) * multiple
        found += [Block(at, min(at + rows, last), rows, length) for at in range(first, last, rows)]
        first = last
    return found[::-1]


def padded_lengths(longest: Int64[np.ndarray, " pairs"]) -> list[int]:
    """Returns the lengths to pad to that cost least: every one is a program to compile, and padding is work.

    Args:
      longest: the longer length of each pair, ascending.
    """
    if not len(longest):
        return []
    choices = np.arange(_GRANULE, longest[-1] + _GRANULE, _GRANULE)
    below = np.concatenate([[0], np.searchsorted(longest, choices, side="right")])
    best, previous = np.zeros(len(choices) + 1), np.zeros(len(choices) + 1, int)
    for k, length in enumerate(choices, start=1):
        cost = best[:k] + (below[k] - below[:k]) * length**2 + _COMPILATION * (below[k] > below[:k])
        previous[k] = cost.argmin()
        best[k] = cost.min()
    lengths, k = [], len(choices)
    while k:
        if below[k] > below[previous[k]]:
            lengths.append(int(choices[k - 1]))
        k = previous[k]
    return lengths[::-1]


def make_batch(bitext: Bitext, block: Block) -> Batch:
    """Pads the sentence pairs of ``block``."""
    mask = cell_mask(bitext, block)
    cells = np.full(mask.shape, bitext.entries, np.int32)
    cells[mask] = bitext.cells[cell_range(bitext, block)]
    source, source_length = _pad(bitext.source, block)
    target, target_length = _pad(bitext.target, block)
    return Batch(cells, source, target, source_length, target_length)


def reverse(batch: Batch) -> Batch:
    """Returns the batch of the other direction."""
    cells = batch.cells.transpose(0, 2, 1)
    return Batch(cells, batch.target, batch.source, batch.target_length, batch.source_length)


def cell_range(bitext: Bitext, block: Block) -> slice:
    """Returns where the cells of ``block`` are in ``bitext.cells``; ``cell_mask`` is where in a batch."""
    starts = bitext.cell_starts
    return slice(int(starts[block.first]), int(starts[block.last]))


def cell_mask(bitext: Bitext, block: Block) -> Bool[np.ndarray, "batch I J"]:
    """Returns which cells of a batch are within both sentences."""
    source, target = token_mask(bitext.source, block), token_mask(bitext.target, block)
    return source[:, :, None] & target[:, None, :]


def token_mask(side: Side, block: Block) -> Bool[np.ndarray, "batch length"]:
    """Returns which places of a padded side are words."""
    lengths = np.zeros(block.rows, np.int32)
    lengths[: block.last - block.first] = side.lengths[block.first : block.last]
    return np.arange(block.length) < lengths[:, None]


def token_range(side: Side, block: Block) -> slice:
    """Returns where the words of ``block`` are in ``side.tokens``."""
    return slice(int(side.starts[block.first]), int(side.starts[block.last]))


def _pad(side: Side, block: Block) -> tuple[np.ndarray, np.ndarray]:
    mask = token_mask(side, block)
    padded = np.full(mask.shape, len(side.words), np.int32)
    padded[mask] = side.tokens[token_range(side, block)]
    return padded, mask.sum(axis=1, dtype=np.int32)


def _entries(source: Side, target: Side) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers the word pairs that co-occur, one source word at a time: nothing larger is ever sorted."""
    length = np.repeat(target.lengths, source.lengths)  # of the sentence opposite, for each source token
    first = np.repeat(target.starts[:-1], source.lengths)
    row = np.zeros(len(length) + 1, np.int64)  # where the cells of each source token begin
    np.cumsum(length, out=row[1:])
    cells = np.empty(row[-1], np.int32)
    order = np.argsort(source.tokens, kind="stable")
    bounds = np.searchsorted(source.tokens[order], np.arange(len(source.words) + 1))
    seen = np.zeros(len(target.words), bool)
    number = np.zeros(len(target.words), np.int32)
    counts, found, total = np.zeros(len(source.words), np.int64), [], 0
    for word in range(len(source.words)):
        tokens = order[bounds[word] : bounds[word + 1]]
        lengths = length[tokens]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        opposite = target.tokens[within + np.repeat(first[tokens], lengths)]
        seen[opposite] = True
        different = np.flatnonzero(seen)
        seen[different] = False
        number[different] = np.arange(total, total + len(different), dtype=np.int32)
        cells[within + np.repeat(row[tokens], lengths)] = number[opposite]
        counts[word] = len(different)
        found.append(different.astype(np.int32))
        total += len(different)
    entry_target = np.concatenate(found) if found else np.zeros(0, np.int32)
    return np.repeat(np.arange(len(source.words), dtype=np.int32), counts), entry_target, cells
