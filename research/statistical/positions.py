"""Where a target word's source position comes from: the part in which Models 1 and 2 and the HMM differ.

Each is a description with three functions. ``initial`` makes its parameters, ``posteriors`` says what a
batch's alignments may be given t(f_j | e_i), and ``maximise`` turns the statistics summed over a bitext into
new parameters. In Models 1 and 2 target words choose independently:

    P(f | e) = prod_j sum_i a(i | j, I, J) t(f_j | e_i),    i = 0..I, e_0 the empty word
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Int64


class Posteriors(NamedTuple):
    """What a batch says about its alignments.

    Attributes:
      links: P(a_j = i | f, e), 0 past either length.
      empty: P(f_j is from the empty word | f, e), 0 past the length.
      statistics: what ``maximise`` needs, summed over the batch.
      log_likelihood: sum of log P(f | e), lengths given.
    """

    links: Float32[Array, "*both batch I J"]
    empty: Float32[Array, "*both batch J"]
    statistics: Any
    log_likelihood: Float32[Array, "*both"]


@runtime_checkable
class Positions(Protocol):
    """A model of positions, described by a frozen dataclass."""

    def __hash__(self) -> int: ...

    def initial(self, lengths: Int64[np.ndarray, " pairs"], observed: Int64[np.ndarray, " pairs"]) -> Any:
        """Returns parameters for sentence pairs of these source and target lengths."""

    def posteriors(
        self,
        parameters: Any,
        emission: Float32[Array, "batch I J"],
        empty: Float32[Array, "batch J"],
        lengths: Int32[Array, " batch"],
        observed: Int32[Array, " batch"],
    ) -> Posteriors:
        """Returns the posteriors of a batch.

        Args:
          parameters: of this model.
          emission: t(f_j | e_i), 0 past either length.
          empty: t(f_j | empty word), 0 past the length.
          lengths: words of each source sentence.
          observed: words of each target sentence.
        """

    def statistics(self, parameters: Any) -> Any:
        """Returns empty statistics."""

    def maximise(self, parameters: Any, statistics: Any) -> Any:
        """Returns the parameters that the statistics make likeliest."""


def _independent(
    weighted: Float32[Array, "batch I J"],
    empty: Float32[Array, "batch J"],
    observed: Int32[Array, " batch"],
) -> tuple[Array, Array, Array]:
    """Returns posteriors and log-likelihood, given a(i | j) t(f_j | e_i) and a(0 | j) t(f_j | empty word)."""
    total = weighted.sum(axis=1) + empty
    on = jnp.arange(total.shape[1])[None, :] < observed[:, None]
    total = jnp.where(on, jnp.maximum(total, 1e-37), 1.0)
    return weighted / total[:, None, :], empty / total, jnp.log(total).sum()


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Model 1 (Brown et al., 1993, section 4.1): a(i | j, I, J) = 1 / (I + 1).

    Attributes:
      empty: the share of the empty word; None: that of any other.
    """

    empty: float | None = None

    def initial(self, lengths: Int64[np.ndarray, " pairs"], observed: Int64[np.ndarray, " pairs"]) -> Any:
        """Returns no parameters: there are none."""
        return ()

    def posteriors(
        self,
        parameters: Any,
        emission: Float32[Array, "batch I J"],
        empty: Float32[Array, "batch J"],
        lengths: Int32[Array, " batch"],
        observed: Int32[Array, " batch"],
    ) -> Posteriors:
        """See ``Positions.posteriors``."""
        words = jnp.maximum(lengths, 1).astype(jnp.float32)
        nothing = 1 / (words + 1) if self.empty is None else jnp.full_like(words, self.empty)
        share = (1 - nothing) / words
        links, none, log = _independent(emission * share[:, None, None], empty * nothing[:, None], observed)
        return Posteriors(links, none, (), log)

    def statistics(self, parameters: Any) -> Any:
        """Returns none."""
        return ()

    def maximise(self, parameters: Any, statistics: Any) -> Any:
        """Returns no parameters."""
        return ()


