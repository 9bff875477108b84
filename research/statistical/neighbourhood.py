"""Alignments a step from one, all at once, and the climb to where none is better (Brown et al., 1993, 4.5).

An alignment gives each target word j the source position a_j that it comes from, 0 for the empty word; the
words that come from position i are its *cept*. A *move* gives one word another position, a *swap* exchanges
those of two words. What each of them gains is computed for all moves and swaps of a batch of sentence pairs
together. Fertilities change by one in a move and not in a swap, and links are independent of each other; what
is left are relative positions (Model 4). Those are a chain over the cepts that have words: the first word of
a cept is placed from the centre of the cept before it, and each of its other words from the word before. A
step changes two cepts, hence four links of the chain: to both cepts and from both cepts.

Arrays are padded: B sentence pairs, source positions 0..I, target words 1..J.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

IMPOSSIBLE = -1e4
"""Logarithm, for each word too many, of what has no probability: climbing leaves it one word at a time."""
_GAIN = 1e-4
"""Least gain to climb for, above the rounding of float32."""
_STEPS = 2000
"""Most steps of a climb, which only rounding beside ``IMPOSSIBLE`` can make endless."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Logarithms of the probabilities that the alignments of a batch are made of.

    Attributes:
      source_length: I of each pair.
      target_length: J of each pair.
      links: of each target word at each source position: t(f_j | e_i), and all else that depends on i and j.
      fertility: of 0, 1 ... words in a cept, phi! n(phi | e_i); position 0 is not used.
      empty: of 0, 1 ... words from the empty word.
      chain: relative positions, or None.
    """

    source_length: Int[np.ndarray, " B"]
    target_length: Int[np.ndarray, " B"]
    links: Float[np.ndarray, "B I_1 J"]
    fertility: Float[np.ndarray, "B I_1 most_1"]
    empty: Float[np.ndarray, "B J_2"]
    chain: Chain | None

    def take(self, rows: Int[np.ndarray, " rows"]) -> Scores:
        """Returns the scores of some of the pairs."""
        return Scores(
            self.source_length[rows],
            self.target_length[rows],
            self.links[rows],
            self.fertility[rows],
            self.empty[rows],
            self.chain and self.chain.take(rows),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """Relative positions, in a table whose places are sums of two codes.

    The first word j of a cept after cept i has its logarithm at ``head[i] - centre of i + first[j]``, a later
    word j at ``rest[j] - position of the word before it``.

    Attributes:
      table: logarithms.
      head: code of each source position, for the cept behind it; 0 is the beginning, whose centre is 0.
      first: code of each target word as the first of its cept.
      rest: code of each target word as another one.
    """

    table: Float[np.ndarray, " places"]
    head: Int[np.ndarray, "B I_1"]
    first: Int[np.ndarray, "B J"]
    rest: Int[np.ndarray, "B J"]

    def take(self, rows: Int[np.ndarray, " rows"]) -> Chain:
        """Returns those of some of the pairs."""
        return Chain(self.table, self.head[rows], self.first[rows], self.rest[rows])


def log_fertility(
    table: Float[np.ndarray, "B I_1 most_1"], count: Int[np.ndarray, "B I_1"]
) -> Float[np.ndarray, "B I_1"]:
    """Returns the logarithms for ``count`` words in each cept; more than the table has are impossible."""
    most = table.shape[2] - 1
    value = np.take_along_axis(table, np.clip(count, 0, most)[:, :, None], axis=2)[:, :, 0]
    return value + IMPOSSIBLE * np.maximum(count - most, 0)


class Neighbours(NamedTuple):
    """What the steps from an alignment gain; minus infinity where there is no such step.

    Attributes:
      moves: of giving target word j to source position i.
      swaps: of exchanging the positions of target words j < k, at the places of ``pairs_of``.
    """

    moves: Float[np.ndarray, "B I_1 J"]
    swaps: Float[np.ndarray, "B pairs"]


@functools.lru_cache(maxsize=256)
def pairs_of(size: int) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Returns j and k of all j < k below ``size``."""
    return np.triu_indices(size, 1)


