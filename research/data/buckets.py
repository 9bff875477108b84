"""Batches of pairs of about the same length: few static shapes, little padding, any position restorable.

Batch i depends on (seed, i) alone, so any position can be restored at once, and the order does not depend on
how many processes read.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import grain
import numpy as np
from jaxtyping import Float32, Int32, Int64, Integer

from research.data.packing import endless, share_of_process
from research.errors import UserError


class PairBatch(TypedDict):
    """Arrays of one step; padding, and whole rows of it, is 0 everywhere."""

    source: Int32[np.ndarray, "batch width"]
    """Source tokens, the end-of-text token last."""
    source_segments: Int32[np.ndarray, "batch width"]
    """1 for source tokens, 0 for padding."""
    tokens: Int32[np.ndarray, "batch width"]
    """Decoder inputs: the token that targets begin with, then the target."""
    targets: Int32[np.ndarray, "batch width"]
    """What the decoder should say: the target, then the end-of-text token."""
    segments: Int32[np.ndarray, "batch width"]
    """1 for decoder inputs, 0 for padding."""
    weights: Float32[np.ndarray, "batch width"]
    """1 where the target is real, 0 for padding."""


@dataclasses.dataclass(frozen=True, eq=False)
class TokenPairs:
    """Pairs of sentences as tokens, end to end; source i is source[source_starts[i]:source_starts[i+1]]."""

    source: Integer[np.ndarray, " source_tokens"]
    source_starts: Int64[np.ndarray, " pairs_and_one"]
    target: Integer[np.ndarray, " target_tokens"]
    target_starts: Int64[np.ndarray, " pairs_and_one"]
    end: int
    """The end-of-text token."""
    target_bytes: int = 0
    """Length of the target text in UTF-8 bytes."""
    start: int | None = None
    """The token that targets begin with; None: the end-of-text token."""

    @classmethod
    def of(
        cls,
        source: Sequence[Sequence[int]],
        target: Sequence[Sequence[int]],
        end: int,
        target_bytes: int = 0,
        start: int | None = None,
    ) -> TokenPairs:
        """Returns the pairs of two lists of sentences."""
        (ours, our_starts), (theirs, their_starts) = _joined(source), _joined(target)
        return cls(ours, our_starts, theirs, their_starts, end, target_bytes, start)

    def __len__(self) -> int:
        return len(self.source_starts) - 1

    @property
    def target_tokens(self) -> int:
        """Number of targets, each sentence's end-of-text token included."""
        return len(self.target) + len(self)

    def widths(self) -> Int64[np.ndarray, " pairs"]:
        """Returns the width each pair needs: its longer side and one end-of-text token."""
        return np.maximum(np.diff(self.source_starts), np.diff(self.target_starts)) + 1

    def save(self, directory: Path) -> None:
        """Writes the pairs into an existing directory."""
        for field in ("source", "source_starts", "target", "target_starts"):
            np.save(directory / f"{field}.npy", getattr(self, field))
        np.save(directory / "numbers.npy", np.array([self.end, self.target_bytes, self.first], np.int64))

    @classmethod
    def open(cls, directory: Path) -> TokenPairs:
        """Memory-maps what `save` wrote."""
        source, source_starts, target, target_starts = (
            np.asarray(np.load(directory / f"{field}.npy", mmap_mode="r"))
            for field in ("source", "source_starts", "target", "target_starts")
        )
        end, size, start = np.load(directory / "numbers.npy").tolist()
        return cls(source, source_starts, target, target_starts, end, size, start)

    @property
    def first(self) -> int:
        """The token that targets begin with."""
        return self.end if self.start is None else self.start


