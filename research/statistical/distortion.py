"""Where the words of a cept are placed: the part in which Models 3 and 4 differ (Brown et al., 1993).

Each is a description. ``layout`` says how its table lies for a bitext read in one direction, one probability
after the other; ``log_probability`` and ``count`` are of words of alignments that are not the empty word's;
``normalise`` turns counts into a table. Words of the empty word take the places that are left over, in any
order, at a probability of 1 / phi_0!, which the phi_0! of their order cancels.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int32

from research.statistical.neighbourhood import Candidates, Chain

FLOOR = 1e-7
"""Least probability of any table: what a neighbourhood has not seen is not impossible."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Sentence pairs of a batch in one direction, padded.

    Attributes:
      cells: entry of each pair of words in the lexical table.
      source: source words.
      target: target words.
      source_length: I of each pair.
      target_length: J of each pair.
    """

    cells: Int[np.ndarray, "B I J"]
    source: Int[np.ndarray, "B I"]
    target: Int[np.ndarray, "B J"]
    source_length: Int[np.ndarray, " B"]
    target_length: Int[np.ndarray, " B"]


class Classes(NamedTuple):
    """Word classes of both sides, by word; the last word is for padding."""

    source: Int32[np.ndarray, " source_words_1"]
    target: Int32[np.ndarray, " target_words_1"]


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """The words of alignments, one after the other: by alignment, then by source position, then by place.

    Attributes:
      pairs: the batch.
      candidate: the alignment each word belongs to.
      pair: its sentence pair.
      position: source position it comes from, 0: the empty word.
      place: its place j, from 1.
      head: whether it is the first of its cept.
      cept: its cept, as a place in the arrays below.
      cept_candidate: the alignment of each cept that has words, the empty word's included.
      cept_position: its source position.
      cept_count: its words.
      cept_centre: the mean of their places, rounded up.
      cept_before: the cept before it in the alignment, or -1; the empty word's is never one.
    """

    pairs: Pairs
    candidate: Int[np.ndarray, " words"]
    pair: Int[np.ndarray, " words"]
    position: Int[np.ndarray, " words"]
    place: Int[np.ndarray, " words"]
    head: Bool[np.ndarray, " words"]
    cept: Int[np.ndarray, " words"]
    cept_candidate: Int[np.ndarray, " cepts"]
    cept_position: Int[np.ndarray, " cepts"]
    cept_count: Int[np.ndarray, " cepts"]
    cept_centre: Int[np.ndarray, " cepts"]
    cept_before: Int[np.ndarray, " cepts"]

    @property
    def target(self) -> Int[np.ndarray, " words"]:
        """The target words."""
        return self.pairs.target[self.pair, self.place - 1]


def tokens_of(pairs: Pairs, candidates: Candidates) -> Tokens:
    """Returns the words of alignments in the order of their cepts."""
    alignment = candidates.alignment
    inside = np.arange(alignment.shape[1]) < pairs.target_length[candidates.pair][:, None]
    candidate, place = np.nonzero(inside)
    key = candidate * (pairs.source.shape[1] + 1) + alignment[candidate, place]
    order = np.argsort(key, kind="stable")
    candidate, place, key = candidate[order], place[order] + 1, key[order]
    position = key - candidate * (pairs.source.shape[1] + 1)
    head = np.diff(key, prepend=-1) != 0
    start = np.flatnonzero(head)
    cept = np.cumsum(head) - 1
    count = np.diff(start, append=len(key))
    total = np.add.reduceat(place, start) if len(start) else count
    of, at = candidate[start], position[start]
    before = np.arange(len(start)) - 1
    linked = (before >= 0) & (of[before] == of) & (at[before] > 0)
    return Tokens(
        pairs,
        candidate,
        candidates.pair[candidate],
        position,
        place,
        head,
        cept,
        of,
        at,
        count,
        -(-total // count),
        np.where(linked, before, -1),
    )


@runtime_checkable
class Distortion(Protocol):
    """A model of places, described by a frozen dataclass."""

    @property
    def ordered(self) -> bool:
        """Whether the words of a cept are placed from left to right, so that only one order of them is
        possible, in place of phi!."""

    @property
    def lexical_power(self) -> float:
        """The power of t(f | e) in the model."""

    @property
    def preselected(self) -> bool:
        """Whether climbing looks only at neighbours that Model 4 finds likely, with whose table this model's
        begins."""

    def layout(self, longest: Int[np.ndarray, " longest_target_1"], classes: Classes) -> Any:
        """Returns where the probabilities of a bitext lie.

        Args:
          longest: the longest source sentence beside target sentences of each length.
          classes: word classes.
        """

    def log_probability(
        self, layout: Any, table: Float64[np.ndarray, " places"], tokens: Tokens
    ) -> Float64[np.ndarray, " words"]:
        """Returns log d of each word; that of words from the empty word means nothing."""

    def count(
        self,
        layout: Any,
        table: Float64[np.ndarray, " places"],
        tokens: Tokens,
        weight: Float64[np.ndarray, " words"],
    ) -> Float64[np.ndarray, " counts"]:
        """Returns counts for ``normalise``; those of several batches add up.

        Args:
          layout: of the table.
          table: what the weights were expected by, or a table to begin with.
          tokens: words of alignments.
          weight: of each word; 0 for those of the empty word.
        """

    def initial(self, layout: Any) -> Float64[np.ndarray, " places"]:
        """Returns a table to begin counting with."""

    def normalise(
        self, layout: Any, counts: Float64[np.ndarray, " counts"]
    ) -> Float64[np.ndarray, " places"]:
        """Returns the table that counts make likeliest, smoothed."""

    def extended(
        self,
        layout: Any,
        table: Float64[np.ndarray, " places"],
        longest: Int[np.ndarray, " longest_target_1"],
    ) -> tuple[Any, Float64[np.ndarray, " larger"]]:
        """Returns layout and table for sentences as long as these, too."""


class Placing(NamedTuple):
    """A model of places with a table."""

    distortion: Distortion
    layout: Any
    table: Float64[np.ndarray, " places"]


class _Looked:
    """What is common to tables in which every word has one place."""

    def codes(self, layout: Any, tokens: Tokens) -> Int[np.ndarray, " words"]:
        """Returns the place in the table of each word; that of words from the empty word means nothing."""
        raise NotImplementedError

    def initial(self, layout: Any) -> Float64[np.ndarray, " places"]:
        """Returns nothing: counts do not depend on it."""
        return np.zeros(0)

    def log_probability(
        self, layout: Any, table: Float64[np.ndarray, " places"], tokens: Tokens
    ) -> Float64[np.ndarray, " words"]:
        """See ``Distortion.log_probability``."""
        return np.log(table[self.codes(layout, tokens)])

    def count(
        self,
        layout: Any,
        table: Float64[np.ndarray, " places"],
        tokens: Tokens,
        weight: Float64[np.ndarray, " words"],
    ) -> Float64[np.ndarray, " counts"]:
        """See ``Distortion.count``."""
        return np.bincount(self.codes(layout, tokens), weight, minlength=layout.size)


class AbsoluteLayout(NamedTuple):
    """Model 3's table: d(j | i, J) at ``start[J] + (i - 1) J + j - 1``."""

    start: Int[np.ndarray, " longest_target_1"]
    longest: Int[np.ndarray, " longest_target_1"]
    size: int


