"""Intervals and paired differences against scipy's own."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from research.report.statistics import Estimate, difference, estimate


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_is_students(count):
    values = np.random.default_rng(count).normal(3.0, 0.2, count)
    low, high = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    found = estimate(values.tolist())
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))


def test_one_value_has_no_interval():
    assert estimate([0.5]) == Estimate(0.5, None, 1)
    assert str(estimate([0.5])) == "0.5000"
    assert str(Estimate(0.5, 0.0123, 3)) == "0.5000 ± 0.0123"


def test_differences_are_paired_by_seed():
    random = np.random.default_rng(0)
    luck = {seed: random.normal(0, 5.0) for seed in range(6)}  # of a seed, shared by both
    values = {seed: luck[seed] + 1.0 + 0.01 * random.normal() for seed in range(6)}
    reference = {seed: luck[seed] + 0.01 * random.normal() for seed in range(6)}
    found = difference(values, reference)
    test = stats.ttest_rel(list(values.values()), list(reference.values())).confidence_interval(0.95)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(test)
    assert found.half_width < 0.05 < estimate(list(values.values())).half_width


def test_only_seeds_that_both_have_count():
    assert difference({0: 1.0, 1: 5.0, 2: 3.0}, {2: 1.0, 0: 0.5, 7: 9.0}).mean == 1.25
    assert difference({0: 1.0}, {1: 1.0}) is None