def _joined(
    sentences: Sequence[Sequence[int]],
) -> tuple[Int32[np.ndarray, " tokens"], Int64[np.ndarray, " sentences_and_one"]]:
    starts = np.zeros(len(sentences) + 1, np.int64)
    np.cumsum([len(sentence) for sentence in sentences], out=starts[1:])
    return np.fromiter((t for s in sentences for t in s), np.int32, int(starts[-1])), starts


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A shape of batch: ``rows`` pairs that need at most ``width`` tokens on either side."""

    width: int
    rows: int


def plan(widths: Integer[np.ndarray, " pairs"], *, count: int, tokens: int, multiple: int) -> list[Bucket]:
    """Returns at most ``count`` buckets that together need the least padding, by dynamic programming.

    Args:
      widths: width of each pair.
      count: buckets, at most; each is one compilation of the step.
      tokens: tokens of padded target (or source) in a batch; what is left over below a row is lost.
      multiple: rows come in multiples of this, so that they divide over devices.

    Raises:
      UserError: ``tokens`` leaves no room for the longest pairs.
    """
    counts = np.bincount(widths)
    sizes = np.flatnonzero(counts)
    total = np.concatenate([[0], np.cumsum(counts[sizes])])
    # cost[k][j]: least padded tokens of the j smallest sizes in k + 1 buckets; a bucket i..j costs
    # (number of pairs in it) * (its largest size).
    cost = total[1:] * sizes
    back = [np.zeros(len(sizes), np.int64)]
    for _ in range(1, min(count, len(sizes))):
        options = (
            np.concatenate([[0], cost])[None, :-1] + (total[1:, None] - total[None, :-1]) * sizes[:, None]
        )
        options = np.where(np.tri(len(sizes), dtype=bool), options, np.iinfo(np.int64).max)
        back.append(options.argmin(1))
        cost = options.min(1)
    buckets, last = [], len(sizes) - 1
    for first in reversed(back):
        if last < 0:
            break
        width = int(sizes[last])
        rows = tokens // width // multiple * multiple
        if not rows:
            raise UserError(
                f"data.batch_tokens {tokens} is too small: {multiple} rows of the longest pairs take "
                f"{multiple * width} tokens"
            )
        buckets.append(Bucket(width, rows))
        last = int(first[last]) - 1
    return buckets[::-1]


def padding(pairs: TokenPairs, buckets: Sequence[Bucket]) -> float:
    """Returns the share of padding in batches of all the pairs, both sides together."""
    limits = np.array([bucket.width for bucket in buckets])
    slots = 2 * int(limits[np.searchsorted(limits, pairs.widths())].sum())
    real = len(pairs.source) + len(pairs.target) + 2 * len(pairs)
    return 1 - real / slots


class PairBatches(grain.sources.RandomAccessDataSource[PairBatch]):
    """Endless training batches: every pair once in an epoch, in an order drawn from (seed, epoch).

    Pairs left over when a bucket's last batch would not be full go to the next wider bucket, so that every
    epoch has the same number of batches and only one of them, of the widest bucket, is not full.
    """

    def __init__(
        self, pairs: TokenPairs, buckets: Sequence[Bucket], *, seed: int, share: tuple[int, int] = (0, 1)
    ) -> None:
        """``share``: number of this process, and processes that share the rows of each batch."""
        self._pairs, self._buckets, self._seed, self._share = pairs, buckets, seed, share
        self._members = _members(pairs.widths(), buckets)
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)
        self.batches_per_epoch = len(self._epoch(0))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> PairBatch:
        epoch, number = divmod(index, self.batches_per_epoch)
        bucket, members = self._epoch(epoch)[number]
        return gather(self._pairs, members, self._buckets[bucket], self._share)

    def _draw_epoch(self, epoch: int) -> list[tuple[int, Int64[np.ndarray, " members"]]]:
        random = np.random.default_rng([self._seed, epoch])
        batches: list[tuple[int, Int64[np.ndarray, " members"]]] = []
        left = np.zeros(0, np.int64)
        for i, (bucket, members) in enumerate(zip(self._buckets, self._members, strict=True)):
            order = np.concatenate([left, random.permutation(members)])
            full = len(order) // bucket.rows * bucket.rows
            batches += [(i, part) for part in order[:full].reshape(-1, bucket.rows)]
            left = order[full:]
        if len(left):
            batches.append((len(self._buckets) - 1, left))
        return [batches[i] for i in random.permutation(len(batches))]


class OrderedPairBatches(Sequence[PairBatch]):
    """Every pair once, bucket by bucket in their order; each bucket's last batch is filled with padding."""

    def __init__(
        self, pairs: TokenPairs, buckets: Sequence[Bucket], *, share: tuple[int, int] = (0, 1)
    ) -> None:
        """``share``: as for `PairBatches`."""
        self._pairs, self._buckets, self._share = pairs, buckets, share
        self._batches = [
            (bucket, members[start : start + bucket.rows])
            for bucket, members in zip(buckets, _members(pairs.widths(), buckets), strict=True)
            for start in range(0, len(members), bucket.rows)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> PairBatch:  # type: ignore[override]  # no slices
        bucket, members = self._batches[index]
        return gather(self._pairs, members, bucket, self._share)


def _members(
    widths: Integer[np.ndarray, " pairs"], buckets: Sequence[Bucket]
) -> list[Int64[np.ndarray, " members"]]:
    """Returns the pairs of each bucket: the narrowest they fit in."""
    limits = np.array([bucket.width for bucket in buckets])
    place = np.searchsorted(limits, widths)
    return [np.flatnonzero(place == i) for i in range(len(buckets))]


def gather(
    pairs: TokenPairs, members: Int64[np.ndarray, " members"], bucket: Bucket, share: tuple[int, int]
) -> PairBatch:
    """Returns the pairs ``members`` as a batch of the bucket's shape; this process takes its share of it."""
    rows = share_of_process(bucket.rows, *share)
    batch: PairBatch = {
        name: np.zeros((bucket.rows, bucket.width), np.float32 if name == "weights" else np.int32)
        for name in PairBatch.__annotations__
    }  # type: ignore[assignment]
    for row, i in enumerate(members.tolist()):
        source = pairs.source[pairs.source_starts[i] : pairs.source_starts[i + 1]]
        target = pairs.target[pairs.target_starts[i] : pairs.target_starts[i + 1]]
        batch["source"][row, : len(source)] = source
        batch["source"][row, len(source)] = pairs.end
        batch["source_segments"][row, : len(source) + 1] = 1
        batch["tokens"][row, 0] = pairs.first
        batch["tokens"][row, 1 : len(target) + 1] = target
        batch["targets"][row, : len(target)] = target
        batch["targets"][row, len(target)] = pairs.end
        batch["segments"][row, : len(target) + 1] = 1
        batch["weights"][row, : len(target) + 1] = 1.0
    return {name: array[rows] for name, array in batch.items()}  # type: ignore[return-value, index]


def train_batches(
    pairs: TokenPairs,
    buckets: Sequence[Bucket],
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[PairBatch]:
    """Returns endless shuffled batches; ``get_state``/``set_state`` of the iterator restore any position.

    Args:
      pairs: training pairs.
      buckets: shapes of the batches; rows divide over the processes.
      seed: decides the order, together with the epoch.
      process_index: number of this process.
      process_count: processes that share each batch.
    """
    return endless(PairBatches(pairs, buckets, seed=seed, share=(process_index, process_count)))
