"""Flash attention by tiles much smaller than the sequence: against the definition, and the work it does."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_oracle import softmax_attention
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attend import MASKS, admitted, arrays, real

from research.attention import Causal, Everything, Global, Present, SameSegment, Tokens, Window, attend
from research.attention.biases import Bias
from research.attention.block_map import EMPTY, PARTIAL, block_map
from research.attention.flash import flash
from research.attention.softmax import reference
from research.attention.tiles import Tiling, Work, tiling_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gates(Bias):
    """A bias with everything that engines must handle: a parameter per head, arrays per token, integers."""

    slopes: jax.Array
    per_query: jax.Array
    per_key: jax.Array
    version: jax.Array

    def __call__(self, q, kv):
        distance = (kv.positions[:, None, :] - q.positions[:, :, None]).astype(jnp.float32)
        gates = self.per_query[:, :, :, None] - self.per_key[:, :, None, :]
        return self.slopes[None, :, None, None] * distance[:, None] + gates

    def rows(self, start, size):
        cut = jax.lax.dynamic_slice_in_dim(self.per_query, start, size, 2)
        return dataclasses.replace(self, per_query=cut)

    def columns(self, start, size):
        cut = jax.lax.dynamic_slice_in_dim(self.per_key, start, size, 2)
        return dataclasses.replace(self, per_key=cut)


def packed(rng, batch, length, *, known):
    """Returns rows of two documents and some padding."""
    segments = np.zeros((batch, length), np.int32)
    positions = np.zeros((batch, length), np.int32)
    for row in range(batch):
        first, second = np.sort(rng.integers(1, length, 2))
        segments[row, :first], segments[row, first:second] = 1, 2
        positions[row, :first] = np.arange(first)
        positions[row, first:second] = np.arange(second - first)
    if known:
        return Tokens(np.arange(length, dtype=np.int32)[None], jnp.asarray(segments))
    return Tokens(jnp.asarray(positions), jnp.asarray(segments))


@st.composite
def cases(draw):
    batch, q_len, kv_len = 2, draw(st.sampled_from([5, 8, 13])), draw(st.sampled_from([7, 8, 13]))
    itself = draw(st.booleans())
    kv_len = q_len if itself else kv_len
    heads, kv_heads = draw(st.sampled_from([(2, 2), (4, 2), (3, 1)]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    places = draw(st.sampled_from(["known", "given", "packed", "packed in order"]))
    mask = draw(MASKS)
    if places == "packed in order":
        q_tokens = kv_tokens = packed(rng, batch, q_len, known=True)
        kv_len, mask = q_len, (mask & SameSegment()) if mask.relative else Causal() & SameSegment()
    elif places == "packed":
        q_tokens, kv_tokens = (packed(rng, batch, n, known=False) for n in (q_len, kv_len))
        mask = mask & Present()
    elif places == "given":
        q_tokens, kv_tokens = (
            Tokens(jnp.asarray(rng.integers(0, 9, (batch, n)), jnp.int32)) for n in (q_len, kv_len)
        )
    else:
        q_tokens, kv_tokens = (Tokens(np.arange(n, dtype=np.int32)[None]) for n in (q_len, kv_len))
    tiling = Tiling(
        draw(st.sampled_from([2, 3, q_len])), draw(st.sampled_from([2, 4, kv_len])),
        rows=draw(st.sampled_from([1, 2])), heads=draw(st.sampled_from([1, kv_heads])),
        dynamic=draw(st.booleans()),
    )  # fmt: skip
    options = {
        "mask": mask, "q_tokens": q_tokens, "kv_tokens": kv_tokens, "tiling": tiling, "scale": 0.4,
        "soft_cap": draw(st.sampled_from([None, 1.5])),
    }  # fmt: skip
    extras = {}
    if draw(st.booleans()):
        shapes = (heads,), (batch, heads, q_len), (batch, heads, kv_len)
        slopes, per_query, per_key = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
        extras["bias"] = Gates(slopes * 0.1, per_query, per_key, jnp.arange(3))
    if draw(st.booleans()):
        extras["sink"] = jnp.asarray(rng.normal(size=heads), jnp.float32)
    value_dim = draw(st.sampled_from([4, 6]))
    return arrays(3, batch, q_len, kv_len, heads, kv_heads, value_dim=value_dim), options, extras


def with_gradients(function, operands, cotangent):
    """Returns the output and the gradients of the floating-point operands."""

    def both(operands):
        out, pull = jax.vjp(function, operands)
        return out, pull(cotangent)[0]

    return jax.tree.map(np.asarray, jax.jit(both)(operands))


@settings(max_examples=5, phases=[hypothesis.Phase.generate])
@given(cases())
def test_tiles_equal_the_oracle_forward_and_backward(case):
    equal_the_oracle(case)


@pytest.mark.slow
@settings(max_examples=20, phases=[hypothesis.Phase.generate])
@given(cases())
def test_many_more_tiles_equal_the_oracle(case):
    equal_the_oracle(case)


def equal_the_oracle(case):
    (q, k, v), options, extras = case
    batch = q.shape[0]
    cotangent = np.random.default_rng(5).normal(size=(*q.shape[:3], v.shape[-1])).astype(np.float32)
    q_tokens, kv_tokens = options["q_tokens"], options["kv_tokens"]
    allowed = admitted(options["mask"], q_tokens, kv_tokens, batch)
    bias = None
    if "bias" in extras:
        full = (batch, q.shape[2], q.shape[1], k.shape[1])
        bias = np.broadcast_to(extras["bias"](q_tokens, kv_tokens), full)
    want, (*want_qkv, want_bias, want_sink) = softmax_attention(
        q, k, v, allowed, scale=0.4, soft_cap=options["soft_cap"], bias=bias, sink=extras.get("sink"),
        cotangent=cotangent,
    )  # fmt: skip
    out, gradients = with_gradients(
        lambda x: flash(*x["qkv"], **options, bias=x.get("bias"), sink=x.get("sink")),
        {"qkv": (q, k, v), **extras},
        cotangent,
    )
    np.testing.assert_allclose(out, want, atol=3e-6, rtol=3e-5)
    for got, expected in zip(gradients["qkv"], want_qkv, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-4)
    if "sink" in extras:
        np.testing.assert_allclose(gradients["sink"], want_sink, atol=1e-5, rtol=1e-4)
    if "bias" in extras:
        got = gradients["bias"]
        np.testing.assert_allclose(got.per_query, want_bias.sum(3), atol=1e-5, rtol=1e-4)
        np.testing.assert_allclose(got.per_key, -want_bias.sum(2), atol=1e-5, rtol=1e-4)
        distance = np.asarray(kv_tokens.positions)[:, None, :] - np.asarray(q_tokens.positions)[:, :, None]
        slopes = (want_bias * distance[:, None]).sum((0, 2, 3))
        np.testing.assert_allclose(got.slopes, slopes, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("tiling", [Tiling(4, 3, 1, 1), Tiling(13, 13, 2, 2)])
def test_the_same_weights_are_dropped_as_in_the_reference(tiling):
    q, k, v = arrays(1, 2, 13, 13, 4, 2)
    cotangent = arrays(2, 2, 13, 13, 4, 2)[0]
    places = Tokens(np.arange(13, dtype=np.int32)[None])
    options = {"scale": 0.5, "dropout": 0.3, "dropout_key": jax.random.key(7)}
    got = with_gradients(
        lambda x: flash(*x, mask=Causal(), q_tokens=places, kv_tokens=places, tiling=tiling, **options),
        (q, k, v),
        cotangent,
    )
    allowed = np.tril(np.ones((1, 13, 13), bool))
    want = with_gradients(lambda x: reference(*x, allowed, **options), (q, k, v), cotangent)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), got, want)


@pytest.mark.parametrize("mask", [Causal() & SameSegment(), Everything()])
def test_padding_may_hold_nan(mask):
    q, k, v = arrays(4, 2, 300, 300, 2, 1)
    cotangent = arrays(5, 2, 300, 300, 2, 2)[0]
    tokens = packed(np.random.default_rng(0), 2, 300, known=False)
    tokens = dataclasses.replace(tokens, in_order=True)
    found = {}
    for engine, filling in (("flash", np.nan), ("reference", 0.0)):
        there = real(tokens, 2)[:, :, None, None]
        filled = tuple(jnp.asarray(np.where(there, x, np.float32(filling))) for x in (q, k, v))
        run = functools.partial(attend, mask=mask, q_tokens=tokens, engine=engine)
        found[engine] = with_gradients(lambda x, run=run: run(*x), filled, cotangent)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found["flash"], found["reference"])
    assert not found["flash"][0][~real(tokens, 2)].any()


@pytest.mark.parametrize("mask", [Causal(), Causal() & (Window(2) | Global(1))])
def test_work_is_the_number_of_blocks_that_are_not_empty(mask, monkeypatch):
    """Counted where a tile's scores are computed, at run time."""
    counted = []
    scores = Work.scores

    def counting(self, q, place, block, start, masked, **options):
        jax.debug.callback(lambda b: counted.append((int(b), masked)), jnp.asarray(block))
        return scores(self, q, place, block, start, masked, **options)

    monkeypatch.setattr(Work, "scores", counting)
    q, k, v = arrays(6, 1, 32, 32, 2, 2)
    places = Tokens(np.arange(32, dtype=np.int32)[None])
    run = functools.partial(
        flash, mask=mask, q_tokens=places, kv_tokens=places, tiling=Tiling(4, 4, 1, 2), scale=1.0
    )
    jax.block_until_ready(jax.jit(jax.grad(lambda q: run(q, k, v).sum()))(q))
    jax.effects_barrier()
    kinds = block_map(mask, 32, 32, 4, 4)
    assert len(counted) == 2 * (kinds != EMPTY).sum()  # once forward, once backward
    assert sum(masked for _, masked in counted) == 2 * (kinds == PARTIAL).sum()


