"""Sampling: filters against NumPy and by frequency, continuations against the full forward pass."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.mechanisms import SlidingWindow
from research.attention.positions import Rotary
from research.errors import UserError
from research.inference.sampling import Decoding, choose, filtered, sample
from research.models.gpt import GPT
from research.modules.block import cache_apart, parameters_apart

GREEDY = Decoding(temperature=0.0)
LEARNED = GPT(vocabulary=13, context=16, layers=2, width=16, heads=4, kv_heads=2, bias=False)
ROTARY = dataclasses.replace(LEARNED, positions=Rotary(), attention=SlidingWindow(window=4), depth="unroll")
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [12, 0]]


@functools.cache
def params(gpt):
    tree = jax.eval_shape(gpt.build().init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.8, jnp.float32), tree)


@functools.cache
def full(gpt):
    """Returns tokens [1, context] -> logits, without a cache."""
    return jax.jit(lambda tokens: gpt.build().apply({"params": params(gpt)}, tokens)[0])


def run(gpt, prompts, tokens=6, **options):
    return sample(gpt, params(gpt), prompts, tokens=tokens, **options)


def greedy(gpt, prompt, tokens):
    """Continues the prompt by the argmax of the whole forward pass, run again for every token."""
    text = list(prompt)
    for _ in range(tokens):
        row = np.zeros((1, gpt.context), np.int32)
        row[0, : len(text)] = text
        text.append(int(np.asarray(full(gpt)(jnp.asarray(row)))[0, len(text) - 1].argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("gpt", [LEARNED, ROTARY], ids=["learned", "rotary"])
def test_greedy_is_the_argmax_of_the_full_forward_pass(gpt):
    got = run(gpt, PROMPTS, how=GREEDY)
    assert got == [greedy(gpt, prompt, 6) for prompt in PROMPTS]
    assert len({token for row in got for token in row}) > 2


def test_a_prompt_continues_alone_as_in_a_batch():
    together = run(LEARNED, PROMPTS, how=GREEDY)
    assert together[2:3] == run(LEARNED, PROMPTS[2:3], how=GREEDY)
    assert together[1:2] == run(LEARNED, PROMPTS[1:2], how=GREEDY)


def test_a_prompt_longer_than_the_context_loses_its_beginning():
    long = [int(token) for token in np.random.default_rng(0).integers(0, 13, size=40)]
    assert run(LEARNED, [long], how=GREEDY) == run(LEARNED, [long[-10:]], how=GREEDY)


def test_stop_tokens_end_a_row_and_are_left_out():
    whole = run(LEARNED, PROMPTS, how=GREEDY)
    stop = whole[0][2]
    want = [row[: row.index(stop)] if stop in row else row for row in whole]
    assert run(LEARNED, PROMPTS, how=GREEDY, stop=(stop,)) == want
    assert len(want[0]) <= 2
    either = (whole[0][0], stop)
    want = [row[: next((i for i, t in enumerate(row) if t in either), 6)] for row in whole]
    assert run(LEARNED, PROMPTS, how=GREEDY, stop=either) == want and want[0] == []


def test_a_function_of_the_seed():
    first = run(LEARNED, PROMPTS, seed=1)
    assert first == run(LEARNED, PROMPTS, seed=1) and first != run(LEARNED, PROMPTS, seed=2)
    assert all(len(row) == 6 and all(0 <= token < 13 for token in row) for row in first)
    same = run(LEARNED, [[1, 2]] * 4, seed=1)
    assert len({tuple(row) for row in same}) > 1  # rows draw independently


@contextlib.contextmanager
def compilations():
    """Collects an entry for each program that is compiled meanwhile."""
    found = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_equal_descriptions_compile_once_for_each_width():
    again = [dataclasses.replace(LEARNED) for _ in range(2)]
    with compilations() as found:
        first = run(again[0], PROMPTS[:2], tokens=3, how=GREEDY)
    assert found and again[0] is not again[1]
    with compilations() as found:
        assert run(again[1], PROMPTS[:2], tokens=3, how=GREEDY, seed=1) == first
        run(again[1], [[3, 2, 1], [7, 7]], tokens=3, how=GREEDY)  # as wide, when rounded up
    assert not found


def test_parameters_apart_are_those_of_the_stack():
    tree, tokens = params(ROTARY), jnp.asarray([[1, 2, 3]], jnp.int32)
    cache = ROTARY.empty_cache(1, 4)
    want, kept = full_with(ROTARY)(tree, tokens, cache)
    got, own = full_with(ROTARY)(parameters_apart(tree), tokens, cache_apart(cache))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(cache_apart(kept)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def full_with(gpt):
    return jax.jit(lambda params, tokens, cache: gpt.build().apply({"params": params}, tokens, cache=cache))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kept(logits, how):
    """Returns which tokens of one row of logits stay, filter after filter, by sorting in plain Python."""
    scaled = np.asarray(logits, np.float64) / how.temperature
    order = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    if how.top_k is not None:
        order = order[: how.top_k]
    if how.top_p is not None:
        chances, total, chosen = softmax(scaled[order]), 0.0, []
        for token, chance in zip(order, chances, strict=True):
            chosen.append(token)
            total += chance
            if total >= how.top_p:
                break
        order = chosen
    if how.min_p is not None:
        likely = softmax(scaled[order])
        order = [
            token for token, chance in zip(order, likely, strict=True) if chance >= how.min_p * likely.max()
        ]
    return set(order)


@pytest.mark.parametrize(
    "how",
    [
        Decoding(), Decoding(0.5), Decoding(top_k=1), Decoding(top_k=3), Decoding(top_k=99),
        Decoding(top_p=0.01), Decoding(top_p=0.6), Decoding(top_p=1.0),
        Decoding(min_p=0.2), Decoding(min_p=1.0), Decoding(0.7, top_k=8, top_p=0.8),
        Decoding(2.0, top_k=9, top_p=0.9, min_p=0.3),
    ],
)  # fmt: skip
def test_filters_keep_what_sorting_keeps(how):
    logits = np.random.default_rng(3).normal(size=(20, 11)).astype(np.float32) * 2
    got = np.asarray(filtered(jnp.asarray(logits), how))
    for row, before in zip(got, logits, strict=True):
        assert set(np.flatnonzero(np.isfinite(row))) == kept(before, how)
        left = np.isfinite(row)
        np.testing.assert_allclose(row[left], before[left] / how.temperature, rtol=1e-6)


@pytest.mark.parametrize("how", [Decoding(), Decoding(0.6), Decoding(1.5, top_k=4), Decoding(top_p=0.7)])
def test_tokens_are_drawn_as_often_as_they_are_likely(how):
    logits, draws = np.random.default_rng(4).normal(size=9).astype(np.float32), 20_000
    rows = jnp.broadcast_to(jnp.asarray(logits), (draws, 9))
    counts = np.bincount(np.asarray(choose(rows, how, jax.random.key(0))), minlength=9)
    left = kept(logits, how)
    chances = softmax(np.where([token in left for token in range(9)], logits / how.temperature, -np.inf))
    assert not counts[chances == 0].any()
    error = np.abs(counts - draws * chances) / np.sqrt(np.maximum(draws * chances * (1 - chances), 1e-9))
    assert (error[chances > 0] < 4.5).all()


def test_temperature_zero_is_greedy_whatever_the_filters():
    logits = jnp.asarray(np.random.default_rng(5).normal(size=(7, 9)), jnp.float32)
    got = choose(logits, Decoding(0.0, top_k=2), jax.random.key(0))
    np.testing.assert_array_equal(got, np.asarray(logits).argmax(-1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.5}, "temperature -0.5: 0 (greedy) or more"),
        ({"top_k": 0}, "top-k 0: 1 or more"),
        ({"top_p": 0.0}, "top-p 0: above 0 and at most 1"),
        ({"top_p": 1.5}, "top-p 1.5: above 0 and at most 1"),
        ({"min_p": -1.0}, "min-p -1: above 0 and at most 1"),
    ],
)
def test_senseless_values_are_refused_in_one_line(fields, message):
    with pytest.raises(UserError) as error:
        Decoding(**fields)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("prompts", "tokens", "message"),
    [
        ([[1], []], 4, "a prompt must have at least one token"),
        ([[1]], 16, "16 tokens to generate: at least 1, and fewer than the model's context of 16"),
        ([[1]], 0, "0 tokens to generate: at least 1, and fewer than the model's context of 16"),
    ],
)
def test_senseless_requests_are_refused_in_one_line(prompts, tokens, message):
    with pytest.raises(UserError) as error:
        run(LEARNED, prompts, tokens)
    assert str(error.value) == message
