"""Labelled examples as rows of tokens, and the batches that they make."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Int32, Int64

from research.errors import UserError

Batch = dict[str, np.ndarray]
_SORTED = 16
"""Batches' worth of rows that are sorted by length, so that rows of a batch are about as long."""


def _eights(width: float) -> int:
    """Returns the next multiple of 8."""
    return math.ceil(width / 8) * 8


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledRows:
    """Examples as rows of tokens, [CLS] a [SEP] or [CLS] a [SEP] b [SEP], and padding.

    Attributes:
      tokens: the rows.
      lengths: tokens of each that are not padding.
      types: 1 for tokens of a second text.
      labels: classes, or scores; of rows or, in tagging, of tokens.
      weights: 1 for what has a label.
      truncated: examples that were longer than a row, and cut.
    """

    tokens: Int32[np.ndarray, "rows length"]
    lengths: Int64[np.ndarray, " rows"]
    types: Int32[np.ndarray, "rows length"]
    labels: np.ndarray
    weights: np.ndarray
    truncated: int

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, numbers: Int64[np.ndarray, " batch"], part: slice) -> Batch:
        """Returns a part of a batch of rows by number, as wide as the longest row of all of it needs.

        A width is a quarter, half or the whole of the rows', so that few programs are compiled.
        """
        full, longest = self.tokens.shape[1], self.lengths[numbers].max()
        widths = (min(_eights(full / 4), full), min(_eights(full / 2), full), full)
        width = next(w for w in widths if w >= longest)
        column, numbers = np.arange(width, dtype=np.int32), numbers[part]
        return {
            "tokens": self.tokens[numbers, :width],
            "positions": np.tile(column, (len(numbers), 1)),
            "segments": (column < self.lengths[numbers, None]).astype(np.int32),
            "types": self.types[numbers, :width],
            "labels": self.labels[numbers] if self.labels.ndim == 1 else self.labels[numbers, :width],
            "weights": self.weights[numbers] if self.weights.ndim == 1 else self.weights[numbers, :width],
        }


class LabelledSource(grain.sources.RandomAccessDataSource[Batch]):
    """Endless training batches, in an order drawn from (seed, epoch); rows of a batch are about as long."""

    def __init__(self, data: LabelledRows, *, batch: int, seed: int, rows: slice) -> None:
        """``rows``: the rows of a batch that this process gets."""
        self._data, self._batch, self._seed, self._rows = data, batch, seed, rows
        if len(data) < batch:
            raise UserError(
                f"{len(data)} training examples are fewer than one batch of {batch}; lower data.batch"
            )
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def __len__(self) -> int:
        return sys.maxsize // self._batch

    def __getitem__(self, index: int) -> Batch:
        numbers = np.arange(self._batch) + index * self._batch
        epochs, places = np.divmod(numbers, len(self._data))
        order = [self._epoch(int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)]
        return self._data.batch(np.array(order), self._rows)

    def _draw_epoch(self, epoch: int) -> Int64[np.ndarray, " rows"]:
        """Returns a permutation of the rows: some batches at a time are sorted by length, and shuffled."""
        generator = np.random.default_rng([self._seed, epoch])
        order, room = generator.permutation(len(self._data)), self._batch * _SORTED
        parts = []
        for start in range(0, len(order), room):
            window = order[start : start + room]
            window = window[np.argsort(self._data.lengths[window], kind="stable")]
            whole = len(window) // self._batch * self._batch
            parts += [generator.permutation(window[:whole].reshape(-1, self._batch)).ravel(), window[whole:]]
        return np.concatenate(parts)


class LabelledBatches(Sequence[Batch]):
    """Validation batches, in order; the last is filled up."""

    def __init__(self, data: LabelledRows, *, batch: int, limit: int | None, rows: slice) -> None:
        """``limit``: batches, at most; ``rows``: which of a batch's rows this process gets."""
        self._data, self._batch, self._rows = data, batch, rows
        batches = -(-len(data) // batch)
        self._len = batches if limit is None else min(limit, batches)

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]  # no slices
        if not 0 <= index < self._len:
            raise IndexError(index)
        numbers = np.arange(self._batch) + index * self._batch
        batch = self._data.batch(np.minimum(numbers, len(self._data) - 1), self._rows)
        real = (numbers < len(self._data))[self._rows]
        return {
            name: np.where(real.reshape(-1, *[1] * (array.ndim - 1)), array, array.dtype.type(0))
            for name, array in batch.items()
        }
