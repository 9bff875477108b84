"""Which process is said to keep the others waiting."""

import time

from research.training.stragglers import Stragglers


def said(*intervals):
    """The lines that each interval brings; an interval has each process's own seconds of ten."""
    stragglers = Stragglers()
    return [stragglers.named([(own, 10.0) for own in interval]) for interval in intervals]


def test_a_slow_process_is_named_once_after_three_intervals():
    slow = (1.0, 8.0, 2.0)
    line = "process 1 keeps the others waiting: making its batches takes 80% of the time, theirs 15%"
    assert said(slow, slow, slow, slow, (1, 1, 1), slow, slow, slow) == [[], [], [line], [], [], [], [], []]


def test_slow_now_and_then_is_not_named():
    slow, well = (1.0, 8.0), (1.0, 1.0)
    assert said(slow, slow, well, slow, slow, well) == [[]] * 6


def test_what_the_devices_hide_and_what_all_have_is_not_named():
    assert said(*[(0.1, 4.0)] * 5) == [[]] * 5  # ten times as slow, and yet the devices wait for nobody
    assert said(*[(6.0, 7.0, 8.0)] * 5) == [[]] * 5  # all are slow
    assert said(*[(9.0,)] * 5) == [[]] * 5  # alone


def test_every_process_can_be_named():
    both = (9.0, 1.0, 1.0, 8.0, 1.0)
    assert [line[:9] for line in said(both, both, both)[-1]] == ["process 0", "process 3"]


def test_time_is_counted_from_interval_to_interval():
    stragglers = Stragglers()
    with stragglers.own():
        time.sleep(0.02)
    own, seconds = stragglers.interval()
    assert 0.02 <= own <= seconds
    assert stragglers.interval()[0] == 0.0
