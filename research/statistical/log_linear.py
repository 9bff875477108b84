"""Model 6 (Och & Ney, 2003, section 2.3): the log-linear mix of Model 4 and the HMM.

    P6(f, a | e)  proportional to  P4(f, a | e) P_HMM(f, a | e)^alpha

The words of a sentence are placed cept by cept in Model 4, and one after the other in the HMM: a mix knows
both. What the normaliser would be is not needed, as expectations are taken over alignments of one sentence.
Both learn from the same expected counts, hence they share t(f|e), to the power 1 + alpha. Beside Model 4's
table there are the weights s(d) of the HMM's jumps (``ranges``). An empty word has the probability p0 in the
HMM, and the chain stays where it was.

As for Model 5, Model 4 looks at all neighbours, and this model at those that it finds likely.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from research.statistical.distortion import FLOOR, Classes, Pairs, Relative, RelativeLayout, Tokens
from research.statistical.neighbourhood import Chain
from research.statistical.ranges import Ranges, maximised


class LogLinearLayout(NamedTuple):
    """Model 4's table, and behind it the weights of jumps -longest..longest.

    Attributes:
      relative: layout of Model 4's table.
      longest: longest source sentence.
    """

    relative: RelativeLayout
    longest: int

    @property
    def jumps(self) -> int:
        """Number of weights."""
        return 2 * self.longest + 1


@dataclasses.dataclass(frozen=True)
class LogLinear:
    """Model 6.

    Attributes:
      relative: Model 4.
      alpha: power of the HMM's probability; of 0.1, 0.3 and 1 the best on the shared task's trial pairs.
      empty: p0, the HMM's probability of the empty word.
      smoothing: share of the uniform distribution of the weights of jumps.
    """

    relative: Relative = Relative()  # noqa: RUF009
    alpha: float = 1.0
    empty: float = 0.2
    smoothing: float = 0.1
    ordered = True
    preselected = True

    @property
    def lexical_power(self) -> float:
        """See ``Distortion.lexical_power``."""
        return 1 + self.alpha

    def layout(self, longest: Int[np.ndarray, " longest_target_1"], classes: Classes) -> LogLinearLayout:
        """See ``Distortion.layout``."""
        return LogLinearLayout(self.relative.layout(longest, classes), int(longest.max()))

    def initial(self, layout: LogLinearLayout) -> Float64[np.ndarray, " places"]:
        """Returns weights that are all the same."""
        return np.ones(layout.relative.size + layout.jumps)

    def chain(self, layout: LogLinearLayout, table: Float[np.ndarray, " places"], pairs: Pairs) -> Chain:
        """Returns Model 4's chain, for the neighbourhood."""
        return self.relative.chain(layout.relative, table[: layout.relative.size], pairs)

    def log_probability(
        self, layout: LogLinearLayout, table: Float64[np.ndarray, " places"], tokens: Tokens
    ) -> Float64[np.ndarray, " words"]:
        """See ``Distortion.log_probability``: the jump to a word too, and that it is not the empty word's."""
        places, weights = np.split(table, [layout.relative.size])
        jump = _jumps(layout, tokens).log_probability(weights)
        # J log p0, which all alignments of a sentence share, is left out.
        jump += np.log1p(-self.empty) - np.log(self.empty)
        return self.relative.log_probability(layout.relative, places, tokens) + self.alpha * jump

    def count(
        self,
        layout: LogLinearLayout,
        table: Float64[np.ndarray, " places"],
        tokens: Tokens,
        weight: Float64[np.ndarray, " words"],
    ) -> Float64[np.ndarray, " counts"]:
        """See ``Distortion.count``: Model 4's counts, then counts and exposures of the jumps."""
        places, weights = np.split(table, [layout.relative.size])
        relative = self.relative.count(layout.relative, places, tokens, weight)
        return np.concatenate([relative, _jumps(layout, tokens).expected(weights, weight)])

    def normalise(
        self, layout: LogLinearLayout, counts: Float64[np.ndarray, " counts"]
    ) -> Float64[np.ndarray, " places"]:
        """See ``Distortion.normalise``."""
        relative, counts = np.split(counts, [layout.relative.size])
        weights = maximised(counts)
        share = 1 - self.smoothing if weights.sum() > 0 else 0.0
        weights = weights / max(weights.sum(), FLOOR) * share + (1 - share) / layout.jumps
        return np.concatenate([self.relative.normalise(layout.relative, relative), weights])

    def extended(
        self,
        layout: LogLinearLayout,
        table: Float64[np.ndarray, " places"],
        longest: Int[np.ndarray, " longest_target_1"],
    ) -> tuple[LogLinearLayout, Float64[np.ndarray, " larger"]]:
        """See ``Distortion.extended``: wider jumps are as likely as the widest."""
        places, weights = np.split(table, [layout.relative.size])
        relative, places = self.relative.extended(layout.relative, places, longest)
        more = max(int(longest.max()) - layout.longest, 0)
        larger = np.concatenate([places, np.pad(weights, more, mode="edge")])
        return LogLinearLayout(relative, layout.longest + more), larger


def _jumps(layout: LogLinearLayout, tokens: Tokens) -> Ranges:
    """Returns the jumps in the order of the target words; those of the empty word are of width 0."""
    order = np.lexsort((tokens.place, tokens.candidate))
    real = tokens.position[order] > 0
    before = np.empty_like(tokens.position)
    before[order] = _position_before(tokens.position[order], real, tokens.place[order] == 1)
    length = tokens.pairs.source_length[tokens.pair]
    position = np.where(tokens.position > 0, tokens.position, 1)
    before = np.where(tokens.position > 0, before, 1)
    shift = layout.longest - before
    return Ranges(position + shift, 1 + shift, length + shift)


def _position_before(
    position: Int[np.ndarray, " words"], real: Bool[np.ndarray, " words"], begins: Bool[np.ndarray, " words"]
) -> Int[np.ndarray, " words"]:
    """Returns where the chain is before each word: at the last word that is not the empty word's, or at 0."""
    number = np.arange(len(position))
    start = np.maximum.accumulate(np.where(begins, number, 0))
    last = np.maximum.accumulate(np.where(real, number, -1))
    last = np.concatenate([[-1], last[:-1]])
    return np.where(last >= start, position[np.maximum(last, 0)], 0)