class TableParameters(NamedTuple):
    """Model 2's table, the cells of each pair of lengths one after the other.

    Attributes:
      values: a(i | j, I, J) at ``start[I, J] + i width[I, J] + j``, i = 0..I; one more for padding.
      start: where the cells of a pair of lengths begin.
      width: how far one source position is from the next.
      column: number of the distribution that each value belongs to.
      columns: has one element for each distribution.
    """

    values: Float32[Array, " cells_and_padding"]
    start: Int32[Array, "longest_source longest_target"]
    width: Int32[Array, "longest_source longest_target"]
    column: Int32[Array, " cells_and_padding"]
    columns: Float32[Array, " columns"]


@dataclasses.dataclass(frozen=True)
class Table:
    """Model 2 (Brown et al., 1993, section 4.2): a(i | j, I, J) is a table; the empty word is position 0.

    Attributes:
      of_target_length: whether the table depends on J; without, as GIZA++ has it, fewer values are learnt.
    """

    of_target_length: bool = False

    def initial(
        self, lengths: Int64[np.ndarray, " pairs"], observed: Int64[np.ndarray, " pairs"]
    ) -> TableParameters:
        """Returns the uniform table: Model 1."""
        start = np.zeros((lengths.max() + 1, observed.max() + 1), np.int32)
        width = np.zeros_like(start)
        shapes = np.unique(np.stack([lengths, observed], axis=1), axis=0)
        if not self.of_target_length:
            longest = np.zeros(len(start), np.int64)
            np.maximum.at(longest, lengths, observed)
            shapes = np.stack([np.flatnonzero(longest), longest[longest > 0]], axis=1)
        values, column, at, columns = [], [], 0, 0
        for length, width_of in shapes:
            those = (length, width_of if self.of_target_length else slice(None))
            start[those], width[those] = at, width_of
            values.append(np.full((length + 1) * width_of, 1 / (length + 1), np.float32))
            column.append(np.tile(np.arange(width_of, dtype=np.int32), length + 1) + columns)
            at, columns = at + (length + 1) * width_of, columns + width_of
        return TableParameters(
            jnp.asarray(np.append(np.concatenate(values), np.float32(0))),
            jnp.asarray(start),
            jnp.asarray(width),
            jnp.asarray(np.append(np.concatenate(column), np.int32(columns)).astype(np.int32)),
            jnp.zeros(columns + 1, jnp.float32),
        )

    def posteriors(
        self,
        parameters: TableParameters,
        emission: Float32[Array, "batch I J"],
        empty: Float32[Array, "batch J"],
        lengths: Int32[Array, " batch"],
        observed: Int32[Array, " batch"],
    ) -> Posteriors:
        """See ``Positions.posteriors``."""
        i, j = jnp.arange(emission.shape[1] + 1), jnp.arange(emission.shape[2])
        place = i[None, :, None] * parameters.width[lengths, observed][:, None, None] + j[None, None, :]
        place = place + parameters.start[lengths, observed][:, None, None]
        inside = (i[None, :] <= lengths[:, None])[:, :, None] & (j[None, :] < observed[:, None])[:, None, :]
        place = jnp.where(inside, place, len(parameters.values) - 1)
        share = parameters.values[place]
        links, none, log = _independent(emission * share[:, 1:], empty * share[:, 0], observed)
        both = jnp.concatenate([none[:, None, :], links], axis=1)
        return Posteriors(links, none, jnp.zeros_like(parameters.values).at[place].add(both), log)

    def statistics(self, parameters: TableParameters) -> Float32[Array, " cells_and_padding"]:
        """Returns empty counts c(i | j, I, J)."""
        return jnp.zeros_like(parameters.values)

    def maximise(
        self, parameters: TableParameters, statistics: Float32[Array, " cells_and_padding"]
    ) -> TableParameters:
        """Returns the table of the counts divided by their totals."""
        totals = parameters.columns.at[parameters.column].add(statistics)
        values = statistics / jnp.maximum(totals, 1e-30)[parameters.column]
        return parameters._replace(values=values.at[-1].set(0.0))

    def extended(self, trained: TableParameters, like: TableParameters) -> TableParameters:
        """Returns a table for the lengths of ``like``, uniform where ``trained`` has no value (without J)."""
        values, known = np.array(like.values), np.asarray(trained.values)
        starts, widths = (np.asarray(part)[:, 0] for part in (like.start, like.width))
        theirs = [np.asarray(part)[:, 0] for part in (trained.start, trained.width)]
        for length in np.flatnonzero(widths[: len(theirs[1])]).tolist():
            ours, there = int(widths[length]), int(theirs[1][length])
            for i in range(length + 1 if there else 0):
                at, start = starts[length] + i * ours, theirs[0][length] + i * there
                values[at : at + min(ours, there)] = known[start : start + min(ours, there)]
        return like._replace(values=jnp.asarray(values))


