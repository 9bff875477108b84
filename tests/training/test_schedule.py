"""Schedules against their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from research.training.schedule import Cosine, Linear, ReciprocalSqrt, WarmupStableDecay

STEPS, WARMUP = 1000, 100


def decayed(step: int, start: int) -> float:
    """Share of the decay from ``start`` to the last step that is done."""
    return (step - start) / (STEPS - start)


CLOSED_FORMS = {
    Cosine(WARMUP, 0.1): lambda s: 0.1 + 0.9 * (1 + math.cos(math.pi * decayed(s, WARMUP))) / 2,
    Linear(WARMUP, 0.2): lambda s: 1 - 0.8 * decayed(s, WARMUP),
    WarmupStableDecay(WARMUP, 0.2, 0.05): lambda s: 1.0 if s < 800 else 1 - 0.95 * decayed(s, 800),
}


@pytest.mark.parametrize("schedule", CLOSED_FORMS, ids=lambda s: type(s).__name__)
def test_a_schedule_is_a_linear_warmup_and_then_its_closed_form(schedule):
    rate = schedule.build(STEPS)
    for step in (0, 1, 50, 99):
        assert float(rate(step)) == pytest.approx(step / WARMUP, abs=1e-6)
    for step in (100, 101, 437, 799, 800, 801, 900, 999, 1000):
        assert float(rate(step)) == pytest.approx(CLOSED_FORMS[schedule](step), abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "last"), [(Cosine(), 0.1), (Linear(), 0.0), (WarmupStableDecay(), 0.0)], ids=lambda s: str(s)
)
def test_the_last_value_is_the_final_share_and_stays(schedule, last):
    rate = schedule.build(STEPS)
    assert float(rate(STEPS)) == float(rate(STEPS + 10)) == pytest.approx(last, abs=1e-6)


def test_reciprocal_sqrt_is_equation_3_of_vaswani_et_al():
    rate = ReciprocalSqrt(400).build(STEPS)
    for step in (1, 2, 399, 400, 401, 1000, 100_000):  # counted from 1 there
        expected = min(step**-0.5, step * 400**-1.5) * 400**0.5
        assert float(rate(step - 1)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", [Cosine, Linear, WarmupStableDecay, ReciprocalSqrt])
def test_without_warmup_the_first_step_has_the_whole_rate(kind):
    assert float(kind(0).build(STEPS)(0)) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", [Cosine, Linear, WarmupStableDecay, ReciprocalSqrt])
def test_fewer_steps_than_the_warmup_is_a_part_of_the_warmup(kind):
    rate = kind(100).build(20)
    rates = np.array([float(rate(step)) for step in range(20)])
    assert (np.diff(rates) > 0).all() and rates[-1] < 0.2001
