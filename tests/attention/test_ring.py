"""Attention over eight simulated devices: ring, flash and splash against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import sharded_attention

from research.attention import Causal, Everything, SameSegment, Window
from research.attention.ring import _deals, pieces


@pytest.fixture(scope="module")
def fast(on_eight_devices):
    return on_eight_devices(sharded_attention.__file__, sharded_attention.FAST)


@pytest.fixture(scope="module")
def slow(on_eight_devices):
    return on_eight_devices(sharded_attention.__file__, sharded_attention.SLOW)


def check(found: dict) -> None:
    assert found["errors"]["out"] < 3e-6
    assert all(error < 1e-5 for error in found["errors"].values()), found["errors"]


@pytest.mark.parametrize("case", sharded_attention.FAST)
def test_devices_together_compute_the_definition(fast, case):
    check(fast[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", sharded_attention.SLOW)
def test_devices_together_compute_the_definition_of_other_calls(slow, case):
    check(slow[case])


def test_a_ring_gathers_nothing(fast):
    assert fast["causal"]["collectives"] == ["collective-permute"]
    # The gradient of the sinks is summed over all.
    assert fast["both ways"]["collectives"] == ["all-reduce", "collective-permute"]


@pytest.mark.slow
def test_what_splits_the_length_without_a_ring_gathers(slow):
    assert "all-gather" in slow["flash by length"]["collectives"]
    assert "collective-permute" not in slow["flash by rows"]["collectives"]


def work(devices: int, held: list[list[int]]) -> np.ndarray:
    """Returns how many pairs of pieces a causal mask leaves each device, by step of the ring."""
    return np.array(
        [
            [
                sum((q > k) + 0.5 * (q == k) for q in held[device] for k in held[(device - step) % devices])
                for device in range(devices)
            ]
            for step in range(devices)
        ]
    )


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_every_device_has_as_much_to_do_at_every_step(devices):
    held: list[list[int]] = [[] for _ in range(devices)]
    for parity, deal in enumerate(_deals(devices)):
        assert sorted(to for _, to in deal) == list(range(devices))  # a permutation
        for of, to in deal:
            held[to].append(2 * of + parity)
    assert (np.ptp(work(devices, held), axis=1) == 0).all()
    contiguous = [[2 * device, 2 * device + 1] for device in range(devices)]
    assert work(devices, contiguous).max(1).sum() > 1.4 * work(devices, held).max(1).sum()


def test_only_causal_masks_are_balanced():
    assert pieces(Causal()) == pieces(SameSegment() & Causal()) == 2
    assert pieces(Everything()) == pieces(Window(3, 3) & SameSegment()) == 1
