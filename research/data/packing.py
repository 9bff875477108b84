"""Batches: rows of a token stream as fixed-length arrays, with segments and positions, in a seeded order.

A batch is the record of random access: batch i depends on (seed, i) alone, so any position can be restored
at once, and the order does not depend on how many processes read.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any, TypedDict, cast

import grain
import numpy as np
from jaxtyping import Float32, Int32, Int64

from research.data.stream import TokenStream
from research.errors import UserError


class Batch(TypedDict):
    """Arrays of one step. Padding (only in the last validation batch) is 0 everywhere."""

    tokens: Int32[np.ndarray, "batch length"]
    """Inputs."""
    targets: Int32[np.ndarray, "batch length"]
    """The token after each input."""
    segments: Int32[np.ndarray, "batch length"]
    """Document of each input, counted from 1 in order of appearance in the row."""
    positions: Int32[np.ndarray, "batch length"]
    """Position of each input in its document's part of the row, from 0."""
    weights: Float32[np.ndarray, "batch length"]
    """1 where the target is real, 0 for padding."""


class TrainSource(grain.sources.RandomAccessDataSource[Batch]):
    """Endless training batches.

    In epoch e the stream is cut into rows at offset(seed, e) + r * length, the offset being in [0, length),
    and the rows come in the order of a permutation drawn from (seed, e). Every epoch has the same number of
    rows; batches go on across the border between epochs.
    """

    def __init__(self, stream: TokenStream, *, length: int, batch: int, seed: int, rows: slice) -> None:
        """``rows``: the rows of a batch that this process gets; UserError if the stream is too small."""
        self._stream, self._length, self._batch, self._seed, self._rows = stream, length, batch, seed, rows
        self.rows_per_epoch = (len(stream) - (length - 1)) // length
        if self.rows_per_epoch < batch:
            raise UserError(
                f"too little training text: {len(stream)} tokens make {max(self.rows_per_epoch, 0)} "
                f"sequences of length {length}, fewer than one batch of {batch}; "
                "lower data.batch or data.length"
            )
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def __len__(self) -> int:
        return sys.maxsize // self._batch

    def __getitem__(self, index: int) -> Batch:
        rows = np.arange(self._batch)[self._rows] + index * self._batch
        epochs, numbers = np.divmod(rows, self.rows_per_epoch)
        starts = np.empty_like(rows)
        for epoch in {
            int(epochs[0]),
            int(epochs[-1]),
        }:  # a batch is at most an epoch, so it touches one border
            offset, order = self._epoch(epoch)
            here = epochs == epoch
            starts[here] = offset + order[numbers[here]] * self._length
        return _gather(self._stream, starts, self._length)

    def _draw_epoch(self, epoch: int) -> tuple[int, Int64[np.ndarray, " rows"]]:
        random = np.random.default_rng([self._seed, epoch])
        return int(random.integers(self._length)), random.permutation(self.rows_per_epoch)


class ValidBatches(Sequence[Batch]):
    """Validation batches: every (input, target) pair of the stream once, in order; the last is padded."""

    def __init__(
        self, stream: TokenStream, *, length: int, batch: int, limit: int | None, rows: slice
    ) -> None:
        """``limit``: batches, at most; ``rows``: which of a batch's rows this process gets."""
        self._stream, self._length, self._batch, self._rows = stream, length, batch, rows
        batches = -(-len(stream) // (length * batch))
        self._len = batches if limit is None else min(limit, batches)

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]  # no slices
        if not 0 <= index < self._len:
            raise IndexError(index)
        starts = (np.arange(self._batch)[self._rows] + index * self._batch) * self._length
        if starts[-1] + self._length <= len(self._stream):
            return _gather(self._stream, starts, self._length)
        real = starts[:, None] + np.arange(self._length) < len(self._stream)
        return _gather(self._stream, starts, self._length, real)


def train_batches(
    stream: TokenStream,
    *,
    length: int,
    batch: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Returns endless shuffled batches; ``get_state``/``set_state`` of the iterator restore any position.

    Args:
      stream: training tokens.
      length: tokens in a row.
      batch: rows in a global batch; each process gets its contiguous share of each.
      seed: decides the order, together with the epoch.
      process_index: number of this process.
      process_count: processes that share each batch.

    Raises:
      UserError: the stream is too small for one batch, or the batch does not divide over the processes.
    """
    rows = share_of_process(batch, process_index, process_count)
    return endless(TrainSource(stream, length=length, batch=batch, seed=seed, rows=rows))


def endless(source: Any) -> grain.DatasetIterator[Any]:
    """Returns the batches of an endless source of random access, each read when it is asked for."""
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def valid_batches(
    stream: TokenStream,
    *,
    length: int,
    batch: int,
    limit: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> ValidBatches:
    """Returns the validation batches, in order, at most ``limit``; other arguments as for `train_batches`."""
    rows = share_of_process(batch, process_index, process_count)
    return ValidBatches(stream, length=length, batch=batch, limit=limit, rows=rows)


def share_of_process(batch: int, process_index: int, process_count: int) -> slice:
    """Returns which rows of a batch a process reads; ``UserError`` if it does not divide."""
    if batch % process_count:
        raise UserError(
            f"a batch of {batch} does not divide over {process_count} processes; change data.batch"
        )
    share = batch // process_count
    return slice(process_index * share, (process_index + 1) * share)


def _gather(
    stream: TokenStream,
    starts: Int64[np.ndarray, " batch"],
    length: int,
    real: np.ndarray | None = None,
) -> Batch:
    """Returns the rows of ``length`` pairs from ``starts`` on; where ``real`` is false they are padding."""
    tokens = np.zeros((len(starts), length + 1), np.int32)
    for row, start in zip(tokens, starts.tolist(), strict=True):
        found = stream.tokens[start : start + length + 1]
        row[: len(found)] = found
    segments, positions = _documents(stream.starts, starts, length)
    batch: Batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": segments,
        "positions": positions,
        "weights": np.ones(segments.shape, np.float32),
    }
    if real is not None:
        arrays = cast(dict[str, np.ndarray], batch)
        for name, values in arrays.items():
            arrays[name] = np.where(real, values, values.dtype.type(0))
    return batch


def _documents(
    opened_at: Int64[np.ndarray, " documents"], starts: Int64[np.ndarray, " batch"], length: int
) -> tuple[Int32[np.ndarray, "batch length"], Int32[np.ndarray, "batch length"]]:
    """Returns segments and positions of the rows of ``length`` inputs that start at ``starts``."""
    column = np.arange(length, dtype=np.int32)
    segments = np.ones((len(starts), length), np.int32)
    positions = np.tile(column, (len(starts), 1))
    # Documents first..last are opened inside a row, after its first column.
    first, last = np.searchsorted(opened_at, np.stack([starts, starts + length - 1]), side="right")
    cut = np.flatnonzero(last > first)  # rows of one document are done already
    if len(cut):
        opened = (last - first)[cut]
        row = np.repeat(np.arange(len(cut)), opened)
        document = np.arange(len(row)) + np.repeat(first[cut] - (np.cumsum(opened) - opened), opened)
        opens = np.zeros((len(cut), length), np.int32)
        opens[row, opened_at[document] - starts[cut][row]] = 1
        segments[cut] += np.cumsum(opens, axis=1, dtype=np.int32)
        positions[cut] -= np.maximum.accumulate(opens * column, axis=1)
    return segments, positions
