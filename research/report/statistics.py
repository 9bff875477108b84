"""Means over seeds with confidence intervals, and paired differences."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from scipy import stats

CONFIDENCE = 0.95
"""Probability that an interval covers the mean."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    half_width: float | None
    """Of the two-sided Student t interval; None for a single value, which has none."""
    count: int

    def __str__(self) -> str:
        """Returns "1.2345 ± 0.0123", or the mean alone."""
        mean = f"{self.mean:.4f}"
        return mean if self.half_width is None else f"{mean} ± {self.half_width:.4f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean of at least one value, with its t interval (Student, 1908) if there are more."""
    count, mean = len(values), statistics.fmean(values)
    if count < 2:
        return Estimate(mean, None, count)
    error = statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean, float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error, count)


def difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate | None:
    """Returns the mean difference of what the same seeds gave, values less reference; None without any.

    Seeds decide data order and initialisation alike for both, so differences vary less than values do.
    """
    both = sorted(values.keys() & reference.keys())
    return estimate([values[seed] - reference[seed] for seed in both]) if both else None