@dataclasses.dataclass(frozen=True)
class Absolute(_Looked):
    """Model 3: every word of a cept has its place from d(j | i, J), whatever places others have.

    The table does not depend on I, as GIZA++ has it: less is learnt from more.

    Attributes:
      smoothing: share of the uniform distribution.
    """

    smoothing: float = 0.0
    ordered = False
    lexical_power = 1.0
    preselected = False

    def layout(self, longest: Int[np.ndarray, " longest_target_1"], classes: Classes) -> AbsoluteLayout:
        """See ``Distortion.layout``."""
        sizes = longest * np.arange(len(longest))
        start = np.cumsum(sizes) - sizes
        return AbsoluteLayout(start, longest, int(sizes.sum()))

    def codes(self, layout: AbsoluteLayout, tokens: Tokens) -> Int[np.ndarray, " words"]:
        """See ``_Looked.codes``."""
        length = tokens.pairs.target_length[tokens.pair]
        return layout.start[length] + np.maximum(tokens.position - 1, 0) * length + tokens.place - 1

    def dense(self, layout: AbsoluteLayout, pairs: Pairs) -> Int[np.ndarray, "B I J"]:
        """Returns the places in the table of every target word at every source position."""
        i, j = np.arange(pairs.source.shape[1]), np.arange(pairs.target.shape[1])
        length = pairs.target_length[:, None, None]
        inside = (i[:, None] < pairs.source_length[:, None, None]) & (j < length)
        return np.where(inside, layout.start[length] + i[:, None] * length + j, 0)

    def normalise(
        self, layout: AbsoluteLayout, counts: Float64[np.ndarray, " places"]
    ) -> Float64[np.ndarray, " places"]:
        """See ``Distortion.normalise``: distributions over j."""
        row = np.repeat(
            np.arange(layout.longest.sum()), np.repeat(np.arange(len(layout.longest)), layout.longest)
        )
        length = np.repeat(np.arange(len(layout.longest)), layout.longest)
        totals = np.bincount(row, counts, minlength=len(length))
        share = np.where(totals > 0, 1 - self.smoothing, 0.0)
        found = counts / np.where(totals > 0, totals, 1.0)[row] * share[row]
        return np.maximum(found + ((1 - share) / np.maximum(length, 1))[row], FLOOR)

    def extended(
        self,
        layout: AbsoluteLayout,
        table: Float64[np.ndarray, " places"],
        longest: Int[np.ndarray, " longest_target_1"],
    ) -> tuple[AbsoluteLayout, Float64[np.ndarray, " larger"]]:
        """See ``Distortion.extended``: where nothing was learnt, every place is as likely."""
        size = max(len(longest), len(layout.longest))
        both = [np.pad(part, (0, size - len(part))) for part in (longest, layout.longest)]
        larger = self.layout(np.maximum(*both), Classes(np.zeros(1, np.int32), np.zeros(1, np.int32)))
        length = np.repeat(np.arange(size), larger.longest * np.arange(size))
        new = 1 / np.maximum(length, 1)
        for J in np.flatnonzero(both[1]).tolist():
            cells = both[1][J] * J
            new[larger.start[J] : larger.start[J] + cells] = table[layout.start[J] : layout.start[J] + cells]
        return larger, new


