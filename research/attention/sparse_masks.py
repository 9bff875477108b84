"""Sparse patterns as masks: dilated windows, global tokens, random or given blocks, Sparse Transformer."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from research.attention.masks import AnyArray, Bounds, Mask, Span, Tokens


@dataclasses.dataclass(frozen=True)
class DilatedWindow(Mask):
    """A window that sees every ``dilation``-th position (Longformer; Beltagy et al., 2020, section 3.1).

    A token attends to itself, to ``before`` positions before and ``after`` positions after its own, each
    ``dilation`` from the next.
    """

    before: int
    after: int
    dilation: int
    relative: ClassVar[bool] = True

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[AnyArray, "#batch q_len kv_len"]:
        """Returns True where kv - q is a multiple of the dilation, and within the window."""
        distance = kv.positions[:, None, :] - q.positions[:, :, None]
        within = (distance >= -self.before * self.dilation) & (distance <= self.after * self.dilation)
        return within & (distance % self.dilation == 0)

    def bounds(self, q: Span, kv: Span) -> Bounds:
        """Returns whether a multiple of the dilation lies among the distances within the window."""
        least = kv.first[:, None, :] - q.last[:, :, None]
        most = kv.last[:, None, :] - q.first[:, :, None]
        low, high = -self.before * self.dilation, self.after * self.dilation
        reach = most.clip(None, high) // self.dilation * self.dilation
        must = (least >= low) & (most <= high) & (self.dilation == 1)
        return reach >= least.clip(low, None), must


@dataclasses.dataclass(frozen=True)
class Global(Mask):
    """Global tokens attend to everything, and everything attends to them (Longformer; BigBird).

    They are the first ``first`` positions and those in ``at``.
    """

    first: int = 0
    at: tuple[int, ...] = ()

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[AnyArray, "#batch q_len kv_len"]:
        """Returns True where either token is global."""
        return self._chosen(q.positions)[:, :, None] | self._chosen(kv.positions)[:, None, :]

    def bounds(self, q: Span, kv: Span) -> Bounds:
        """Returns whether either block holds a global token, and whether either holds nothing else."""
        (q_may, q_must), (kv_may, kv_must) = self._holds(q), self._holds(kv)
        return (
            q_may[:, :, None] | kv_may[:, None, :],
            q_must[:, :, None] | kv_must[:, None, :],
        )

    def _chosen(self, positions: Int[AnyArray, "#batch length"]) -> Bool[AnyArray, "#batch length"]:
        chosen = positions < self.first
        for place in self.at:
            chosen = chosen | (positions == place)
        return chosen

    def _holds(self, span: Span) -> tuple[Bool[AnyArray, "#batch blocks"], Bool[AnyArray, "#batch blocks"]]:
        may = span.first < self.first
        for place in self.at:
            may = may | ((span.first <= place) & (place <= span.last))
        return may, span.last < self.first


@dataclasses.dataclass(frozen=True)
class Strided(Mask):
    """The strided pattern of the Sparse Transformer, both its heads in one (Child et al., 2019, section 4.2).

    A token attends to the ``stride`` positions up to its own, and to every ``stride``-th one before. Causal.
    """

    stride: int
    relative: ClassVar[bool] = True

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[AnyArray, "#batch q_len kv_len"]:
        """Returns True where q - kv is less than the stride, or a multiple of it, and not negative."""
        distance = q.positions[:, :, None] - kv.positions[:, None, :]
        return (distance >= 0) & ((distance < self.stride) | (distance % self.stride == 0))

    def bounds(self, q: Span, kv: Span) -> Bounds:
        """Returns whether the distances hold one below the stride or a multiple of it."""
        least = (q.first[:, :, None] - kv.last[:, None, :]).clip(0, None)
        most = q.last[:, :, None] - kv.first[:, None, :]
        may = (most >= 0) & ((least < self.stride) | (most // self.stride * self.stride >= least))
        return may, (q.first[:, :, None] >= kv.last[:, None, :]) & (most < self.stride)


@dataclasses.dataclass(frozen=True)
class Fixed(Mask):
    """The fixed pattern of the Sparse Transformer, both its heads in one (Child et al., 2019, section 4.2).

    Positions are cut into blocks of ``stride``. A token attends to those of its own block up to itself, and
    to the last ``summary`` positions of every block before. Causal.
    """

    stride: int
    summary: int

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[AnyArray, "#batch q_len kv_len"]:
        """Returns True where the key is in the query's block or ends its own, and is not after the query."""
        query, key = q.positions[:, :, None], kv.positions[:, None, :]
        summarises = key % self.stride >= self.stride - self.summary
        return (key <= query) & ((key // self.stride == query // self.stride) | summarises)

    def bounds(self, q: Span, kv: Span) -> Bounds:
        """Returns whether the blocks share one of the pattern's, or the keys hold the end of one."""
        first, last = kv.first[:, None, :], kv.last[:, None, :]
        earliest, latest = q.first[:, :, None], q.last[:, :, None]
        reach = last.clip(None, latest)
        ends = first % self.stride + (reach - first) >= self.stride - self.summary
        may = (first <= latest) & ((last // self.stride >= earliest // self.stride) | ends)
        return may, (last <= earliest) & (first // self.stride == latest // self.stride)


@dataclasses.dataclass(frozen=True)
class BlockMask(Mask):
    """An arbitrary pattern of square blocks of positions.

    Queries at positions [block * i, block * (i + 1)) attend to the blocks of keys in ``rows[i]``; positions
    past the last row attend to nothing.
    """

    block: int
    rows: tuple[tuple[int, ...], ...]

    @property
    def table(self) -> Bool[np.ndarray, "q_blocks kv_blocks"]:
        """Which block of queries attends to which block of keys."""
        return _table(self.rows)

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[AnyArray, "#batch q_len kv_len"]:
        """Returns the table at the blocks of the two positions."""
        return _look_up(self.table, self.block, q, kv)

    def bounds(self, q: Span, kv: Span) -> Bounds:
        """Returns whether any, and whether all, of the table's entries under the blocks are true."""
        return _counted(self.table, self.block, q, kv)


@dataclasses.dataclass(frozen=True)
class RandomBlocks(Mask):
    """Random blocks (BigBird; Zaheer et al., 2020, section 2).

    Each block of queries attends to ``count`` blocks of keys, drawn without replacement by (seed, block)
    from the blocks of ``length`` positions; positions past ``length`` take no part. With ``causal`` they are
    drawn from the blocks up to the queries' own, so that a causal mask on top takes none of them away (the
    paper's encoder has no such case).
    """

    block: int
    count: int
    length: int
    seed: int = 0
    causal: bool = False

    @property
    def table(self) -> Bool[np.ndarray, "q_blocks kv_blocks"]:
        """Which block of queries attends to which block of keys."""
        blocks = -(-self.length // self.block)
        rows = []
        for row in range(blocks):
            among = row + 1 if self.causal else blocks
            drawn = np.random.default_rng([self.seed, row]).permutation(among)[: self.count]
            rows.append(tuple(int(i) for i in drawn))
        return _table(tuple(rows), blocks)

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[AnyArray, "#batch q_len kv_len"]:
        """Returns the table at the blocks of the two positions."""
        return _look_up(self.table, self.block, q, kv)

    def bounds(self, q: Span, kv: Span) -> Bounds:
        """Returns whether any, and whether all, of the table's entries under the blocks are true."""
        return _counted(self.table, self.block, q, kv)


@functools.cache
def _table(
    rows: tuple[tuple[int, ...], ...], columns: int | None = None
) -> Bool[np.ndarray, "q_blocks kv_blocks"]:
    """Returns the rows as a dense table."""
    if columns is None:
        columns = 1 + max((column for row in rows for column in row), default=0)
    table = np.zeros((len(rows), columns), bool)
    for row, chosen in enumerate(rows):
        table[row, list(chosen)] = True
    return table


def _look_up(
    table: Bool[np.ndarray, "rows columns"], block: int, q: Tokens, kv: Tokens
) -> Bool[AnyArray, "#batch q_len kv_len"]:
    """Returns the table at the blocks of the positions, False outside it."""
    table = np.pad(table, ((0, 1), (0, 1)))
    row = (q.positions // block).clip(None, table.shape[0] - 1)[:, :, None]
    column = (kv.positions // block).clip(None, table.shape[1] - 1)[:, None, :]
    if isinstance(row, np.ndarray) and isinstance(column, np.ndarray):
        return table[row, column]
    return jnp.asarray(table)[row, column]


def _counted(table: Bool[np.ndarray, "rows columns"], block: int, q: Span, kv: Span) -> Bounds:
    """Returns whether any, and whether all, entries under each pair of blocks are true."""
    rows, columns = table.shape
    sums = np.pad(np.cumsum(np.cumsum(table, 0, dtype=np.int32), 1, dtype=np.int32), ((1, 0), (1, 0)))
    top, bottom = (q.first // block).clip(0, rows), (q.last // block + 1).clip(0, rows)
    left, right = (kv.first // block).clip(0, columns), (kv.last // block + 1).clip(0, columns)
    top, bottom, left, right = top[:, :, None], bottom[:, :, None], left[:, None, :], right[:, None, :]
    at = sums if all(isinstance(x, np.ndarray) for x in (top, left)) else jnp.asarray(sums)
    found = at[bottom, right] - at[top, right] - at[bottom, left] + at[top, left]
    inside = (q.last // block < rows)[:, :, None] & (kv.last // block < columns)[:, None, :]
    return found > 0, inside & (found == (bottom - top) * (right - left))
