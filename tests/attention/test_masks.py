"""Masks: their dense form against their description, judged pair by pair."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from attention_oracle import dense
from hypothesis import given
from hypothesis import strategies as st
from test_attend import MASKS, tokens

from research.attention import And, Causal, Everything, Not, Or, Present, SameSegment, Tokens, Window
from research.attention.masks import ABSENT


@st.composite
def pairs(draw):
    segments = draw(st.booleans())
    q = draw(tokens(draw(st.integers(1, 2)), draw(st.sampled_from([1, 4])), segments))
    return q, draw(tokens(q.positions.shape[0], draw(st.sampled_from([1, 4])), segments))


@given(MASKS, pairs())
def test_dense_form_is_the_description(mask, pair):
    q, kv = pair
    batch = q.positions.shape[0]
    got = np.broadcast_to(mask(q, kv), (batch, q.length, kv.length))
    np.testing.assert_array_equal(got, dense(mask, q, kv, batch))


def test_operators_describe_and_compare_by_value():
    assert Causal() & Window(3) == And(Causal(), Window(3, 0))
    assert Causal() | ~SameSegment() == Or(Causal(), Not(SameSegment()))
    assert len({Causal(), Causal(), Window(1), Window(1), Window(2), Everything(), Present()}) == 5


def test_causal_window_of_three_tokens():
    places = Tokens.arange(5)
    np.testing.assert_array_equal(
        (Causal() & Window(2))(places, places)[0],
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]],
    )


def test_absent_slots_are_seen_by_nobody():
    slots = Tokens(jnp.array([[0, 1, ABSENT]], jnp.int32))
    query = Tokens(jnp.array([[0], [1000]], jnp.int32))
    for mask in (Causal(), Window(5000, 5000), Causal() & Window(5000)):
        assert not np.asarray(mask(query, slots))[..., 2].any()


def test_lengths_make_right_padded_rows():
    places = Tokens.of_lengths(jnp.array([0, 2, 3], jnp.int32), 3)
    np.testing.assert_array_equal(places.segments, [[0, 0, 0], [1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(places.positions, [[0, 1, 2]])


def test_segments_on_one_side_only_are_refused():
    with pytest.raises(ValueError, match="both sides or on neither"):
        SameSegment()(Tokens.arange(2), Tokens.of_lengths(jnp.array([1], jnp.int32), 2))
