"""Masking: which tokens are to be predicted, and what stands in their place (Devlin et al., 2019, 3.1)."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64

Unit = Literal["tokens", "words", "spans"]
_SPAN_MEAN, _SPAN_MOST = 5.0, 10
"""Parameters of the length of spans, in words: geometric with p = 1/5, at most 10 (Joshi et al., 2020)."""


@dataclasses.dataclass(frozen=True)
class Masking:
    """How many tokens are predicted, how they are chosen, and what is put in their place."""

    rate: float = 0.15
    """Share of the tokens of a row that are predicted; special tokens and padding do not count."""
    unit: Unit = "tokens"
    """What is chosen as a whole: single tokens, words, or spans of words (Joshi et al., 2020)."""
    masked: float = 0.8
    """Share of the predicted tokens that [MASK] replaces."""
    random: float = 0.1
    """Share of them that a random token replaces; the rest stay as they are."""

    def most(self, length: int) -> int:
        """Returns the most tokens that are predicted in a row of ``length``, two of them special."""
        return max(1, math.ceil(self.rate * (length - 2)))


@dataclasses.dataclass(frozen=True, eq=False)
class Kinds:
    """What masking must know of a vocabulary."""

    mask: int
    """Id of [MASK]."""
    special: Bool[np.ndarray, " vocabulary"]
    """By id: whether it is a special token, which is neither predicted nor put in a place."""
    continues: Bool[np.ndarray, " vocabulary"]
    """By id: whether the token goes on with a word."""


@dataclasses.dataclass(frozen=True, eq=False)
class Draws:
    """Everything random about masking a batch, drawn at once, so that rows can be dealt to processes."""

    rounding: Float[np.ndarray, " batch"]
    """Decide whether a fraction of a token is rounded up, so that the rate holds on average."""
    scores: Float[np.ndarray, "batch length"]
    """Decide which tokens, words or spans come first."""
    spans: Int64[np.ndarray, "batch length"]
    """Words of the span that begins at a token, if one does."""
    fates: Float[np.ndarray, "batch selected"]
    """Decide what replaces a token."""
    replacements: Float[np.ndarray, "batch selected"]
    """Decide which random token it is."""

    @classmethod
    def of(cls, random: np.random.Generator, batch: int, length: int, selected: int) -> Draws:
        """Returns the draws for a batch, in a fixed order."""
        return cls(
            random.random(batch),
            random.random((batch, length)),
            np.minimum(random.geometric(1 / _SPAN_MEAN, (batch, length)), _SPAN_MOST),
            random.random((batch, selected)),
            random.random((batch, selected)),
        )

    def __getitem__(self, rows: slice) -> Draws:
        """Returns the draws of some rows."""
        return Draws(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True, eq=False)
class Masked:
    """Rows with gaps in them."""

    tokens: Int32[np.ndarray, "batch length"]
    """The rows, selected tokens replaced."""
    selected: Int32[np.ndarray, "batch selected"]
    """Indices of the tokens to predict; 0 where there are fewer."""
    targets: Int32[np.ndarray, "batch selected"]
    """What stood there; 0 where there are fewer."""
    weights: Float32[np.ndarray, "batch selected"]
    """1 for a token to predict, 0 where there are fewer."""


def mask(tokens: Int[np.ndarray, "batch length"], how: Masking, kinds: Kinds, draws: Draws) -> Masked:
    """Returns the rows with a fixed share of their tokens selected, and replaced as ``how`` says.

    Of a row, rate * candidates tokens are selected, rounded up or down at random, and at least one if there
    is a candidate; whole words, which must not be cut, may come to fewer. Tokens of a span share their fate;
    others have their own.
    """
    candidates = ~kinds.special[tokens]
    counts = candidates.sum(1)
    wanted = np.minimum(np.maximum(np.floor(how.rate * counts + draws.rounding).astype(int), 1), counts)
    most = draws.fates.shape[1]
    wanted = np.minimum(wanted, most)
    if how.unit == "tokens":
        order = np.argsort(np.where(candidates, draws.scores, 2.0), axis=1)[:, :most]
        order = np.pad(order, ((0, 0), (0, most - order.shape[1])))  # of rows shorter than `most`
        chosen = np.arange(most) < wanted[:, None]
        fate = np.broadcast_to(np.arange(most), order.shape)
    else:
        order, fate = np.zeros((2, len(tokens), most), np.int64)
        chosen = np.zeros(order.shape, bool)
        for row in range(len(tokens)):
            words = _words(candidates[row], kinds.continues[tokens[row]])
            if how.unit == "words":
                indices = _whole_words(words, draws.scores[row], wanted[row])
                groups = np.arange(len(indices))
            else:
                indices, groups = _spans(words, draws.scores[row], draws.spans[row], wanted[row])
            order[row, : len(indices)], fate[row, : len(indices)] = indices, groups
            chosen[row, : len(indices)] = True
    selected = np.where(chosen, order, 0).astype(np.int32)
    rows = np.arange(len(tokens))[:, None]
    targets = tokens[rows, selected]
    fates = draws.fates[rows, fate]
    ordinary = np.flatnonzero(~kinds.special)
    drawn = ordinary[(draws.replacements * len(ordinary)).astype(int)]
    kept_or_drawn = np.where(fates < how.masked + how.random, drawn, targets)
    replaced = np.where(fates < how.masked, kinds.mask, kept_or_drawn)
    with_gaps = tokens.astype(np.int32)
    at, column = np.nonzero(chosen)
    with_gaps[at, selected[at, column]] = replaced[at, column]
    return Masked(
        with_gaps, selected, np.where(chosen, targets, 0).astype(np.int32), chosen.astype(np.float32)
    )


def _words(
    candidates: Bool[np.ndarray, " length"], continues: Bool[np.ndarray, " length"]
) -> list[tuple[int, int]]:
    """Returns (begin, end) of every word of a row: a candidate and those after it that go on with it."""
    before = np.concatenate([[False], candidates[:-1]])
    begins = np.flatnonzero(candidates & ~(continues & before))
    inside = candidates & continues & before
    ends = np.flatnonzero(~np.append(inside, False)[1:] & candidates) + 1
    return list(zip(begins.tolist(), ends.tolist(), strict=True))


def _whole_words(
    words: list[tuple[int, int]], scores: Float[np.ndarray, " length"], wanted: int
) -> np.ndarray:
    """Returns indices of the tokens of words in random order, passing over those that would be too many."""
    indices: list[int] = []
    for word in np.argsort(scores[[begin for begin, _ in words]] if words else []):
        begin, end = words[word]
        if len(indices) + end - begin <= wanted:
            indices.extend(range(begin, end))
        if len(indices) == wanted:
            break
    return np.array(indices, np.int64)


def _spans(
    words: list[tuple[int, int]],
    scores: Float[np.ndarray, " length"],
    lengths: Int64[np.ndarray, " length"],
    wanted: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns indices of the tokens of spans of adjacent words, and the number of the span of each."""
    indices: list[int] = []
    groups: list[int] = []
    taken: set[int] = set()
    spans = 0
    for word in np.argsort(scores[[begin for begin, _ in words]] if words else []):
        before = len(indices)
        stop = min(word + int(lengths[words[word][0]]), len(words))
        for begin, end in (words[w] for w in range(word, stop)):
            if begin in taken or len(indices) + end - begin > wanted:
                break
            if begin != words[word][0] and begin != indices[-1] + 1:  # a document's border
                break
            taken.add(begin)
            indices.extend(range(begin, end))
            groups.extend([spans] * (end - begin))
        spans += len(indices) > before
        if len(indices) == wanted:
            break
    return np.array(indices, np.int64), np.array(groups, np.int64)
