"""Stack decoding of phrase-based models, vectorised over the hypotheses of a stack.

Koehn, "Statistical Machine Translation" (2010), chapter 6; features and reachability under a distortion limit
are those of Moses (Koehn et al., 2007). Stack k holds hypotheses that cover k source words. It is built at
once from all the stacks before it:

1. every (hypothesis, free span) is rated with the future cost of what it leaves;
2. together with the options of the span, the best ``candidates`` are kept, rated with the language-model
   score that an option has without context: what cube pruning (Huang & Chiang, 2007) does with a queue;
3. these are scored in context, recombined and pruned.

Coverage is a window of 64 bits that begins at the first free word: all before it is covered, and nothing far
behind it can be, because the distortion limit would not let the search come back. So sentences may have any
length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt64

from research.errors import UserError
from research.statistical.language_model import LanguageModel, TargetPhrases, extend
from research.statistical.translation_options import OWN, SentenceOptions

MONOTONE, SWAP, DISCONTINUOUS = range(3)
_WINDOW = 64
_ONE = np.uint64(1)


@dataclasses.dataclass(frozen=True)
class Search:
    """How far to search. None: no limit, which only short sentences allow.

    Attributes:
      stack: hypotheses kept for each number of covered words.
      candidates: extensions scored by the language model for each number of covered words.
      threshold: hypotheses whose score (a logarithm) is lower than the best of the stack by more are dropped.
      options: translations considered for each source phrase.
      distortion_limit: source words that may be jumped over; 0: monotone. In a sentence of more than 64 words
        nothing is covered more than 64 words behind the first free one, limit or not.
    """

    stack: int | None = 100
    candidates: int | None = 1000
    threshold: float | None = None
    options: int = 20
    distortion_limit: int | None = 6

    def validate(self) -> None:
        """Raises UserError where a number makes no sense."""
        for name, least in (("stack", 1), ("candidates", 1), ("options", 1), ("distortion_limit", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name.replace('_', ' ')} {value}: {least} or more")
        if self.threshold is not None and not self.threshold > 0:
            raise UserError(f"threshold {self.threshold}: above 0")


@dataclasses.dataclass(frozen=True, eq=False)
class Lattice:
    """Derivations that the search has kept: arcs between recombined hypotheses.

    Node 0 is the empty hypothesis, the last node every complete one. Arcs are in the order of the node that
    they lead to, those of a node with the best first.

    Attributes:
      starts: first arc of each node and, last, the number of arcs.
      previous: node that an arc begins at.
      option: option that it adds.
      language_model: log-probability of the option's words in their context; the sentence's end included.
      score: weighted score of the best derivation from node 0 that ends with the arc.
    """

    starts: Int64[np.ndarray, " nodes_and_end"]
    previous: Int64[np.ndarray, " arcs"]
    option: Int64[np.ndarray, " arcs"]
    language_model: Float64[np.ndarray, " arcs"]
    score: Float64[np.ndarray, " arcs"]


@dataclasses.dataclass(frozen=True, eq=False)
class _Sentence:
    """Options with their weighted scores. The last row of ``follow``, ``start`` and ``end`` is that of the
    empty hypothesis: it ends at word 0, and no orientation towards it is scored.

    Attributes:
      length: words.
      span_start: first word of each span.
      span_end: the word after its last.
      rating: score of each option of a span on its own by orientation towards the one before; -inf beyond.
      slots: these options.
      isolated: weighted language-model score of each option without context.
      follow: weighted score of an option by the orientation of the next.
      start: first word of each option's span.
      end: the word after its last.
      tail: a number for each (span, follow): what matters to the next option.
      translations: target words of each option.
      within: best score of covering words [i, i + width).
      suffix: best score of covering words [i, length).
    """

    length: int
    span_start: Int64[np.ndarray, " spans"]
    span_end: Int64[np.ndarray, " spans"]
    rating: Float64[np.ndarray, "spans 3 slots"]
    slots: Int64[np.ndarray, "spans slots"]
    isolated: Float64[np.ndarray, " options"]
    follow: Float64[np.ndarray, "options_and_none 3"]
    start: Int64[np.ndarray, " options_and_none"]
    end: Int64[np.ndarray, " options_and_none"]
    tail: Int64[np.ndarray, " options"]
    translations: TargetPhrases
    within: Float64[np.ndarray, "places widths"]
    suffix: Float64[np.ndarray, " places"]


@dataclasses.dataclass(frozen=True, eq=False)
class _Stack:
    """Hypotheses that cover equally many words."""

    node: Int64[np.ndarray, " hypotheses"]
    score: Float64[np.ndarray, " hypotheses"]
    window: UInt64[np.ndarray, " hypotheses"]
    state: Int32[np.ndarray, " hypotheses"]
    option: Int64[np.ndarray, " hypotheses"]


@dataclasses.dataclass(frozen=True, eq=False)
class _Steps:
    """Hypotheses and free spans to extend them by; ``rating``: score so far and future cost afterwards."""

    node: Int64[np.ndarray, " steps"]
    state: Int32[np.ndarray, " steps"]
    span: Int64[np.ndarray, " steps"]
    orientation: Int64[np.ndarray, " steps"]
    window: UInt64[np.ndarray, " steps"]
    future: Float64[np.ndarray, " steps"]
    rating: Float64[np.ndarray, " steps"]

    def take(self, index: np.ndarray | slice) -> _Steps:
        """Returns some of the steps."""
        return _Steps(*(column[index] for column in vars(self).values()))


def search(
    options: SentenceOptions, model: LanguageModel, weights: Float64[np.ndarray, " features"], how: Search
) -> Lattice:
    """Returns the derivations found for a sentence of at least one word.

    Args:
      options: its options.
      model: the language model, whose ids the options have.
      weights: weight of each feature, in the order of ``translation_options.FEATURES``.
      how: how far to search.
    """
    sentence = _weighted(options, weights, how)
    pending: list[list[_Steps]] = [[] for _ in range(sentence.length + 1)]
    stack, nodes = _beginning(model), 1
    counts, arcs = [np.zeros(1, np.int64)], []
    for covered in range(sentence.length):
        for size, steps in _steps(stack, covered, sentence, weights, how):
            pending[covered + size].append(steps)
        found = _candidates(_joined(pending[covered + 1]), sentence, model, weights, how)
        pending[covered + 1] = []
        if last := covered + 1 == sentence.length:
            found = _ended(found, model, weights)
        stack, of_nodes, into = _recombined(found, sentence, nodes, how, one=last)
        nodes += len(stack.node)
        counts.append(of_nodes)
        arcs.append(into)
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    return Lattice(starts, *(np.concatenate(column) for column in zip(*arcs, strict=True)))


def _beginning(model: LanguageModel) -> _Stack:
    zero = np.zeros(1, np.int64)
    state = np.array([model.begin], np.int32)
    return _Stack(zero, zero.astype(np.float64), zero.astype(np.uint64), state, zero - 1)


def _limit(how: Search, length: int) -> int:
    return length if how.distortion_limit is None else how.distortion_limit


def _weighted(options: SentenceOptions, weights: np.ndarray, how: Search) -> _Sentence:
    counts, span = np.diff(options.first), options.span
    own = (options.features @ weights[:OWN]).astype(np.float64)
    previous, follow = np.split(options.reordering * weights[OWN:], 2, axis=1)
    slot = np.arange(len(span)) - options.first[span]
    shape = (len(counts), int(counts.max()))
    slots = np.zeros(shape, np.int64)
    slots[span, slot] = np.arange(len(span))
    rating = np.full((len(counts), 3, shape[1]), -np.inf)
    rating[span, :, slot] = own[:, None] + previous
    place = np.stack([span, *np.unique(follow, axis=0, return_inverse=True)[1].reshape(1, -1)], axis=1)
    tail = np.unique(place, axis=0, return_inverse=True)[1].reshape(-1)
    best = np.maximum.reduceat(own, options.first[:-1])
    within, suffix = _future_costs(options, best, min(options.length, _limit(how, options.length), _WINDOW))
    return _Sentence(
        length=options.length,
        span_start=options.start,
        span_end=options.end,
        rating=rating,
        slots=slots,
        isolated=options.features[:, 0] * weights[0],
        follow=np.append(follow, np.zeros((1, 3)), axis=0),
        start=np.append(options.start[span], -1),
        end=np.append(options.end[span], 0),
        tail=tail,
        translations=options.translations,
        within=within,
        suffix=suffix,
    )


def _future_costs(options: SentenceOptions, best: np.ndarray, widest: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the score of the best options that cover words [i, i + width), and [i, length).

    Options are rated without their neighbours, and in order: what they cost at least, or nearly.

    Args:
      options: options of the sentence.
      best: best score of the options of each span.
      widest: the largest width needed.
    """
    n = options.length
    size = options.end - options.start
    longest = int(size.max())
    direct = np.full((n + 1, longest + 1), -np.inf)
    direct[options.start, size] = best
    within = np.full((n + 1, widest + 1), -np.inf)
    within[:, 0] = 0
    for width in range(1, widest + 1):
        places = n - width + 1
        for first in range(1, min(width, longest) + 1):
            rest = within[first : first + places, width - first]
            np.maximum(within[:places, width], direct[:places, first] + rest, out=within[:places, width])
    suffix = np.zeros(n + 1 + longest)
    suffix[n + 1 :] = -np.inf
    for i in range(n - 1, -1, -1):
        suffix[i] = (direct[i, 1:] + suffix[i + 1 : i + 1 + longest]).max()
    return within, suffix[: n + 1]


