"""Training one direction of a model with fertilities, and deciding by it, batches shared out to the cores."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, Int32

from research.statistical.bitext import Bitext, Block, cell_mask, cell_range, token_mask, token_range
from research.statistical.directional import Decision, Direction
from research.statistical.distortion import Classes, Pairs, Placing, tokens_of
from research.statistical.fertility import (
    MOST,
    Expectation,
    Fertility,
    Model,
    Parameters,
    Places,
    Stage,
    batches,
    collect,
    expect,
    logarithms,
)
from research.statistical.iterations import SILENT, WAYS, Progress, iterate
from research.statistical.neighbourhood import Candidates
from research.statistical.word_classes import word_classes

DEFAULT = Fertility()
CLASSES = 50
"""Word classes of each side."""


def learn_classes(
    bitext: Bitext, number: int = CLASSES
) -> tuple[Int32[np.ndarray, " source_words"], Int32[np.ndarray, " target_words"]]:
    """Returns learnt classes of the words of both sides; class 0 is the one of most words."""
    learnt = []
    for side in (bitext.source, bitext.target):
        found = word_classes(side, number)
        order = np.argsort(-np.bincount(found, minlength=number), kind="stable")
        learnt.append(np.argsort(order)[found].astype(np.int32))
    return learnt[0], learnt[1]


def train(
    direction: Direction,
    start: Decision,
    lexical: tuple[Float64[np.ndarray, " entries"], Float64[np.ndarray, " target_words"]],
    schedule: Sequence[Stage],
    classes: Classes,
    settings: Fertility = DEFAULT,
    *,
    progress: Progress = SILENT,
) -> tuple[Model, Decision]:
    """Trains a direction, and returns its model and what it says of the bitext.

    Args:
      direction: what to learn from.
      start: alignments to begin with, the HMM's.
      lexical: t(f | e) by entry and t(f | empty word), likewise.
      schedule: models of places, each with its iterations.
      classes: word classes.
      settings: how.
      progress: is told of every iteration.
    """
    longest = longest_sources(direction)
    placings = [_placing(stage.distortion, longest, classes) for stage in schedule]
    chosen = start.chosen + 1
    blank = Parameters(*lexical, np.zeros((len(classes.source) - 1, MOST + 1)), np.zeros(0))
    model = Model(settings, schedule[0].distortion, placings[0].layout, blank)
    counts = _sum(model, _of_start(direction, model, chosen, placings[0]))
    model = _maximise(model, counts._replace(pairs=lexical[0], empty=lexical[1]), direction)
    stages = [stage for stage in schedule for _ in range(stage.iterations)]
    followed = [*stages[1:], stages[-1]]  # the last iteration with one model of places counts for the next
    way = WAYS[direction.backward]

    def model_of(parameters: Parameters, number: int) -> Model:
        at = schedule.index(stages[0] if number == 0 else followed[number - 1])
        return Model(settings, schedule[at].distortion, placings[at].layout, parameters)

    def once(
        before: tuple[Parameters, np.ndarray], number: int
    ) -> tuple[tuple[Parameters, np.ndarray], Mapping[str, float]]:
        parameters, chosen = before
        counted = placings[schedule.index(followed[number])]
        if followed[number] == stages[number]:
            counted = counted._replace(table=parameters.distortion)
        counts, log_likelihood, chosen = _iterate(direction, model_of(parameters, number), chosen, counted)
        following = _maximise(model_of(parameters, number + 1), counts, direction)
        each = log_likelihood / len(direction.bitext)
        return (following.parameters, chosen), {f"{way}/log_likelihood": each}

    state = iterate(f"{way} fertility", len(stages), (model.parameters, chosen), once, progress)
    model, chosen = model_of(state[0], len(stages)), state[1]
    return model, decide(direction, model, chosen - 1)


def decide(direction: Direction, model: Model, chosen: Int[np.ndarray, " tokens"]) -> Decision:
    """Returns the alignments that climbing from ``chosen`` (-1: the empty word) finds, and posteriors."""
    side, bitext = _generated(direction), direction.bitext
    found = Decision(np.zeros(len(side.tokens), np.int32), np.zeros(len(bitext.cells), np.float16))
    for block, _, expectation in _expectations(direction, model, chosen + 1, None):
        _keep(direction, block, expectation.best - 1, found.chosen)
        links = expectation.links[:, 1:].transpose((0, 2, 1) if direction.backward else (0, 1, 2))
        inside = cell_mask(bitext, block)[:, : links.shape[1], : links.shape[2]]
        found.posterior[cell_range(bitext, block)] = links[inside]
    return found


def extended(model: Model, direction: Direction) -> Model:
    """Returns the model with a table of places that is large enough for the sentences of a bitext."""
    longest = longest_sources(direction)
    layout, table = model.distortion.extended(model.layout, model.parameters.distortion, longest)
    return Model(model.settings, model.distortion, layout, model.parameters._replace(distortion=table))


def _placing(distortion: Places, longest: Int[np.ndarray, " longest_target_1"], classes: Classes) -> Placing:
    """Returns a model of places with its first table."""
    layout: Any = distortion.layout(longest, classes)
    return Placing(distortion, layout, distortion.initial(layout))


def longest_sources(direction: Direction) -> Int[np.ndarray, " longest_target_1"]:
    """Returns the longest source sentence beside target sentences of each length."""
    bitext = direction.bitext
    sides = (bitext.target, bitext.source) if direction.backward else (bitext.source, bitext.target)
    lengths, observed = (side.lengths for side in sides)
    longest = np.zeros(int(observed.max()) + 1, np.int64)
    np.maximum.at(longest, observed, lengths)
    return longest


def _generated(direction: Direction) -> Any:
    return direction.bitext.source if direction.backward else direction.bitext.target


def _alignment(direction: Direction, block: Block, chosen: np.ndarray, width: int) -> np.ndarray:
    """Returns the alignments of a batch, padded."""
    side = _generated(direction)
    mask = token_mask(side, block)
    padded = np.zeros(mask.shape, np.int64)
    padded[mask] = chosen[token_range(side, block)]
    return padded[:, :width]


def _keep(direction: Direction, block: Block, best: np.ndarray, chosen: np.ndarray) -> None:
    """Writes the alignments of a batch."""
    side = _generated(direction)
    chosen[token_range(side, block)] = best[token_mask(side, block)[:, : best.shape[1]]]


def _of_start(
    direction: Direction, model: Model, chosen: np.ndarray, counted: Placing | None
) -> Iterator[tuple[Block, Pairs, Expectation]]:
    """Yields the counts of given alignments, one of each pair."""
    for block, pairs in batches(direction):
        alignment = _alignment(direction, block, chosen, pairs.target.shape[1])
        candidates = Candidates(np.arange(len(alignment)), alignment)
        tokens = tokens_of(pairs, candidates)
        weight = np.ones(len(alignment))
        yield block, pairs, collect(pairs, candidates, tokens, weight, alignment, counted, 0.0, model)


def _expectations(
    direction: Direction, model: Model, chosen: np.ndarray, counted: Placing | None
) -> Iterator[tuple[Block, Pairs, Expectation]]:
    """Yields each batch with what the model expects of it, a thread for each core at work."""
    log = logarithms(model)

    def run(batch: tuple[Block, Pairs]) -> tuple[Block, Pairs, Expectation]:
        block, pairs = batch
        alignment = _alignment(direction, block, chosen, pairs.target.shape[1])
        return block, pairs, expect(model, log, pairs, alignment, counted)

    threads = len(os.sched_getaffinity(0))
    waiting: deque[Future[tuple[Block, Pairs, Expectation]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for batch in batches(direction):
            waiting.append(pool.submit(run, batch))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _iterate(
    direction: Direction, model: Model, chosen: Int32[np.ndarray, " tokens"], counted: Placing | None
) -> tuple[Parameters, float, Int32[np.ndarray, " tokens"]]:
    """Returns counts, log-likelihood and the best alignments."""
    best, log_likelihood = np.zeros_like(chosen), 0.0

    def seen() -> Iterator[tuple[Block, Pairs, Expectation]]:
        nonlocal log_likelihood
        for block, pairs, found in _expectations(direction, model, chosen, counted):
            _keep(direction, block, found.best, best)
            log_likelihood += found.log_likelihood
            yield block, pairs, found

    counts = _sum(model, seen())
    return counts, log_likelihood, best


def _sum(model: Model, found: Iterator[tuple[Block, Pairs, Expectation]]) -> Parameters:
    """Returns the counts of all batches, added in their order."""
    like = model.parameters
    pairs_count, empty = np.zeros(len(like.pairs) + 1), np.zeros(len(like.empty) + 1)
    fertility: Any = 0.0
    distortion: Any = 0.0
    for _, pairs, expectation in found:
        some = expectation.links[:, 1:] > 0
        np.add.at(pairs_count, pairs.cells[some], expectation.links[:, 1:][some])
        np.add.at(empty, pairs.target, expectation.links[:, 0])
        fertility = fertility + expectation.fertility
        distortion = distortion + expectation.distortion
    return Parameters(pairs_count[:-1], empty[:-1], fertility, distortion)


def _maximise(model: Model, counts: Parameters, direction: Direction) -> Model:
    """Returns the model that counts make likeliest."""
    word, words = direction.entry_word()
    totals = np.bincount(word, counts.pairs, minlength=words)
    pairs = counts.pairs / np.where(totals > 0, totals, 1.0)[word]
    empty = counts.empty / max(counts.empty.sum(), 1e-30)
    average = counts.fertility.sum(axis=0) / counts.fertility.sum()
    fertility = counts.fertility + model.settings.smoothing * average
    fertility = fertility / np.maximum(fertility.sum(axis=1, keepdims=True), 1e-30)
    distortion = model.distortion.normalise(model.layout, counts.distortion)
    return Model(
        model.settings, model.distortion, model.layout, Parameters(pairs, empty, fertility, distortion)
    )