def neighbours(scores: Scores, alignment: Int[np.ndarray, "B J"]) -> Neighbours:
    """Returns the gain of every move and swap.

    Args:
      scores: of the sentence pairs.
      alignment: source position of each target word; anything past the end.
    """
    B, positions, J = scores.links.shape
    inside = np.arange(J) < scores.target_length[:, None]
    alignment = np.where(inside, alignment, 0)
    member = (alignment[:, None, :] == np.arange(positions)[:, None]) & inside[:, None, :]
    count = member.sum(axis=2)
    row = np.arange(B)[:, None]
    now = np.take_along_axis(scores.links, alignment[:, None, :], axis=1)[:, 0]
    more, fewer = _fertility_gains(scores, count)
    moves = scores.links - now[:, None, :] + more[:, :, None] + fewer[row, alignment][:, None, :]
    j, k = pairs_of(J)
    swaps = scores.links[row, alignment[:, j], k] + scores.links[row, alignment[:, k], j]
    swaps -= now[:, j] + now[:, k]
    if scores.chain is not None:
        cepts = _Cepts(scores.chain, alignment, member, count)
        moves += cepts.move_gains()
        swaps += cepts.swap_gains(j, k)
    there = np.arange(positions) <= scores.source_length[:, None]
    moves[member | ~inside[:, None, :] | ~there[:, :, None]] = -np.inf
    swaps[(alignment[:, j] == alignment[:, k]) | ~inside[:, k]] = -np.inf
    return Neighbours(moves, swaps)


