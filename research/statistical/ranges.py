"""Weights chosen from ranges: p(k) = w(k) / sum of w over what was possible, first..last.

As sets differ from choice to choice, counts alone do not make likely weights; counts over *exposures* do,
those of each weight being the expected number of choices among which it was, each over its sum (Hunter, 2004;
see ``hmm.Chain.maximise``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from research.statistical.distortion import FLOOR

_NONE = 1e-9
"""Every range that was possible leaves its rate; what is left of rounding is none."""


class Ranges(NamedTuple):
    """Where the weight of each word lies, and the first and last of those that it was chosen from."""

    code: Int[np.ndarray, " words"]
    first: Int[np.ndarray, " words"]
    last: Int[np.ndarray, " words"]

    def log_probability(self, weights: Float64[np.ndarray, " weights"]) -> Float64[np.ndarray, " words"]:
        """Returns the logarithm of the probability of each word's weight."""
        return np.log(weights[self.code]) - np.log(self._sums(weights))

    def expected(
        self, weights: Float64[np.ndarray, " weights"], weight: Float64[np.ndarray, " words"]
    ) -> Float64[np.ndarray, " twice_weights"]:
        """Returns expected counts and then exposures of the weights, each word counted ``weight`` times."""
        size = len(weights)
        rate = np.where(weight > 0, weight / self._sums(weights), 0.0)
        begun = np.bincount(self.first, rate, minlength=size + 1)
        ended = np.bincount(self.last + 1, rate, minlength=size + 1)
        counts = np.bincount(self.code, weight, minlength=size)
        return np.concatenate([counts, np.cumsum(begun - ended)[:-1]])

    def _sums(self, weights: Float64[np.ndarray, " weights"]) -> Float64[np.ndarray, " words"]:
        summed = np.concatenate([[0.0], np.cumsum(weights)])
        return np.maximum(summed[self.last + 1] - summed[self.first], FLOOR)


def maximised(counts: Float64[np.ndarray, " twice_weights"]) -> Float64[np.ndarray, " weights"]:
    """Returns the weights that make what was counted likelier, of any scale; 0 where nothing was possible."""
    count, exposure = np.split(counts, 2)
    return np.where(exposure > _NONE, count / np.maximum(exposure, _NONE), 0.0)
