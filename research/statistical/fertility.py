"""Models with fertilities: Models 3, 4 and 5 of Brown et al. (1993) and Model 6, by climbing.

Every source word e_i first says how many target words it makes, its fertility phi_i; the words are chosen,
and then placed:

    P(f, a | e) = C(J - phi_0, phi_0) p0^(J - 2 phi_0) p1^phi_0
                  prod_i phi_i! n(phi_i | e_i)  prod_j t(f_j | e_{a_j})  prod_{j: a_j > 0} d(j | ...)

with d of ``distortion`` and ``vacancies``; Models 4 and 5, whose d admits but one order of the words of a
cept, have no phi_i!. Model 6 (``log_linear``) multiplies Model 4 by a power of the HMM. A sum over all
alignments is out of reach, so expectations are taken over those near the best one that climbing finds
(``neighbourhood``), weighted by what the model says of each. Every table is at least ``FLOOR``; a fertility
above ``MOST`` has no probability.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.special import gammaln

from research.statistical.bitext import Block, make_batch, reverse
from research.statistical.directional import Direction
from research.statistical.distortion import (
    FLOOR,
    Absolute,
    Pairs,
    Placing,
    Relative,
    Tokens,
    tokens_of,
)
from research.statistical.log_linear import LogLinear
from research.statistical.neighbourhood import (
    IMPOSSIBLE,
    Candidates,
    Neighbours,
    Scores,
    climb,
    log_fertility,
    neighbours,
    stepped,
)
from research.statistical.vacancies import Vacancies

MOST = 9
"""Highest fertility."""
_CELLS = 1 << 17


Places = Absolute | Relative | Vacancies | LogLinear


class Stage(NamedTuple):
    """Iterations with one model of places."""

    distortion: Places
    iterations: int


SCHEDULES: dict[str, tuple[Stage, ...]] = {
    "model3": (Stage(Absolute(), 3),),
    "model4": (Stage(Absolute(), 3), Stage(Relative(), 3)),
    "model5": (Stage(Absolute(), 3), Stage(Relative(), 3), Stage(Vacancies(), 3)),
    "model6": (Stage(Absolute(), 3), Stage(Relative(), 3), Stage(LogLinear(), 3)),
}
"""The usual schedules, by the model they end with; they begin with the HMM's alignments and lexical table."""


@dataclasses.dataclass(frozen=True)
class Fertility:
    """How to train.

    Attributes:
      empty: p1, the probability that a word brings one from the empty word with it.
      smoothing: fertilities are estimated as if each word had, besides its own, this many of the average.
      cutoff: alignments are left out that are less likely than the best by this factor, as a logarithm.
      pegging: whether alignments near others are summed over too: for each link there can be, the best one
        that climbing finds with that link (Brown et al., section 4.5).
    """

    empty: float = 0.015
    smoothing: float = 64.0
    cutoff: float = -7.0
    pegging: bool = False


class Parameters(NamedTuple):
    """Probabilities; or counts.

    Attributes:
      pairs: t(f | e) by entry.
      empty: t(f | empty word) by target word.
      fertility: n(phi | e) by source word, phi = 0..MOST.
      distortion: the table of a model of places.
    """

    pairs: Float64[np.ndarray, " entries"]
    empty: Float64[np.ndarray, " target_words"]
    fertility: Float64[np.ndarray, "source_words most_1"]
    distortion: Float64[np.ndarray, " places"]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """Parameters, and what says how to use them."""

    settings: Fertility
    distortion: Places
    layout: Any
    parameters: Parameters


class Logarithms(NamedTuple):
    """Logarithms of ``Parameters``, each table with a last row for padding.

    Attributes:
      pairs: of t(f | e).
      empty: of t(f | empty word).
      fertility: of phi! n(phi | e), or of n(phi | e) where words are placed in order.
      distortion: of the table of places.
      single: the same in single precision.
    """

    pairs: Float64[np.ndarray, " entries_1"]
    empty: Float64[np.ndarray, " target_words_1"]
    fertility: Float64[np.ndarray, "source_words_1 most_1"]
    distortion: Float64[np.ndarray, " places"]
    single: Float[np.ndarray, " places"]


def logarithms(model: Model) -> Logarithms:
    """Returns the logarithms that alignments are scored by."""
    pairs, empty, fertility, distortion = (np.log(np.maximum(part, FLOOR)) for part in model.parameters)
    if not model.distortion.ordered:
        fertility = fertility + gammaln(np.arange(MOST + 1) + 1.0)
    padded = np.pad(fertility, ((0, 1), (0, 0)))
    return Logarithms(
        np.append(pairs, 0.0), np.append(empty, 0.0), padded, distortion, distortion.astype(np.float32)
    )


