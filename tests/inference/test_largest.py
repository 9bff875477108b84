"""The largest numbers against a full sort, ties and all."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.inference.largest import largest


@pytest.mark.parametrize("length", [7, 2560, 2609])
def test_are_those_of_a_stable_sort(length):
    count = min(length, 9)
    random = np.random.default_rng(length)
    run = jax.jit(functools.partial(largest, count=count))
    # Few different values: many are equal, and the first of them counts.
    for values in (
        random.normal(size=(4, length)),
        random.integers(0, 3, (4, length)),
        np.full((4, length), -1e30),
    ):
        x = values.astype(np.float32)
        best, places = run(jnp.asarray(x))
        wanted = np.argsort(-x, axis=1, kind="stable")[:, :count]
        np.testing.assert_array_equal(places, wanted)
        np.testing.assert_array_equal(best, np.take_along_axis(x, wanted, axis=1))
