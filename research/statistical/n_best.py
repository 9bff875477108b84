"""The best derivations of a lattice, and the feature vectors of derivations."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from research.statistical.stack_decoder import DISCONTINUOUS, MONOTONE, SWAP, Lattice
from research.statistical.translation_options import FEATURES, OWN, SentenceOptions

_FACTOR = 20
"""Derivations looked at for each different translation asked for."""


def derivations(lattice: Lattice) -> Iterator[list[int]]:
    """Yields the arcs of every derivation, first to last, the best derivation first.

    A derivation that is yet to come differs from one that has been by taking the next best arc into some
    node: one queue of such departures, each with its exact score, orders them all.
    """
    starts, previous = lattice.starts.tolist(), lattice.previous.tolist()
    score = lattice.score.tolist()
    goal = len(starts) - 2
    # Entries: minus the score; a number that makes entries differ; node, the place of the arc among those
    # into it; the score and the arcs of what follows.
    queue: list[tuple[float, int, int, int, float, tuple[int, ...]]] = []
    count = 0

    def depart(node: int, arc: int, after: float, rest: tuple[int, ...]) -> None:
        nonlocal count
        if arc < starts[node + 1]:
            count += 1
            heapq.heappush(queue, (-(score[arc] + after), count, node, arc, after, rest))

    depart(goal, starts[goal], 0.0, ())
    while queue:
        _, _, node, arc, after, rest = heapq.heappop(queue)
        while True:
            depart(node, arc + 1, after, rest)
            rest = (arc, *rest)
            if not previous[arc]:
                break
            node, first = previous[arc], starts[previous[arc]]
            after += score[arc] - score[first]
            arc = first
        yield list(rest)


def n_best(lattice: Lattice, size: int, targets: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """Returns the arcs of the best derivations of the ``size`` best different translations.

    There may be fewer: the search has found no more, or they are far down the list.

    Args:
      lattice: what the search has found.
      size: how many.
      targets: words of each option.
    """
    found: dict[tuple[str, ...], list[int]] = {}
    option = lattice.option.tolist()
    for looked, arcs in enumerate(derivations(lattice)):
        words = tuple(word for arc in arcs for word in targets[option[arc]])
        found.setdefault(words, arcs)
        if len(found) == size or looked == _FACTOR * size:
            break
    return list(found.values())


def features(
    lattice: Lattice, options: SentenceOptions, paths: Sequence[Sequence[int]]
) -> Float64[np.ndarray, "paths features"]:
    """Returns the feature vector of each derivation, given by its arcs."""
    lengths = [len(path) for path in paths]
    arcs, place = np.unique(np.concatenate([np.array(path) for path in paths]), return_inverse=True)
    values = _arc_features(lattice, options, arcs)[place.reshape(-1)]
    return np.add.reduceat(values, np.concatenate([[0], np.cumsum(lengths)[:-1]]), axis=0)


def _arc_features(
    lattice: Lattice, options: SentenceOptions, arcs: Int64[np.ndarray, " arcs"]
) -> Float64[np.ndarray, "arcs features"]:
    option, node = lattice.option[arcs], lattice.previous[arcs]
    # All arcs into a node agree in the span of their option and in what the next one sees of it.
    before = np.where(node == 0, -1, lattice.option[lattice.starts[node]])
    start, end = np.append(options.start[options.span], -1), np.append(options.end[options.span], 0)
    monotone, swap = start[option] == end[before], end[option] == start[before]
    orientation = np.where(monotone, MONOTONE, np.where(swap, SWAP, DISCONTINUOUS))
    row = np.arange(len(arcs))
    values = np.zeros((len(arcs), len(FEATURES)))
    values[:, :OWN] = options.features[option]
    values[:, 0] = lattice.language_model[arcs]
    values[:, 1] = -np.abs(start[option] - end[before])
    values[row, OWN + orientation] = options.reordering[option, orientation]
    towards_next = np.append(options.reordering[:, 3:], np.zeros((1, 3), np.float32), axis=0)
    values[row, OWN + 3 + orientation] = towards_next[before, orientation]
    return values