def log_empty(
    length: Int[np.ndarray, " n"], count: Int[np.ndarray, " n"], p1: float
) -> Float64[np.ndarray, " n"]:
    """Returns log C(J - phi_0, phi_0) p0^(J - 2 phi_0) p1^phi_0; more than J / 2 words are impossible."""
    most = np.minimum(count, length // 2)
    ways = gammaln(length - most + 1.0) - gammaln(most + 1.0) - gammaln(length - 2 * most + 1.0)
    log = ways + (length - 2 * most) * np.log1p(-p1) + most * np.log(p1)
    return log + IMPOSSIBLE * (count - most)


def batches(direction: Direction) -> Iterator[tuple[Block, Pairs]]:
    """Yields the sentence pairs of a bitext in batches of about as many padded cells."""
    bitext = direction.bitext
    longest = np.maximum(bitext.source.lengths, bitext.target.lengths)
    first = 0
    while first < len(bitext):
        some = longest[first : first + _CELLS // longest[first] ** 2 + 1]
        sizes = np.arange(1, len(some) + 1) * some**2
        last = first + max(int(np.searchsorted(sizes, _CELLS, side="right")), 1)
        block = Block(first, last, last - first, int(longest[last - 1]))
        first = last
        yield block, pairs_of_block(direction, block)


def pairs_of_block(direction: Direction, block: Block) -> Pairs:
    """Returns the sentence pairs of a block as this direction reads them, without superfluous padding."""
    batch = make_batch(direction.bitext, block)
    batch = reverse(batch) if direction.backward else batch
    i, j = int(batch.source_length.max()), int(batch.target_length.max())
    lengths = (batch.source_length.astype(np.int64), batch.target_length.astype(np.int64))
    return Pairs(batch.cells[:, :i, :j], batch.source[:, :i], batch.target[:, :j], *lengths)


def scores_of(model: Model, log: Logarithms, pairs: Pairs) -> Scores:
    """Returns the logarithms that the neighbourhoods of a batch are made of."""
    links = np.concatenate([log.empty[pairs.target][:, None], log.pairs[pairs.cells]], axis=1)
    chain = None
    if isinstance(model.distortion, Absolute):
        links[:, 1:] += log.distortion[model.distortion.dense(model.layout, pairs)]
    else:
        chain = model.distortion.chain(model.layout, log.single, pairs)
    fertility = np.pad(log.fertility[pairs.source], ((0, 0), (1, 0), (0, 0)))
    count = np.arange(pairs.target.shape[1] + 2)
    shape = (len(pairs.cells), len(count))
    length = np.broadcast_to(pairs.target_length[:, None], shape).reshape(-1)
    empty = log_empty(length, np.broadcast_to(count, shape).reshape(-1), model.settings.empty).reshape(shape)
    lengths = (pairs.source_length, pairs.target_length)
    return Scores(*lengths, links.astype(np.float32), fertility, empty, chain)


def log_probability(
    model: Model, log: Logarithms, pairs: Pairs, candidates: Candidates, tokens: Tokens
) -> Float64[np.ndarray, " K"]:
    """Returns log P(f, a | e) of alignments; of Model 6 without what all alignments of a sentence share."""
    size = len(candidates.pair)
    filled = tokens.position > 0
    cell = pairs.cells[tokens.pair, np.maximum(tokens.position - 1, 0), tokens.place - 1]
    of_word = np.where(filled, log.pairs[cell], log.empty[tokens.target]) * model.distortion.lexical_power
    of_place = model.distortion.log_probability(model.layout, model.parameters.distortion, tokens)
    of_word += np.where(filled, of_place, 0.0)
    total = np.bincount(tokens.candidate, of_word, minlength=size)
    source, count = _cept_words(pairs, candidates, tokens)
    table = log.fertility[source]
    now = log_fertility(table[:, None], count[:, None])[:, 0] - table[:, 0]
    real = tokens.cept_position > 0
    total += np.bincount(tokens.cept_candidate[real], now[real], minlength=size)
    none = np.zeros(size, np.int64)
    none[tokens.cept_candidate[~real]] = tokens.cept_count[~real]
    total += log.fertility[pairs.source, 0].sum(axis=1)[candidates.pair]  # as if all cepts were empty
    return total + log_empty(pairs.target_length[candidates.pair], none, model.settings.empty)


def _cept_words(pairs: Pairs, candidates: Candidates, tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Returns source word and fertility of each cept."""
    pair = candidates.pair[tokens.cept_candidate]
    return pairs.source[pair, np.maximum(tokens.cept_position - 1, 0)], tokens.cept_count


class Expectation(NamedTuple):
    """What a batch says.

    Attributes:
      best: alignment of each pair: source position of each target word, 0 the empty word.
      links: posterior probability of each link, 0 being the empty word.
      fertility: expected number of each fertility of each source word.
      distortion: expected counts for the model of places that was asked for.
      log_likelihood: of the neighbourhoods, summed.
    """

    best: Int[np.ndarray, "B J"]
    links: Float64[np.ndarray, "B I_1 J"]
    fertility: Float64[np.ndarray, "source_words most_1"]
    distortion: Float64[np.ndarray, " counts"]
    log_likelihood: float


def expect(
    model: Model,
    log: Logarithms,
    pairs: Pairs,
    alignment: Int[np.ndarray, "B J"],
    counted: Placing | None,
) -> Expectation:
    """Climbs, and returns the expected counts over the alignments near the best ones.

    Args:
      model: what to expect by.
      log: its logarithms.
      pairs: a batch.
      alignment: where to begin climbing.
      counted: model of places to count for.
    """
    scores = scores_of(model, log, pairs)
    cutoff = model.settings.cutoff
    if model.distortion.preselected:
        best, _ = climb(scores, alignment)
        best, candidates = climb(scores, best, cutoff=cutoff, look=_ranked(model, log, pairs, scores))
    else:
        best, candidates = climb(scores, alignment, cutoff=cutoff)
    if model.settings.pegging:
        candidates = _with_pegged(scores, best, candidates, cutoff)
    tokens = tokens_of(pairs, candidates)
    value = log_probability(model, log, pairs, candidates, tokens)
    top = np.full(len(best), -np.inf)
    np.maximum.at(top, candidates.pair, value)
    if model.settings.pegging:
        at = np.flatnonzero(value == top[candidates.pair])
        best[candidates.pair[at]] = candidates.alignment[at]
    weight = np.exp(value - top[candidates.pair])
    total = np.bincount(candidates.pair, weight, minlength=len(best))
    likelihood = float((top + np.log(total)).sum())
    return collect(
        pairs, candidates, tokens, weight / total[candidates.pair], best, counted, likelihood, model
    )


def collect(
    pairs: Pairs,
    candidates: Candidates,
    tokens: Tokens,
    weight: Float64[np.ndarray, " K"],
    best: Int[np.ndarray, "B J"],
    counted: Placing | None,
    log_likelihood: float,
    model: Model,
) -> Expectation:
    """Returns the counts of alignments, each ``weight`` times."""
    of_word = weight[tokens.candidate]
    shape = (len(best), pairs.source.shape[1] + 1, best.shape[1])
    place = (tokens.pair * shape[1] + tokens.position) * shape[2] + tokens.place - 1
    links = np.bincount(place, of_word, minlength=int(np.prod(shape))).reshape(shape)
    source, count = _cept_words(pairs, candidates, tokens)
    real = tokens.cept_position > 0
    words = len(model.parameters.fertility)
    of_cept = weight[tokens.cept_candidate][real]
    code = source[real] * (MOST + 1) + np.minimum(count[real], MOST)
    fertility = np.bincount(code, of_cept, minlength=words * (MOST + 1)).reshape(words, -1)
    # The rest of the weight of every source word is without target words.
    inside = np.arange(pairs.source.shape[1]) < pairs.source_length[:, None]
    each = np.bincount(pairs.source[inside], minlength=words)
    fertility[:, 0] = np.maximum(each - fertility[:, 1:].sum(axis=1), 0.0)
    distortion = np.zeros(0)
    if counted is not None:
        weights = np.where(tokens.position > 0, of_word, 0.0)
        distortion = counted.distortion.count(counted.layout, counted.table, tokens, weights)
    return Expectation(best, links, fertility, distortion, log_likelihood)


def _ranked(
    model: Model, log: Logarithms, pairs: Pairs, scores: Scores
) -> Callable[[np.ndarray, np.ndarray], Neighbours]:
    """Returns how to look at neighbours by Models 5 and 6: those that Model 4 finds likely, one by one."""

    def look(rows: np.ndarray, alignment: np.ndarray) -> Neighbours:
        found = neighbours(scores.take(rows), alignment)
        steps = np.concatenate([found.moves.reshape(len(rows), -1), found.swaps], axis=1)
        likely = np.maximum(steps.max(axis=1), 0) + model.settings.cutoff
        at, step = np.nonzero(steps > likely[:, None])
        near = stepped(alignment[at], step, found.moves.shape[1])
        candidates = Candidates(np.concatenate([rows, rows[at]]), np.concatenate([alignment, near]))
        value = log_probability(model, log, pairs, candidates, tokens_of(pairs, candidates))
        steps[:] = -np.inf
        steps[at, step] = value[len(rows) :] - value[at]
        moves, swaps = np.split(steps, [found.moves[0].size], axis=1)
        return Neighbours(moves.reshape(found.moves.shape), swaps)

    return look


def _with_pegged(
    scores: Scores, best: Int[np.ndarray, "B J"], candidates: Candidates, cutoff: float
) -> Candidates:
    """Returns alignments with those near the best one for each link, none of them twice."""
    _, positions, J = scores.links.shape
    found = [candidates]
    for j in range(J):
        for i in range(positions):
            there = (scores.source_length >= i) & (scores.target_length > j) & (best[:, j] != i)
            rows = np.flatnonzero(there)
            if not len(rows):
                continue
            start = best[rows].copy()
            start[:, j] = i
            _, near = climb(scores.take(rows), start, cutoff=cutoff, pinned=np.full(len(rows), j))
            found.append(Candidates(rows[near.pair], near.alignment))
    pair, alignment = (np.concatenate(part) for part in zip(*found, strict=True))
    alignment = np.where(np.arange(J) < scores.target_length[pair][:, None], alignment, 0)
    both = np.unique(np.column_stack([pair, alignment]), axis=0)
    return Candidates(both[:, 0], both[:, 1:])
