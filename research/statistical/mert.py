"""Minimum error rate training (Och, 2003): coordinate ascent on BLEU with an exact line search."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64

from research.statistical.bleu_counts import bleu
from research.statistical.candidate_pool import CandidatePool

_NARROW = 1e-9
"""Intervals of steps narrower than this are not gone to: rounding could miss them."""
_OUTSIDE = 0.1
"""How far to go beyond the first or the last step that changes anything."""
_LEAST_GAIN = 1e-3
"""A round of the ascent that gains less BLEU (in percent) is the last."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A step along a line: its size, and BLEU there in percent."""

    size: float
    bleu: float


def line_search(
    pool: CandidatePool,
    scores: Float64[np.ndarray, " candidates"],
    slopes: Float64[np.ndarray, " candidates"],
) -> Step:
    """Returns the step that maximises BLEU, which is constant between finitely many steps.

    Each candidate's score is a line in the size of the step; a sentence's best candidate changes where the
    upper envelope of its lines bends (Och, 2003, section 5). Where no step is better than none, it is 0.

    Args:
      pool: the candidates.
      scores: score of each at 0.
      slopes: its change with the step.
    """
    starts = pool.starts
    sizes = np.diff(starts, append=len(pool))
    # Rows of lines; the last one of a sentence is repeated.
    index = starts[:, None] + np.minimum(np.arange(sizes.max()), sizes[:, None] - 1)
    height, slope = scores[index], slopes[index]
    flattest = slope == slope.min(axis=1, keepdims=True)
    current = np.where(flattest, height, -np.inf).argmax(axis=1)
    begin = pool.counts[index[np.arange(len(index)), current]].sum(axis=0).astype(np.float64)
    steps, changes = [np.zeros(0)], [np.zeros((0, pool.counts.shape[1]))]
    for step, before, after in _bends(height, slope, index, current):
        steps.append(step)
        changes.append((pool.counts[after] - pool.counts[before]).astype(np.float64))
    step = np.concatenate(steps)
    order = np.argsort(step, kind="stable")
    step = step[order]
    totals = begin + np.concatenate([np.zeros((1, len(begin))), np.cumsum(np.concatenate(changes)[order], 0)])
    return _best(step, bleu(totals))


def _bends(
    height: np.ndarray, slope: np.ndarray, index: np.ndarray, current: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields steps at which envelopes bend, the candidates there before, and those after: for every sentence
    the first bend, then the second ..."""
    row = np.arange(len(index))
    while len(row):
        rise = slope - slope[row, current][:, None]
        meeting = np.full(rise.shape, np.inf)
        np.divide(height[row, current][:, None] - height, rise, out=meeting, where=rise > 0)
        step = meeting.min(axis=1)
        after = np.where(meeting == step[:, None], slope, -np.inf).argmax(axis=1)
        bends = np.isfinite(step)
        yield step[bends], index[row, current][bends], index[row, after][bends]
        height, slope, index, current = height[bends], slope[bends], index[bends], after[bends]
        row = np.arange(len(index))


def _best(step: np.ndarray, values: np.ndarray) -> Step:
    """Returns the middle of the best interval; ``values`` are those before, between and after the steps."""
    if not len(step):
        return Step(0.0, float(values[0]))
    edges = np.concatenate([[step[0] - 2 * _OUTSIDE], step, [step[-1] + 2 * _OUTSIDE]])
    values = np.where(_wide(edges), values, -np.inf)
    best = int(values.argmax())
    here = int(np.searchsorted(step, 0.0))
    if values[here] >= values[best]:
        return Step(0.0, float(values[here]))
    return Step(float(edges[best] + edges[best + 1]) / 2, float(values[best]))


def _wide(edges: np.ndarray) -> Bool[np.ndarray, " intervals"]:
    return np.diff(edges) > _NARROW


def ascend(
    pool: CandidatePool, weights: Float64[np.ndarray, " features"], free: Bool[np.ndarray, " features"]
) -> tuple[Float64[np.ndarray, " features"], float]:
    """Returns weights from which no change of a single one gains anything, and their BLEU in percent.

    Args:
      pool: the candidates.
      weights: where to begin.
      free: weights that may change.
    """
    features = np.ascontiguousarray(pool.features.T, np.float64)
    weights, reached = weights.copy(), pool.bleu(weights)
    while True:
        before = reached
        for feature in np.flatnonzero(free):
            found = line_search(pool, weights @ features, features[feature])
            if found.bleu > reached:
                weights[feature] += found.size
                reached = found.bleu
        if reached < before + _LEAST_GAIN:
            return weights, reached


def mert(
    pool: CandidatePool,
    weights: Float64[np.ndarray, " features"],
    free: Bool[np.ndarray, " features"],
    *,
    restarts: int,
    seed: int,
) -> Float64[np.ndarray, " features"]:
    """Returns the weights with the highest BLEU of several ascents.

    Args:
      pool: the candidates.
      weights: where the first ascent begins; the others begin at random places around it.
      free: weights that may change.
      restarts: number of the others.
      seed: of the random places.
    """
    rng = np.random.default_rng(seed)
    spread = np.where(free, np.abs(weights[free]).mean(), 0.0)
    begins = [weights, *(weights + spread * rng.standard_normal(len(weights)) for _ in range(restarts))]
    return max((ascend(pool, begin, free) for begin in begins), key=lambda found: found[1])[0]