def _fertility_gains(scores: Scores, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the gains of one word more and one fewer in each cept, that of the empty word included."""
    now, none = log_fertility(scores.fertility, count), count[:, :1]
    more = log_fertility(scores.fertility, count + 1) - now
    fewer = log_fertility(scores.fertility, count - 1) - now
    now, after, before = (
        np.take_along_axis(scores.empty, np.maximum(none + change, 0), axis=1) for change in (0, 1, -1)
    )
    more[:, :1], fewer[:, :1] = after - now, before - now
    return more.astype(np.float32), fewer.astype(np.float32)


class _Cept(NamedTuple):
    """One of the two cepts that a step changes, as the chain sees it, before and after.

    Attributes:
      place: its source position.
      before: code of the cept before it in the chain, less its centre.
      next: source position of the cept behind it, or past the last.
      next_first: code of that cept's first word.
      now: logarithm of its own place; 0 if it is empty.
      next_now: that of the cept behind it.
      filled: whether it has words after the step.
      code: its own code, less its centre, after the step.
      first: code of its first word after the step.
    """

    place: np.ndarray
    before: np.ndarray
    next: np.ndarray
    next_first: np.ndarray
    now: np.ndarray
    next_now: np.ndarray
    filled: np.ndarray
    code: np.ndarray
    first: np.ndarray


def _chain_gain(table: np.ndarray, low: _Cept, high: _Cept, positions: int) -> np.ndarray:
    """Returns what the chain gains by a step that changes two cepts, the lower one first."""
    between = low.next < high.place
    gain = -low.now - high.now - between * low.next_now - high.next_now
    gain += low.filled * table[low.before + low.first]
    code = np.where(low.filled, low.code, low.before)
    gain += between * table[code + low.next_first]
    code = np.where(between, high.before, code)
    gain += high.filled * table[code + high.first]
    code = np.where(high.filled, high.code, code)
    return gain + (high.next < positions) * table[code + high.next_first]


class _Cepts:
    """The cepts of an alignment: what moves and swaps need of them. Target words count from 1."""

    def __init__(
        self,
        chain: Chain,
        alignment: Int[np.ndarray, "B J"],
        member: Bool[np.ndarray, "B I_1 J"],
        count: Int[np.ndarray, "B I_1"],
    ) -> None:
        B, positions, J = member.shape
        self.chain, self.alignment, self.count, self.positions = chain, alignment, count, positions
        self.row = np.arange(B)[:, None]
        self.word = np.arange(1, J + 1)
        # The nearest words of a cept before and behind each target word, which need not be of it: 0, J + 1.
        reached = np.maximum.accumulate(np.where(member, self.word, 0), axis=2)
        self.preceding = np.zeros_like(reached)
        self.preceding[:, :, 1:] = reached[:, :, :-1]
        reached = np.minimum.accumulate(np.where(member, self.word, J + 1)[:, :, ::-1], axis=2)[:, :, ::-1]
        self.following = np.full_like(reached, J + 1)
        self.following[:, :, :-1] = reached[:, :, 1:]
        self.first = reached[:, :, 0]
        self.total = (member * self.word).sum(axis=2)
        self.first_code = np.pad(chain.first, ((0, 0), (0, 1)), mode="edge")
        self.rest_code = np.pad(chain.rest, ((0, 0), (0, 1)), mode="edge")
        self._link()
        self._without()

    def _link(self) -> None:
        """Makes the chain of the cepts that have words; the empty word's is never one of them."""
        filled = self.count > 0
        filled[:, 0] = False
        place = np.arange(self.positions)
        before = np.zeros_like(self.count)
        before[:, 1:] = np.maximum.accumulate(np.where(filled, place, 0), axis=1)[:, :-1]
        behind = np.full_like(self.count, self.positions)
        reached = np.minimum.accumulate(np.where(filled, place, self.positions)[:, ::-1], axis=1)[:, ::-1]
        behind[:, :-1] = reached[:, 1:]
        centre = -(-self.total // np.maximum(self.count, 1))
        code = self.chain.head - np.where(filled, centre, 0)
        first = self.first_code[self.row, self.first - 1]
        self.before, self.next = code[self.row, before], behind
        self.now = np.where(filled, self.chain.table[self.before + first], np.float32(0))
        last = np.minimum(behind, self.positions - 1)
        self.next_first = first[self.row, last]
        self.next_now = np.where(behind < self.positions, self.now[self.row, last], np.float32(0))

    def _without(self) -> None:
        """What is left of each target word's cept without it."""
        a, row = self.alignment, self.row
        column = np.arange(len(self.word))
        self.own_preceding = self.preceding[row, a, column]
        self.own_following = self.following[row, a, column]
        self.left_first = np.where(self.own_preceding > 0, self.first[row, a], self.own_following)
        self.left_total = self.total[row, a] - self.word
        left = self.count[row, a] - 1
        self.left_filled = (left > 0) & (a > 0)
        self.left_code = self.chain.head[row, a] - -(-self.left_total // np.maximum(left, 1))
        gain = self._inserted(self.own_preceding, self.word, self.own_following)
        self.left_gain = -np.where(a > 0, gain, np.float32(0))

    def _inserted(self, before: np.ndarray, word: np.ndarray, behind: np.ndarray) -> np.ndarray:
        """Returns what the other words of a cept gain by a word between two, either of which may be none."""
        table, size = self.chain.table, len(self.word)
        row = self.row.reshape(-1, *([1] * (before.ndim - 1)))
        some, more = before > 0, behind <= size
        code = self.rest_code[row, behind - 1]
        gain = some * table[self.rest_code[row, np.broadcast_to(word, before.shape) - 1] - before]
        gain += more * table[code - word]
        return gain - (some & more) * table[code - before]

    def _cept(self, place: np.ndarray, filled: np.ndarray, code: np.ndarray, first: np.ndarray) -> _Cept:
        """Returns the cepts at ``place``, which is [B, n]."""
        fields = (self.before, self.next, self.next_first, self.now, self.next_now)
        return _Cept(*[place, *(field[self.row, place] for field in fields), filled, code, first])

    def move_gains(self) -> Float[np.ndarray, "B I_1 J"]:
        """Returns what the chain gains by every move."""
        place = np.arange(self.positions)[None, :, None]
        total, count = self.total[:, :, None], self.count[:, :, None]
        fields = (self.before, self.next, self.next_first, self.now, self.next_now)
        code = self.chain.head[:, :, None] - -(-(total + self.word) // (count + 1))
        first = self.first_code[self.row[:, :, None], np.minimum(self.first[:, :, None], self.word) - 1]
        new = _Cept(*[place, *(field[:, :, None] for field in fields), place > 0, code, first])
        left_first = self.first_code[self.row, self.left_first - 1]
        old = self._cept(self.alignment, self.left_filled, self.left_code, left_first)
        old = _Cept(*(x[:, None, :] for x in old))
        gain = self._ordered(new, old)
        inserted = self._inserted(self.preceding, self.word, self.following)
        return gain + inserted * (place > 0) + self.left_gain[:, None, :]

    def _ordered(self, one: _Cept, other: _Cept) -> np.ndarray:
        less = one.place < other.place
        pairs = list(zip(one, other, strict=True))
        low, high = (_Cept(*(np.where(way, x, y) for x, y in pairs)) for way in (less, ~less))
        return _chain_gain(self.chain.table, low, high, self.positions)

    def swap_gains(self, j: np.ndarray, k: np.ndarray) -> Float[np.ndarray, "B pairs"]:
        """Returns what the chain gains by every swap."""
        (one, gain), (other, gains) = self._exchanged(j, k), self._exchanged(k, j)
        return self._ordered(one, other) + gain + gains

    def _exchanged(self, out: np.ndarray, into: np.ndarray) -> tuple[_Cept, np.ndarray]:
        """Returns the cepts of words ``out`` with words ``into`` in their stead, and the gain within them."""
        row, place, a_word, word = self.row, self.alignment[:, out], self.word[out], self.word[into]
        total = self.left_total[:, out] + word
        first = np.minimum(self.left_first[:, out], word)
        code = self.chain.head[row, place] - -(-total // np.maximum(self.count[row, place], 1))
        cept = self._cept(place, place > 0, code, self.first_code[row, first - 1])
        preceding, following = self.preceding[row, place, into], self.following[row, place, into]
        preceding = np.where(preceding == a_word, self.own_preceding[:, out], preceding)
        following = np.where(following == a_word, self.own_following[:, out], following)
        inserted = self._inserted(preceding, word, following)
        return cept, self.left_gain[:, out] + np.where(place > 0, inserted, np.float32(0))


class Candidates(NamedTuple):
    """Alignments of a batch.

    Attributes:
      pair: sentence pair of each, ascending.
      alignment: source position of each target word; anything past the end.
    """

    pair: Int[np.ndarray, " K"]
    alignment: Int[np.ndarray, "K J"]


def climb(
    scores: Scores,
    alignment: Int[np.ndarray, "B J"],
    *,
    cutoff: float | None = None,
    pinned: Int[np.ndarray, " B"] | None = None,
    look: Callable[[np.ndarray, np.ndarray], Neighbours] | None = None,
) -> tuple[Int[np.ndarray, "B J"], Candidates]:
    """Returns the alignments that no move or swap improves, each step the best one, and alignments near them.

    Args:
      scores: of the sentence pairs.
      alignment: where to begin.
      cutoff: alignments are near that are a step away and at most this much less likely, as a logarithm (-7,
        say); None: none but the best itself.
      pinned: target word of each pair, from 0, that keeps its position; -1: none.
      look: returns the gains of all steps, given rows of the batch and their alignments; default: by
        ``scores``.
    """
    best = alignment.copy()
    near: list[Candidates] = []
    active = np.arange(len(best))
    j, k = pairs_of(best.shape[1])
    for _ in range(_STEPS):
        if not len(active):
            break
        found = look(active, best[active]) if look else neighbours(scores.take(active), best[active])
        if pinned is not None:
            held = pinned[active][:, None]
            found.moves.transpose(0, 2, 1)[held == np.arange(best.shape[1])] = -np.inf
            found.swaps[(held == j) | (held == k)] = -np.inf
        steps = np.concatenate([found.moves.reshape(len(active), -1), found.swaps], axis=1)
        top = steps.argmax(axis=1) if steps.shape[1] else np.zeros(len(active), int)
        gain = steps[np.arange(len(active)), top]
        there = gain <= _GAIN
        if there.any() and cutoff is not None:
            at, step = np.nonzero(steps[there] > cutoff)
            rows = active[there][at]
            near.append(Candidates(rows, stepped(best[rows], step, found.moves.shape[1])))
        active, top = active[~there], top[~there]
        best[active] = stepped(best[active], top, found.moves.shape[1])
    every = Candidates(np.arange(len(best)), best)
    pair, alignments = (np.concatenate(part) for part in zip(every, *near, strict=True))
    order = np.argsort(pair, kind="stable")
    return best, Candidates(pair[order], alignments[order])


def stepped(
    alignment: Int[np.ndarray, "K J"], step: Int[np.ndarray, " K"], positions: int
) -> Int[np.ndarray, "K J"]:
    """Returns alignments after a step each: moves come first, by source position, then swaps."""
    size = alignment.shape[1]
    new, row = alignment.copy(), np.arange(len(alignment))
    moves = step < positions * size
    at = row[moves]
    new[at, step[moves] % size] = step[moves] // size
    at = row[~moves]
    j, k = (part[step[~moves] - positions * size] for part in pairs_of(size))
    new[at, j], new[at, k] = alignment[at, k], alignment[at, j]
    return new
