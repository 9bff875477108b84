"""Model 5 (Brown et al., 1993, section 4.7): no two words in one place, no word outside the sentence.

Words are placed as in Model 4, cept by cept and from left to right, but places are counted in *vacancies*:
v(j) is the number of places up to j that no word has when this one is placed. With w of the word's class,

    first word of a cept of phi    w1(v(j) - v(c)) / sum_{v = 1..V - phi + 1} w1(v - v(c))
    its k-th word, behind place i  w2(v(j) - v(i)) / sum_{d = 1..V - v(i) - phi + k} w2(d)

c is the centre of the cept before it and V = v(J). Brown et al. have a table for each v(c) and V; here they
share weights, which fewer words can teach, and dividing by what is possible makes the probabilities of all
alignments sum to one (``ranges``).

Climbing by this model would have to place every word again for each move. As Brown et al. do, Model 4 (whose
table is learnt beside this one's) looks at all neighbours, and this model at those that it finds likely.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Float64, Int

from research.statistical.distortion import FLOOR, Classes, Pairs, Relative, RelativeLayout, Tokens
from research.statistical.neighbourhood import Chain
from research.statistical.ranges import Ranges, maximised

_WORDS = 1 << 21


@dataclasses.dataclass(frozen=True)
class Vacancies:
    """Model 5. Its table is Model 4's, and behind it the weights, in the same order.

    Attributes:
      relative: Model 4.
      smoothing: share of the uniform distribution of the weights.
    """

    relative: Relative = Relative()  # noqa: RUF009
    smoothing: float = 0.1
    ordered = True
    lexical_power = 1.0
    preselected = True

    def layout(self, longest: Int[np.ndarray, " longest_target_1"], classes: Classes) -> RelativeLayout:
        """See ``Distortion.layout``: Model 4's, and once more."""
        return self.relative.layout(longest, classes)

    def initial(self, layout: RelativeLayout) -> Float64[np.ndarray, " places"]:
        """Returns weights that are all the same."""
        return np.ones(2 * layout.size)

    def chain(self, layout: RelativeLayout, table: Float[np.ndarray, " places"], pairs: Pairs) -> Chain:
        """Returns Model 4's chain, for the neighbourhood."""
        return self.relative.chain(layout, table[: layout.size], pairs)

    def log_probability(
        self, layout: RelativeLayout, table: Float64[np.ndarray, " places"], tokens: Tokens
    ) -> Float64[np.ndarray, " words"]:
        """See ``Distortion.log_probability``."""
        return self._ranges(layout, tokens).log_probability(table[layout.size :])

    def count(
        self,
        layout: RelativeLayout,
        table: Float64[np.ndarray, " places"],
        tokens: Tokens,
        weight: Float64[np.ndarray, " words"],
    ) -> Float64[np.ndarray, " counts"]:
        """See ``Distortion.count``: Model 4's counts, then counts and exposures of the weights."""
        counts = self._ranges(layout, tokens).expected(table[layout.size :], weight)
        relative = self.relative.count(layout, table[: layout.size], tokens, weight)
        return np.concatenate([relative, counts])

    def normalise(
        self, layout: RelativeLayout, counts: Float64[np.ndarray, " counts"]
    ) -> Float64[np.ndarray, " places"]:
        """See ``Distortion.normalise``."""
        relative, counts = np.split(counts, [layout.size])
        weights = maximised(counts)
        tables = [self.relative.normalise(layout, relative)]
        for part in (
            weights[: layout.heads].reshape(-1, layout.width),
            weights[layout.heads :].reshape(layout.target_classes, -1),
        ):
            totals = part.sum(axis=1, keepdims=True)
            share = np.where(totals > 0, 1 - self.smoothing, 0.0)
            mixed = part / np.where(totals > 0, totals, 1.0) * share + (1 - share) / part.shape[1]
            tables.append(np.maximum(mixed, FLOOR).reshape(-1))
        return np.concatenate(tables)

    def extended(
        self,
        layout: RelativeLayout,
        table: Float64[np.ndarray, " places"],
        longest: Int[np.ndarray, " longest_target_1"],
    ) -> tuple[RelativeLayout, Float64[np.ndarray, " larger"]]:
        """See ``Distortion.extended``."""
        halves = [self.relative.extended(layout, half, longest) for half in np.split(table, 2)]
        return halves[0][0], np.concatenate([half for _, half in halves])

    def _ranges(self, layout: RelativeLayout, tokens: Tokens) -> Ranges:
        """Returns where words lie; those of the empty word at any place."""
        codes = self.relative.codes(layout, tokens)
        count = tokens.cept_count[tokens.cept]
        before = tokens.cept_before[tokens.cept]
        start = np.flatnonzero(tokens.head)[tokens.cept] if len(codes) else codes
        order = np.arange(len(codes)) - start  # k - 1
        behind = np.where(tokens.head, 0, np.concatenate([[0], tokens.place[:-1]]))
        centre = np.where(before >= 0, tokens.cept_centre[before], 0)
        reference = np.where(tokens.head, centre, behind)
        size = tokens.pairs.target_length[tokens.pair]
        here, there, most = _vacancies(tokens, reference, size)
        # The code without its distance, which ``Relative`` has in places.
        base = codes - (tokens.place - reference)
        first = np.where(tokens.head, base + 1 - there, base + 1)
        room = np.where(tokens.head, most - count + 1, most - there - count + order + 1)
        last = first + np.maximum(room, 1) - 1
        real = tokens.position > 0
        return Ranges(
            *(np.where(real, part, layout.heads + 1) for part in (base + here - there, first, last))
        )


def _vacancies(
    tokens: Tokens, reference: Int[np.ndarray, " words"], size: Int[np.ndarray, " words"]
) -> tuple[Int[np.ndarray, " words"], ...]:
    """Returns v(j) of each word, v of its reference place, and v(J), when it is placed."""
    width = tokens.pairs.target.shape[1]
    words = len(tokens.place)
    number = np.arange(words)
    # Which word takes each place of an alignment; those of the empty word are placed last.
    candidates = int(tokens.candidate[-1]) + 1 if words else 0
    taken = np.full((candidates, width), words, np.int64)
    real = tokens.position > 0
    taken[tokens.candidate[real], tokens.place[real] - 1] = number[real]
    step = max(_WORDS // width, 1)
    found = [np.empty(words, np.int64) for _ in range(3)]
    for begin in range(0, words, step):
        part = slice(begin, begin + step)
        filled = np.zeros((len(number[part]), width + 1), np.int16)
        np.cumsum(
            taken[tokens.candidate[part]] < number[part, None], axis=1, dtype=np.int16, out=filled[:, 1:]
        )
        row = np.arange(len(filled))
        for result, place in zip(found, (tokens.place, reference, size), strict=True):
            result[part] = place[part] - filled[row, place[part]]
    return tuple(found)
