"""Drawn translations: their distribution, their probabilities, and that rows do not meet."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from research.inference.beam import Beam, beam_search
from research.inference.draws import Draws, random_search
from research.inference.sampling import Decoding

VOCABULARY, END, SLOTS = 5, 0, 3
CHANCES = np.array([[0.1, 0.4, 0.3, 0.15, 0.05], [0.6, 0.1, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2]])


class Table:
    """The next token depends on the position alone."""

    def encode(self, params, source, place):
        return None

    def empty_cache(self, batch, slots):
        return None

    def step(self, params, tokens, memory, place, cache):
        return jnp.log(params)[place.positions[:, 0]], None

    def apart(self, params, cache):
        return params, cache

    def take_rows(self, cache, rows):
        return None

    def attention(self, cache):
        return None


@functools.cache
def draw(how, rows):
    run = random_search(Table(), Draws(how, seed=3), slots=SLOTS, end=END)
    numbers = jnp.arange(rows, dtype=jnp.uint32)
    params = jnp.asarray(CHANCES, jnp.float32)
    source = jnp.zeros((rows, 2), jnp.int32)
    length = jnp.full(rows, 2, jnp.int32)
    return jax.tree.map(np.asarray, run(params, source, length, jnp.full(rows, SLOTS, jnp.int32), numbers))


def test_draws_have_the_probabilities_of_the_model():
    found = draw(Decoding(), 4000)
    tokens = found.tokens[:, 0]
    np.testing.assert_allclose(np.bincount(tokens[:, 0], minlength=5) / 4000, CHANCES[0], atol=0.03)
    going = tokens[:, 0] != END
    second = np.bincount(tokens[going, 1], minlength=5) / going.sum()
    np.testing.assert_allclose(second, CHANCES[1], atol=0.03)
    assert not tokens[:, 2].any()  # at its limit, a hypothesis can only end
    for row in range(50):
        ends = tokens[row].tolist().index(END) + 1
        wanted = np.log([CHANCES[i, tokens[row, i]] for i in range(ends)]).sum()
        np.testing.assert_allclose(found.log_probabilities[row, 0], wanted, rtol=1e-5)


def test_a_row_is_drawn_alone_and_temperature_0_is_greedy():
    together = draw(Decoding(), 4000)
    np.testing.assert_array_equal(draw(Decoding(), 8).tokens, together.tokens[:8])
    greedy = draw(Decoding(0.0), 8)
    arrays = (jnp.zeros((8, 2), jnp.int32), jnp.full(8, 2, jnp.int32), jnp.full(8, SLOTS, jnp.int32))
    best = beam_search(Table(), Beam(1, 0.0), slots=SLOTS, end=END)(
        jnp.asarray(CHANCES, jnp.float32), *arrays
    )
    np.testing.assert_array_equal(greedy.tokens[:, 0], best.tokens[:, 0])
    assert set(draw(Decoding(1.0, top_p=0.5), 400 * 10).tokens[:, 0, 0].tolist()) == {1, 2}
