"""Encoder and decoder stacks against the paper in NumPy; scanned, unrolled and remat forms are one."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import paper_transformer as paper
import pytest

from research.attention import Tokens
from research.attention.mechanisms import Geometry, SlidingWindow, Softmax
from research.modules.attention import AttentionSpec
from research.modules.block import BlockSpec, Context, Stack, empty_cache

BATCH, LENGTH, MEMORY, WIDTH, LAYERS = 2, 5, 7, 12, 2
SPEC = AttentionSpec(Geometry(width=WIDTH, heads=4, kv_heads=2, head_dim=3, context=16))
CAUSAL = dataclasses.replace(SPEC, causal=True)
DECODER = BlockSpec(CAUSAL, 16, "relu", cross_attention=Softmax())
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(BATCH, LENGTH, WIDTH)), jnp.float32)
LONG_MEMORY = jnp.asarray(RNG.normal(size=(BATCH, MEMORY, WIDTH)), jnp.float32)
PADDED = Tokens.of_lengths(jnp.array([3, 5], jnp.int32), LENGTH)
PADDED_MEMORY = Tokens.of_lengths(jnp.array([7, 2], jnp.int32), MEMORY)


def parameters(stack, context):
    return paper.random_parameters(jax.eval_shape(stack.init, jax.random.key(0), X, context)["params"])


def through_the_paper(params, layers=LAYERS, **options):
    x = np.asarray(X, np.float64)
    for index in range(layers):
        x = paper.block(x, paper.layer(params["blocks"], index), **options)
    return x


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_stack_is_the_papers(placement, activation):
    stack = Stack((BlockSpec(SPEC, 16, activation, placement=placement),), LAYERS)
    params = parameters(stack, Context(PADDED))
    got, cache = jax.jit(stack.apply)({"params": params}, X, Context(PADDED))
    assert cache is None
    real = np.asarray(PADDED.segments) != 0
    allowed = real[:, :, None] & real[:, None, :]
    want = through_the_paper(params, allowed=allowed, post=placement == "post", activation=activation)
    np.testing.assert_allclose(got, want, atol=2e-4, rtol=2e-4)


def test_encoder_stack_with_rms_norm_and_no_padding():
    stack = Stack((BlockSpec(SPEC, 16, "swiglu", norm="rms"),), LAYERS)
    params = parameters(stack, Context())
    got, _ = jax.jit(stack.apply)({"params": params}, X, Context())
    everything = np.ones((BATCH, LENGTH, LENGTH), bool)
    want = through_the_paper(params, allowed=everything, post=False, activation="swiglu", norm=paper.rms_norm)
    np.testing.assert_allclose(got, want, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("memory_tokens", [PADDED_MEMORY, None])
def test_decoder_stack_with_cross_attention_is_the_papers(placement, memory_tokens):
    stack = Stack((dataclasses.replace(DECODER, placement=placement),), LAYERS)
    context = Context(Tokens.arange(LENGTH), LONG_MEMORY, memory_tokens)
    params = parameters(stack, context)
    got, _ = jax.jit(stack.apply)({"params": params}, X, context)
    real = (
        np.ones((BATCH, MEMORY), bool) if memory_tokens is None else np.asarray(memory_tokens.segments) != 0
    )
    want = through_the_paper(
        params,
        allowed=np.tril(np.ones((BATCH, LENGTH, LENGTH), bool)),
        cross_allowed=np.broadcast_to(real[:, None, :], (BATCH, LENGTH, MEMORY)),
        memory=np.asarray(LONG_MEMORY, np.float64),
        post=placement == "post",
        activation="relu",
    )
    np.testing.assert_allclose(got, want, atol=3e-4, rtol=3e-4)


def test_padding_of_the_memory_may_hold_nan():
    stack = Stack((DECODER,), LAYERS)
    context = Context(Tokens.arange(LENGTH), LONG_MEMORY, PADDED_MEMORY)
    params = parameters(stack, context)

    def total(params, x, memory):
        out, _ = stack.apply({"params": params}, x, dataclasses.replace(context, memory=memory))
        return jnp.square(out).sum(), out

    run = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    (_, dx), out = run(params, X, LONG_MEMORY)
    padding = (PADDED_MEMORY.segments == 0)[:, :, None]
    (_, dx_changed), out_changed = run(params, X, jnp.where(padding, 1e6, LONG_MEMORY))
    np.testing.assert_array_equal(out, out_changed)
    np.testing.assert_array_equal(dx, dx_changed)
    (_, dx_nan), out_nan = run(params, X, jnp.where(padding, jnp.nan, LONG_MEMORY))
    np.testing.assert_array_equal(out, out_nan)
    np.testing.assert_array_equal(dx, dx_nan)


def test_memory_without_tokens_does_not_take_the_padding_of_as_many_queries():
    stack = Stack((DECODER,), 1)
    memory = LONG_MEMORY[:, :LENGTH]
    params = parameters(stack, Context(PADDED, memory))
    padded, _ = stack.apply({"params": params}, X, Context(PADDED, memory))
    plain, _ = stack.apply({"params": params}, X, Context(Tokens.arange(LENGTH), memory))
    real = np.asarray(PADDED.segments) != 0
    np.testing.assert_allclose(np.asarray(padded)[real], np.asarray(plain)[real], atol=1e-5)


@functools.cache
def reference_run():
    """Output, loss gradients and parameters of a scanned decoder stack with dropout."""
    spec = dataclasses.replace(DECODER, attention=dataclasses.replace(CAUSAL, dropout=0.3))
    context = Context(Tokens.arange(LENGTH), LONG_MEMORY, PADDED_MEMORY)
    params = parameters(Stack((spec,), LAYERS), context)
    return spec, context, params, outputs_and_gradients(Stack((spec,), LAYERS), params, context)


def outputs_and_gradients(stack, params, context):
    def total(params, x):
        out, _ = stack.apply({"params": params}, x, context, None, jax.random.key(4))
        return jnp.square(out).mean(), out

    return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(params, X)


@pytest.mark.parametrize(
    ("depth", "remat"),
    [("unroll", "none"), ("scan", "block"), ("scan", "dots"), ("unroll", "block")],
)
def test_every_form_of_a_stack_gives_the_same(depth, remat):
    spec, context, params, (want_gradients, want) = reference_run()
    gradients, out = outputs_and_gradients(Stack((spec,), LAYERS, depth, remat), params, context)
    np.testing.assert_allclose(out, want, atol=1e-5, rtol=1e-5)
    jax.tree.map(
        lambda got, expected: np.testing.assert_allclose(got, expected, atol=1e-5, rtol=2e-4),
        gradients,
        want_gradients,
    )


def test_saving_the_dots_spares_attentions_forward_pass():
    attention = dataclasses.replace(CAUSAL, engine="flash")
    spec = dataclasses.replace(DECODER, attention=attention, cross_attention=None)
    context = Context(Tokens.arange(LENGTH))
    params = parameters(Stack((spec,), 1), context)

    def exponentials(remat):
        stack = Stack((spec,), 1, "scan", remat)
        gradient = jax.grad(lambda params: stack.apply({"params": params}, X, context)[0].sum())
        return str(jax.make_jaxpr(gradient)(params)).count("= exp ")

    assert exponentials("none") == exponentials("dots") < exponentials("block")


def test_dropout_differs_by_layer_and_by_key():
    spec, context, params, _ = reference_run()
    one = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), params)  # all layers alike
    run = jax.jit(lambda key: Stack((spec,), LAYERS).apply({"params": one}, X, context, None, key)[0])
    assert not np.allclose(run(jax.random.key(1)), run(jax.random.key(2)))
    np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.key(1)))


def test_initialisation_does_not_depend_on_the_form():
    context = Context(Tokens.arange(LENGTH), LONG_MEMORY)
    key = jax.random.key(3)
    scanned, unrolled = (
        jax.jit(Stack((DECODER,), 2, depth).init)(key, X, context) for depth in ("scan", "unroll")
    )
    jax.tree.map(np.testing.assert_array_equal, scanned, unrolled)
    kernel = np.asarray(scanned["params"]["blocks"]["attention"]["query"]["kernel"])
    assert kernel.shape == (2, WIDTH, 4, 3) and (kernel[0] != kernel[1]).all()


@pytest.mark.parametrize("depth", ["scan", "unroll"])
def test_with_a_cache_a_token_at_a_time_equals_all_at_once(depth):
    stack = Stack((DECODER,), LAYERS, depth)
    context = Context(Tokens.arange(LENGTH), LONG_MEMORY)
    params = parameters(stack, context)
    want, _ = jax.jit(stack.apply)({"params": params}, X, context)
    cache, slots = empty_cache((DECODER,), LAYERS, BATCH, 8, jnp.dtype("float32"))

    @jax.jit
    def step(x, position, cache, slots):
        places = Tokens(jnp.full((BATCH, 1), position, jnp.int32))
        slots = slots.write(places.positions)
        out, cache = stack.apply({"params": params}, x, Context(places, LONG_MEMORY, None, slots), cache)
        return out, cache, slots

    for index in range(LENGTH):
        out, cache, slots = step(X[:, index : index + 1], index, cache, slots)
        np.testing.assert_allclose(out[:, 0], want[:, index], atol=2e-5, rtol=2e-5)
    assert int(slots.used) == LENGTH and not np.asarray(cache[0][0].keys[:, :, LENGTH:]).any()


@pytest.mark.parametrize("depth", ["scan", "unroll"])
def test_a_pattern_over_depth_is_its_blocks_one_after_another(depth):
    narrow = dataclasses.replace(CAUSAL, mechanism=SlidingWindow(window=2))
    specs = tuple(BlockSpec(attention, 16, "relu") for attention in (narrow, narrow, CAUSAL))
    stack, context = Stack(specs, 6, depth), Context(Tokens.arange(LENGTH))
    params = parameters(stack, context)
    assert set(params) == {"blocks_0", "blocks_1", "blocks_2"}
    got, _ = jax.jit(stack.apply)({"params": params}, X, context)
    x = np.asarray(X, np.float64)
    seen = np.tril(np.ones((BATCH, LENGTH, LENGTH), bool))
    for layer in range(6):
        allowed = seen if layer % 3 == 2 else seen & ~np.tril(seen, -2)
        group = paper.layer(params[f"blocks_{layer % 3}"], layer // 3)
        x = paper.block(x, group, allowed=allowed, post=False, activation="relu")
    np.testing.assert_allclose(got, x, atol=3e-4, rtol=3e-4)
