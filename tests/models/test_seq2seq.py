"""The LSTM encoder-decoder: steps, shared memories, padding, reversal, and what attention is for."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recurrent_decoder

from research.attention.masks import Tokens
from research.models.seq2seq import Alignment, Seq2Seq

MODEL = Seq2Seq(vocabulary=11, layers=2, width=8, dropout=0.0)
RNG = np.random.default_rng(0)
SOURCE = jnp.asarray(RNG.integers(0, 11, (2, 5)), jnp.int32)
TARGET = jnp.asarray(RNG.integers(1, 11, (6, 4)), jnp.int32)
LENGTHS = jnp.array([5, 3], jnp.int32)
PLACE = Tokens.of_lengths(LENGTHS, 5)


def parameters(model):
    shapes = jax.eval_shape(model.build().init, jax.random.key(0), SOURCE, SOURCE)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5, jnp.float32), shapes)


ATTENTIONS = {
    "none": None,
    "additive": Alignment(),
    "coverage": Alignment(coverage=True),
    "dot": Alignment("dot"),
    "general": Alignment("general", "monotonic", window=1),
    "concat": Alignment("concat", "predictive", window=1),
}


@pytest.mark.parametrize(
    "name",
    [
        "none",
        "additive",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("coverage", "dot", "general", "concat")),
    ],
)
def test_a_token_at_a_time_with_shared_memories_equals_all_at_once(name):
    feeding = name != "dot"
    model = dataclasses.replace(
        MODEL, attention=ATTENTIONS[name], input_feeding=feeding, tied_head=feeding, bidirectional=feeding
    )
    params, decoder = parameters(model), model.decoder()
    target = TARGET.at[:, 0].set(0)
    places = Tokens(PLACE.positions, jnp.repeat(PLACE.segments, 3, axis=0))
    wanted = jax.jit(model.build().apply)({"params": params}, jnp.repeat(SOURCE, 3, axis=0), target, places)
    # What stands in the padding changes nothing.
    dirty = jnp.where(PLACE.segments == 0, 9, SOURCE)
    memory = decoder.encode(params, dirty, PLACE)
    step = jax.jit(lambda *args: decoder.step(params, *args))
    cache = decoder.empty_cache(2, 4)
    for i in range(4):
        tokens = target[:, i : i + 1] if i else target[::3, :1]
        logits, cache = step(tokens, memory, Tokens(jnp.full(tokens.shape, i, jnp.int32)), cache)
        np.testing.assert_allclose(logits, wanted[:, i] if i else wanted[::3, 0], atol=2e-5, rtol=2e-5)
        if i == 0:
            cache = decoder.take_rows(cache, jnp.repeat(jnp.arange(2), 3))
    weights = decoder.attention(cache)
    if name == "none":
        assert weights is None
    elif name != "concat":  # whose Gaussian takes a part away
        np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-5)
        assert not np.asarray(weights)[3:, 3:].any()
    if name == "general":
        assert not np.asarray(weights)[:3, :2].any()  # more than one token away from position 3


@pytest.mark.parametrize("name", ["none", "coverage"])
def test_a_reversed_source_is_the_source_reversed(name):
    """And what attention tells is in the source's own order, of which the padding is no part."""
    plain = dataclasses.replace(MODEL, attention=ATTENTIONS[name], bidirectional=False)
    params = parameters(plain)
    order = np.array([[4, 3, 2, 1, 0], [2, 1, 0, 3, 4]])
    backwards = jnp.take_along_axis(SOURCE, jnp.asarray(order), axis=1)
    reverse = dataclasses.replace(plain, reverse_source=True)
    told = {}
    for model, source in ((plain, backwards), (reverse, SOURCE)):
        memory = model.decoder().encode(params, source, PLACE)
        run = jax.jit(functools.partial(model.build().apply, method="decode"))
        told[model] = run({"params": params}, TARGET[:2], memory)
    (wanted, state), (logits, reversed_state) = told[plain], told[reverse]
    np.testing.assert_allclose(logits, wanted, atol=1e-6)
    for got, want in zip(reversed_state[2:], state[2:], strict=True):  # coverage and weights
        np.testing.assert_allclose(got, np.take_along_axis(np.asarray(want), order, axis=1), atol=1e-6)
        assert name == "none" or np.ptp(np.asarray(got)[0]) > 0.01


FEATURES = {
    "none": {"attention": None},
    "additive": {},
    "coverage": {"attention": Alignment(coverage=True), "tied_head": False},
    "dot, nothing fed": {"attention": Alignment("dot"), "input_feeding": False},
    "general, local-m": {"attention": Alignment("general", "monotonic", window=1), "reverse_source": True},
    "concat, local-p": {"attention": Alignment("concat", "predictive", window=1), "bidirectional": False},
    "coverage, local-p": {"attention": Alignment("additive", "predictive", window=2, coverage=True)},
    "none, nothing fed": {"attention": None, "input_feeding": False, "layers": 1},
}


@pytest.mark.parametrize("name", FEATURES)
def test_decoding_is_that_of_the_papers(name):
    model = dataclasses.replace(MODEL, **FEATURES[name])
    params, target = parameters(model), TARGET[:2]

    def run(params):
        memory = model.build().apply({"params": params}, SOURCE, PLACE, method="encode")
        return memory, model.build().apply({"params": params}, target, memory, method="decode")

    memory, (logits, state) = jax.jit(run)(params)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, memory.values, memory.state))
    for row, length in enumerate(LENGTHS.tolist()):
        values, begin = p[1][row, :length], (part[:, row] for part in p[2])
        wanted, told = recurrent_decoder.decode(model, p[0], values, *begin, target[row].tolist())
        np.testing.assert_allclose(logits[row], wanted, atol=2e-5)  # of logits about 1, in float32
        if model.attention is not None:
            np.testing.assert_allclose(state.weights[row, :length], told[-1], atol=2e-6)
            np.testing.assert_allclose(state.coverage[row, :length], told.sum(0), atol=5e-6)
            assert not np.asarray(state.coverage)[row, length:].any()


def test_problems_are_told():
    assert list(MODEL.problems()) == []
    for wrong, words in (
        (dataclasses.replace(MODEL, width=7), "half in each direction"),
        (dataclasses.replace(MODEL, attention=Alignment("dot", coverage=True)), "for the score 'additive'"),
    ):
        assert words in next(wrong.problems())
