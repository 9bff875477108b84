"""Batches for masked language modelling: packed rows or pairs, masked by (seed, batch) alone.

As in `research.data.packing`, batch i depends on (seed, i) alone, so any position can be restored at once,
and neither order nor gaps depend on how many processes read.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jaxtyping import Int, Int64, Integer

from research.data.masking import Draws, Kinds, Masking, mask
from research.data.packing import endless, share_of_process
from research.data.sentences import Sentences, pack
from research.data.wordpiece import MaskingTokenizer
from research.errors import UserError

Batch = dict[str, np.ndarray]
"""``tokens``, ``positions``, ``segments`` [batch, length] int32 (segment 0: padding); ``selected`` (indices),
``targets`` [batch, selected] int32 and ``weights`` [batch, selected] float32; with pairs ``types`` [batch,
length] and ``pair`` [batch] int32: 0 the second part follows the first, 1 it does not, -1 an empty row."""
_ORDER, _MASK, _PAIR = range(3)
"""What randomness is for; part of the meaning of a seed."""


@dataclasses.dataclass(frozen=True, eq=False)
class PackedRows:
    """Rows of pieces of documents, [CLS] piece [SEP], each a segment of its own.

    Attributes:
      tokens: the rows, padding at the end.
      segments: number of each token's piece in its row, from 1; 0 is padding.
      fill: share of the tokens that are not padding.
    """

    tokens: Integer[np.ndarray, "rows length"]
    segments: Integer[np.ndarray, "rows length"]
    fill: float

    @classmethod
    def of(
        cls, text: Sentences, tokenizer: MaskingTokenizer, length: int, *, packed: bool = True
    ) -> PackedRows:
        """Packs documents into rows of ``length``, or lays one piece in each; UserError without any text."""
        pieces = np.array(list(text.pieces(length - 2, tokenizer.continues)), np.int64)
        if not len(pieces):
            raise UserError("there is no text: nothing but white space")
        sizes = pieces[:, 1] - pieces[:, 0] + 2
        rows = pack(sizes, length) if packed else [[piece] for piece in range(len(pieces))]
        tokens = np.full((len(rows), length), tokenizer.padding, text.tokens.dtype)
        segments = np.zeros((len(rows), length), np.uint16)
        for row, members in enumerate(rows):
            at = 0
            for number, piece in enumerate(sorted(members), start=1):
                (begin, end), size = pieces[piece], sizes[piece]
                tokens[row, at] = tokenizer.first
                tokens[row, at + 1 : at + size - 1] = text.tokens[begin:end]
                tokens[row, at + size - 1] = tokenizer.separator
                segments[row, at : at + size] = number
                at += size
        return cls(tokens, segments, float(sizes.sum() / tokens.size))

    def save(self, directory: Path) -> None:
        """Writes the rows."""
        np.save(directory / "tokens.npy", self.tokens)
        np.save(directory / "segments.npy", self.segments)
        (directory / "fill").write_text(repr(self.fill))

    @classmethod
    def open(cls, directory: Path) -> PackedRows:
        """Memory-maps what ``save`` wrote."""
        tokens, segments = (
            np.load(directory / f"{name}.npy", mmap_mode="r") for name in ("tokens", "segments")
        )
        return cls(tokens, segments, float((directory / "fill").read_text()))

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return self.tokens.shape[1]

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, numbers: Int64[np.ndarray, " batch"], draws: np.ndarray) -> Batch:
        """Returns some rows with their segments and positions; ``draws`` play no part."""
        del draws
        segments = self.segments[numbers].astype(np.int32)
        return {
            "tokens": self.tokens[numbers].astype(np.int32),
            "positions": _positions(segments),
            "segments": segments,
        }


class PairRows:
    """Rows of two parts, [CLS] a [SEP] b [SEP]: consecutive sentences of one document, or not.

    A row is made of a stretch of sentences of one document, cut in two between two of them. In half of the
    rows, drawn anew every time, the second part is replaced by sentences of another document, or the two are
    exchanged.
    """

    def __init__(self, text: Sentences, tokenizer: MaskingTokenizer, length: int, *, other: bool) -> None:
        """``other``: the wrong part is from another document, not the right one in the wrong place."""
        self._text, self._tokenizer, self.length, self._other = text, tokenizer, length, other
        self._stretches = np.array(list(self._cut()), np.int64).reshape(-1, 2)
        if not len(self._stretches):
            raise UserError("there is no document of two sentences that fit into a row; raise data.length")
        if other and len(text.documents) < 3:
            raise UserError(
                'data.pairs "next" needs at least two documents of training text and of validation text; '
                'use "order" or "none"'
            )

    def _cut(self) -> Any:
        """Yields (first, end) sentences of stretches of at least two that fit into a row."""
        text, room = self._text, self.length - 3
        for first, last in zip(text.documents[:-1].tolist(), text.documents[1:].tolist(), strict=True):
            while first < last:
                limit = text.sentences[first] + room
                end = int(np.searchsorted(text.sentences[first : last + 1], limit, side="right")) - 1 + first
                if end - first >= 2:
                    yield first, end
                first = max(end, first + 1)

    def __len__(self) -> int:
        return len(self._stretches)

    def rows(self, numbers: Int64[np.ndarray, " batch"], draws: np.ndarray) -> Batch:
        """Returns some rows; ``draws`` [batch, 4] in [0, 1) decide where they are cut and what follows."""
        shape = (len(numbers), self.length)
        tokens = np.full(shape, self._tokenizer.padding, np.int32)
        segments, types = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        wrong = draws[:, 0] < 0.5
        for row, number in enumerate(numbers):
            first, end = self._stretches[number].tolist()
            a, b = self._parts(first, end, bool(wrong[row]), draws[row, 1:])
            size = len(a) + len(b) + 3
            tokens[row, :size] = np.concatenate(
                [[self._tokenizer.first], a, [self._tokenizer.separator], b, [self._tokenizer.separator]]
            )
            segments[row, :size] = 1
            types[row, len(a) + 2 : size] = 1
        positions = _positions(segments)
        batch = {"tokens": tokens, "positions": positions, "segments": segments, "types": types}
        return {**batch, "pair": wrong.astype(np.int32)}

    def _parts(
        self, first: int, end: int, wrong: bool, draws: np.ndarray
    ) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
        """Returns the tokens of both parts of a row."""
        tokens, borders = self._text.tokens, self._text.sentences
        middle = first + 1 + int(draws[0] * (end - first - 1))
        a, b = tokens[borders[first] : borders[middle]], tokens[borders[middle] : borders[end]]
        if not wrong:
            return a, b
        if not self._other:
            return b, a
        documents = self._text.documents
        own = int(np.searchsorted(documents, first, side="right")) - 1
        other = int(draws[1] * (len(documents) - 2))
        other += other >= own
        start = int(documents[other] + draws[2] * (documents[other + 1] - documents[other]))
        begin, stop = borders[start], borders[documents[other + 1]]
        return a, tokens[begin : min(stop, begin + len(b))]


def _positions(segments: Int[np.ndarray, "batch length"]) -> Int[np.ndarray, "batch length"]:
    """Returns the position of each token in its segment, from 0."""
    column = np.arange(segments.shape[1], dtype=np.int32)
    starts = np.zeros(segments.shape, bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return column - np.maximum.accumulate(starts * column, axis=1).astype(np.int32)


def _masked(
    source: PackedRows | PairRows, numbers: np.ndarray, how: Masking, kinds: Kinds, draws: Draws, pairs: Any
) -> Batch:
    batch = source.rows(numbers, pairs)
    found = mask(batch["tokens"], how, kinds, draws)
    return {
        **batch,
        "tokens": found.tokens,
        "selected": found.selected,
        "targets": found.targets,
        "weights": found.weights,
    }


class MaskedSource(grain.sources.RandomAccessDataSource[Batch]):
    """Endless training batches.

    In each epoch the rows come in the order of a permutation drawn from (seed, epoch); batches go on across
    the border between epochs. Gaps and pairs of batch i are drawn from (seed, i).
    """

    def __init__(
        self, source: PackedRows | PairRows, how: Masking, kinds: Kinds, *, batch: int, seed: int, rows: slice
    ) -> None:
        """``rows``: the rows of a batch that this process gets; UserError if there are too few rows."""
        self._source, self._how, self._kinds = source, how, kinds
        self._batch, self._seed, self._rows = batch, seed, rows
        if len(source) < batch:
            raise UserError(
                f"too little training text: it makes {len(source)} rows of length {source.length}, fewer "
                f"than one batch of {batch}; lower data.batch or data.length"
            )
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def __len__(self) -> int:
        return sys.maxsize // self._batch

    def __getitem__(self, index: int) -> Batch:
        epochs, places = np.divmod(np.arange(self._batch) + index * self._batch, len(self._source))
        numbers = np.empty(self._batch, np.int64)
        for epoch in {int(epochs[0]), int(epochs[-1])}:
            here = epochs == epoch
            numbers[here] = self._epoch(epoch)[places[here]]
        most = self._how.most(self._source.length)
        random = np.random.default_rng([self._seed, _MASK, index])
        draws = Draws.of(random, self._batch, self._source.length, most)
        pairs = np.random.default_rng([self._seed, _PAIR, index]).random((self._batch, 4))
        rows = self._rows
        return _masked(self._source, numbers[rows], self._how, self._kinds, draws[rows], pairs[rows])

    def _draw_epoch(self, epoch: int) -> Int64[np.ndarray, " rows"]:
        return np.random.default_rng([self._seed, _ORDER, epoch]).permutation(len(self._source))


class MaskedBatches(Sequence[Batch]):
    """Validation batches: every row once, in order, with the same gaps every time; the last is filled up."""

    def __init__(
        self,
        source: PackedRows | PairRows,
        how: Masking,
        kinds: Kinds,
        *,
        batch: int,
        limit: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """``limit``: batches, at most."""
        self._source, self._how, self._kinds, self._batch = source, how, kinds, batch
        self._rows = share_of_process(batch, process_index, process_count)
        batches = -(-len(source) // batch)
        self._len = batches if limit is None else min(limit, batches)

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]  # no slices
        if not 0 <= index < self._len:
            raise IndexError(index)
        numbers = np.arange(self._batch) + index * self._batch
        most = self._how.most(self._source.length)
        random = np.random.default_rng([0, _MASK, index])
        draws = Draws.of(random, self._batch, self._source.length, most)
        pairs = np.random.default_rng([0, _PAIR, index]).random((self._batch, 4))
        rows = self._rows
        real = numbers[rows] < len(self._source)
        numbers = np.minimum(numbers[rows], len(self._source) - 1)
        batch = _masked(self._source, numbers, self._how, self._kinds, draws[rows], pairs[rows])
        for name, array in batch.items():
            empty = np.array(-1 if name == "pair" else 0, array.dtype)
            batch[name] = np.where(real.reshape(-1, *[1] * (array.ndim - 1)), array, empty)
        return batch


def train_batches(
    source: PackedRows | PairRows,
    how: Masking,
    kinds: Kinds,
    *,
    batch: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Returns endless shuffled batches; ``get_state``/``set_state`` of the iterator restore any position.

    Args:
      source: training rows.
      how: what is masked.
      kinds: what masking must know of the vocabulary.
      batch: rows in a global batch; each process gets its contiguous share of each.
      seed: decides order, gaps and pairs.
      process_index: number of this process.
      process_count: processes that share each batch.

    Raises:
      UserError: there are too few rows for a batch, or the batch does not divide over the processes.
    """
    rows = share_of_process(batch, process_index, process_count)
    return endless(MaskedSource(source, how, kinds, batch=batch, seed=seed, rows=rows))