class RelativeLayout(NamedTuple):
    """Model 4's table: d1 by class before, class of the word, and distance; then d2 by class and distance.

    Attributes:
      classes: word classes.
      source_classes: their number, with that of the beginning of the sentence, the last.
      target_classes: their number.
      reach: longest target sentence.
    """

    classes: Classes
    source_classes: int
    target_classes: int
    reach: int

    @property
    def width(self) -> int:
        """Distances of a first word: -reach..reach."""
        return 2 * self.reach + 1

    @property
    def heads(self) -> int:
        """Places of d1, behind which d2 begins."""
        return self.source_classes * self.target_classes * self.width

    @property
    def size(self) -> int:
        """Places of the table."""
        return self.heads + self.target_classes * (self.reach + 1)


@dataclasses.dataclass(frozen=True)
class Relative(_Looked):
    """Model 4: places are relative, by the classes A of source words and B of target words.

        first word of a cept     d1(j - centre of the cept before | A(its source word), B(f_j))
        every other word         d2(j - place of the word before it in the cept | B(f_j))

    Attributes:
      smoothing: share of the uniform distribution of each.
    """

    smoothing: float = 0.2
    ordered = True
    lexical_power = 1.0
    preselected = False

    def layout(self, longest: Int[np.ndarray, " longest_target_1"], classes: Classes) -> RelativeLayout:
        """See ``Distortion.layout``."""
        numbers = (int(classes.source.max(initial=0)) + 2, int(classes.target.max(initial=0)) + 1)
        return RelativeLayout(classes, *numbers, len(longest) - 1)

    def codes(self, layout: RelativeLayout, tokens: Tokens) -> Int[np.ndarray, " words"]:
        """See ``_Looked.codes``."""
        pairs = tokens.pairs
        before = tokens.cept_before[tokens.cept]
        source = np.maximum(tokens.cept_position[before] - 1, 0)
        class_before = np.where(
            before >= 0, layout.classes.source[pairs.source[tokens.pair, source]], layout.source_classes - 1
        )
        centre = np.where(before >= 0, tokens.cept_centre[before], 0)
        of_target = layout.classes.target[tokens.target]
        first = (class_before * layout.target_classes + of_target) * layout.width + layout.reach
        first = first + tokens.place - centre
        gap = np.diff(tokens.place, prepend=0)
        rest = layout.heads + of_target * (layout.reach + 1) + gap
        return np.where(tokens.head, first, rest)

    def chain(self, layout: RelativeLayout, table: Float[np.ndarray, " places"], pairs: Pairs) -> Chain:
        """Returns the same codes for ``neighbourhood``, with a table of logarithms."""
        of_source = layout.classes.source[pairs.source].astype(np.int64)
        of_source = np.pad(of_source, ((0, 0), (1, 0)), constant_values=layout.source_classes - 1)
        of_target = layout.classes.target[pairs.target].astype(np.int64)
        place = np.arange(1, pairs.target.shape[1] + 1)
        return Chain(
            table,
            of_source * (layout.target_classes * layout.width) + layout.reach,
            of_target * layout.width + place,
            layout.heads + of_target * (layout.reach + 1) + place,
        )

    def normalise(
        self, layout: RelativeLayout, counts: Float64[np.ndarray, " places"]
    ) -> Float64[np.ndarray, " places"]:
        """See ``Distortion.normalise``: distributions over distances."""
        first = counts[: layout.heads].reshape(-1, layout.width)
        rest = counts[layout.heads :].reshape(layout.target_classes, -1)
        tables = []
        for part, choices in ((first, layout.width), (rest, layout.reach)):
            totals = part.sum(axis=1, keepdims=True)
            share = np.where(totals > 0, 1 - self.smoothing, 0.0)
            tables.append(part / np.where(totals > 0, totals, 1.0) * share + (1 - share) / choices)
        tables[1][:, 0] = 0.0  # no word is at the place of the one before it
        return np.maximum(np.concatenate([table.reshape(-1) for table in tables]), FLOOR)

    def extended(
        self,
        layout: RelativeLayout,
        table: Float64[np.ndarray, " places"],
        longest: Int[np.ndarray, " longest_target_1"],
    ) -> tuple[RelativeLayout, Float64[np.ndarray, " larger"]]:
        """See ``Distortion.extended``: longer distances are the least likely."""
        more = max(len(longest) - 1 - layout.reach, 0)
        first = table[: layout.heads].reshape(-1, layout.width)
        rest = table[layout.heads :].reshape(layout.target_classes, -1)
        parts = (np.pad(first, ((0, 0), (more, more))), np.pad(rest, ((0, 0), (0, more))))
        larger = layout._replace(reach=layout.reach + more)
        return larger, np.maximum(np.concatenate([part.reshape(-1) for part in parts]), FLOOR)