class DiagonalStatistics(NamedTuple):
    """Sums over the target words of h = |i / (I + 1) - j / (J + 1)|: of their links, and as expected."""

    observed: Float32[Array, ""]
    expected: Float32[Array, ""]
    variance: Float32[Array, ""]


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """Model 2 with one parameter (Dyer, Chahuneau & Smith, 2013):

        a(i | j, I, J) = (1 - p0) exp(-l h(i, j, I, J)) / Z(j, I, J),   h = |i / (I + 1) - j / (J + 1)|

    Attributes:
      empty: p0, the share of the empty word.
      tension: the l to begin with.
    """

    empty: float = 0.08
    tension: float = 4.0

    def initial(
        self, lengths: Int64[np.ndarray, " pairs"], observed: Int64[np.ndarray, " pairs"]
    ) -> Float32[Array, ""]:
        """Returns the tension."""
        return jnp.float32(self.tension)

    def posteriors(
        self,
        parameters: Float32[Array, ""],
        emission: Float32[Array, "batch I J"],
        empty: Float32[Array, "batch J"],
        lengths: Int32[Array, " batch"],
        observed: Int32[Array, " batch"],
    ) -> Posteriors:
        """See ``Positions.posteriors``."""
        i = jnp.arange(1, emission.shape[1] + 1)
        j = jnp.arange(1, emission.shape[2] + 1)
        rows = i[None, :].astype(jnp.float32) / (lengths[:, None] + 1).astype(jnp.float32)
        columns = j[None, :].astype(jnp.float32) / (observed[:, None] + 1).astype(jnp.float32)
        h = jnp.abs(rows[:, :, None] - columns[:, None, :])
        inside = (i[None, :] <= lengths[:, None])[:, :, None]
        weight = jnp.where(inside, jnp.exp(-parameters * h), 0.0)
        share = weight / jnp.maximum(weight.sum(axis=1, keepdims=True), 1e-37)
        links, none, log = _independent(emission * share * (1 - self.empty), empty * self.empty, observed)
        linked = links.sum(axis=1)
        mean = (share * h).sum(axis=1)
        statistics = DiagonalStatistics(
            (links * h).sum(),
            (linked * mean).sum(),
            (linked * ((share * h * h).sum(axis=1) - mean**2)).sum(),
        )
        return Posteriors(links, none, statistics, log)

    def statistics(self, parameters: Float32[Array, ""]) -> DiagonalStatistics:
        """Returns empty sums."""
        return DiagonalStatistics(jnp.float32(0), jnp.float32(0), jnp.float32(0))

    def maximise(self, parameters: Float32[Array, ""], statistics: DiagonalStatistics) -> Float32[Array, ""]:
        """Returns the tension after one step of Newton's method, in which it at most doubles or halves."""
        step = (statistics.expected - statistics.observed) / jnp.maximum(statistics.variance, 1e-6)
        return jnp.clip(parameters + step, parameters / 2, jnp.maximum(parameters * 2, 0.1))