def _trailing_ones(window: np.ndarray) -> np.ndarray:
    return np.bitwise_count(window & ~(window + _ONE)).astype(np.int64)


def _remaining(sentence: _Sentence, gap: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Returns the future cost of what is not covered: the gaps in the window, and all that lies behind it."""
    total, at = np.zeros(len(gap)), gap
    while window.any():
        zeros = np.where(window > 0, _trailing_ones(~window), 0)
        total += sentence.within[at, zeros]
        window = window >> zeros.astype(np.uint64)
        ones = _trailing_ones(window)
        window = window >> ones.astype(np.uint64)
        at = at + zeros + ones
    return total + sentence.suffix[at]


def _steps(
    stack: _Stack, covered: int, sentence: _Sentence, weights: np.ndarray, how: Search
) -> Iterable[tuple[int, _Steps]]:
    """Yields the steps from a stack's hypotheses by the number of words that they cover."""
    limit = _limit(how, sentence.length)
    begin, end = sentence.start[stack.option], sentence.end[stack.option]
    windows, shape = np.unique(stack.window, return_inverse=True)
    gaps = covered - np.bitwise_count(windows).astype(np.int64)
    bounds = np.searchsorted(sentence.span_start, [gaps.min(), max(gaps.max(), end.max() + limit) + 1])
    spans = np.arange(*bounds)
    span_start, span_end = sentence.span_start[spans], sentence.span_end[spans]
    offset = span_start - gaps[:, None]
    shift = np.clip(offset, 0, _WINDOW - 1).astype(np.uint64)
    bits = ((_ONE << (span_end - span_start).astype(np.uint64)) - _ONE) << shift
    # A step that leaves the first free word behind must be able to jump back to it.
    near = (offset == 0) | ((offset > 0) & (span_end - gaps[:, None] <= min(limit, _WINDOW)))
    free = near & (windows[:, None] & bits == 0)
    of, column = np.nonzero(free)
    window = windows[of] | bits[of, column]
    ones = _trailing_ones(window)
    after = np.zeros(free.shape, np.uint64)
    after[of, column] = window >> ones.astype(np.uint64)
    future = np.zeros(free.shape)
    future[of, column] = _remaining(sentence, gaps[of] + ones, after[of, column])

    jump = np.abs(span_start - end[:, None])
    hypothesis, column = np.nonzero(free[shape] & (jump <= limit))
    size = span_end[column] - span_start[column]
    order = np.argsort(size, kind="stable")
    hypothesis, column, size = hypothesis[order], column[order], size[order]
    monotone = span_start[column] == end[hypothesis]
    swap = span_end[column] == begin[hypothesis]
    orientation = np.where(monotone, MONOTONE, np.where(swap, SWAP, DISCONTINUOUS))
    rest = future[shape[hypothesis], column]
    rating = stack.score[hypothesis] + rest - weights[1] * jump[hypothesis, column]
    rating += sentence.follow[stack.option[hypothesis], orientation]
    steps = _Steps(
        node=stack.node[hypothesis],
        state=stack.state[hypothesis],
        span=spans[column],
        orientation=orientation,
        window=after[shape[hypothesis], column],
        future=rest,
        rating=rating,
    )
    sizes, first = np.unique(size, return_index=True)
    for k, begins, ends in zip(sizes.tolist(), first, np.append(first[1:], len(size)), strict=True):
        yield k, steps.take(np.s_[begins:ends])


def _joined(parts: list[_Steps]) -> _Steps:
    return _Steps(
        *(np.concatenate(column) for column in zip(*(vars(part).values() for part in parts), strict=True))
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Candidates:
    """Extended hypotheses: step and option of each, exact language-model score, score with future cost."""

    step: _Steps
    option: Int64[np.ndarray, " candidates"]
    state: Int32[np.ndarray, " candidates"]
    language_model: Float64[np.ndarray, " candidates"]
    rating: Float64[np.ndarray, " candidates"]


def _candidates(
    steps: _Steps, sentence: _Sentence, model: LanguageModel, weights: np.ndarray, how: Search
) -> _Candidates:
    """Returns the best extensions by their rating without context, rated again in context."""
    rating = sentence.rating[steps.span, steps.orientation]
    best, floor = steps.rating + rating.max(1), -np.inf
    if how.candidates is not None and len(best) > how.candidates:
        # As many steps have a candidate of at least this rating: none below it is among the best.
        floor = np.partition(best, -how.candidates)[-how.candidates]
        kept = np.flatnonzero(best >= floor)
        steps, rating = steps.take(kept), rating[kept]
    rating = steps.rating[:, None] + rating
    step, slot = np.nonzero((rating >= floor) & (rating > -np.inf))
    total = rating[step, slot]
    if how.candidates is not None and len(total) > how.candidates:
        kept = np.argpartition(total, -how.candidates)[-how.candidates :]
        step, slot, total = step[kept], slot[kept], total[kept]
    steps = steps.take(step)
    option = sentence.slots[steps.span, slot]
    log_p, state = _in_context(sentence, model, steps.state, option)
    total += weights[0] * log_p - sentence.isolated[option]
    return _Candidates(steps, option, state, log_p, total)


def _ended(found: _Candidates, model: LanguageModel, weights: np.ndarray) -> _Candidates:
    """Returns complete hypotheses with the end of the sentence scored."""
    log_p, _ = model.advance(found.state, np.full(len(found.state), model.end, np.int32))
    total, rating = found.language_model + log_p, found.rating + weights[0] * log_p
    return dataclasses.replace(found, language_model=total, rating=rating)


def _in_context(
    sentence: _Sentence, model: LanguageModel, state: np.ndarray, option: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the log-probability of each option after its state, and the state after it."""
    # Many hypotheses share a state.
    key = state.astype(np.int64) * len(sentence.tail) + option
    _, first, place = np.unique(key, return_index=True, return_inverse=True)
    log_p, after = extend(model, state[first], sentence.translations, option[first])
    return log_p[place], after[place]


_Arcs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Columns of `Lattice` after the first."""


def _recombined(
    found: _Candidates, sentence: _Sentence, first_node: int, how: Search, *, one: bool
) -> tuple[_Stack, np.ndarray, _Arcs]:
    """Returns the stack, the number of arcs into each of its nodes, and these arcs.

    Args:
      found: candidates for the stack.
      sentence: the sentence.
      first_node: number of the stack's best hypothesis.
      how: how many to keep.
      one: whether all are the same hypothesis: the complete one.
    """
    order = np.argsort(-found.rating, kind="stable")
    rating = found.rating[order]
    if one:
        kept, group = np.zeros(1, np.int64), np.zeros(len(order), np.int64)
    else:
        _, shape = np.unique(found.step.window, return_inverse=True)
        state = found.state.astype(np.int64)
        key = (shape * (sentence.tail.max() + 1) + sentence.tail[found.option]) * (state.max() + 1) + state
        _, first, group = np.unique(key[order], return_index=True, return_inverse=True)
        kept = np.sort(first)
        group = np.searchsorted(kept, first)[group]
    best = rating[kept]
    nodes = len(kept) if how.stack is None else min(len(kept), how.stack)
    if how.threshold is not None:
        nodes = min(nodes, int((best >= best[0] - how.threshold).sum()))
    arcs = np.argsort(group, kind="stable")[: int((group < nodes).sum())]
    chosen, into = order[kept[:nodes]], order[arcs]
    stack = _Stack(
        node=first_node + np.arange(nodes),
        score=best[:nodes] - found.step.future[chosen],
        window=found.step.window[chosen],
        state=found.state[chosen],
        option=found.option[chosen],
    )
    score = found.rating[into] - found.step.future[into]
    columns = (found.step.node[into], found.option[into], found.language_model[into], score)
    return stack, np.bincount(group[arcs], minlength=nodes), columns