def test_saved_output_spares_the_forward_pass():
    q, k, v = arrays(7, 1, 64, 64, 2, 2)

    def loss(q, k, v):
        return attend(q, k, v, mask=Causal(), engine="flash").sum()

    def exponentials(policy):
        gradient = jax.grad(jax.checkpoint(loss, policy=policy))
        return str(jax.make_jaxpr(gradient)(q, k, v)).count("= exp")

    names = jax.checkpoint_policies.save_only_these_names("attention_out", "attention_lse")
    assert exponentials(names) < exponentials(jax.checkpoint_policies.nothing_saveable)


def test_tiles_fit_the_cache_and_follow_the_mask():
    causal = tiling_of(Causal(), 8, 2048, 2048, 16, 4, cpu=True)
    assert causal.q_block == 512 and 8 % causal.rows == 0 and 4 % causal.heads == 0
    narrow = tiling_of(Causal() & Window(63), 8, 2048, 2048, 4, 4, cpu=True)
    assert narrow.q_block < causal.q_block
    assert tiling_of(Everything(), 48, 64, 64, 4, 4, cpu=True) == Tiling(64, 64, 24, 4)
    assert tiling_of(Everything(), 48, 4096, 64, 4, 4, cpu=False) == Tiling(512, 64, 48, 4, dynamic=False)
