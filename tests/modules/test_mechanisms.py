"""The one contract: every mechanism of the catalogue, as layers of a decoder and of an encoder."""

from __future__ import annotations

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention import Tokens
from research.attention.block_choice import MoBA
from research.attention.catalogue import Interleaved, Single
from research.attention.hashing import Reformer
from research.attention.low_rank import Linformer
from research.attention.masks import ABSENT
from research.attention.mechanisms import (
    Differential,
    Forgetting,
    Geometry,
    Latent,
    Mechanism,
    SlidingWindow,
    Softmax,
)
from research.attention.native_sparse import NSA
from research.attention.positions import Alibi, Positions, RelativeBias, Rotary, YaRN
from research.attention.recurrent_mechanisms import LinearTransformer, Recurrent
from research.attention.rwkv import RWKV7
from research.attention.sparse_mechanisms import BigBird, Longformer, SparseTransformer
from research.models.stacks import with_pattern
from research.modules.attention import AttentionSpec
from research.modules.block import BlockSpec, Context, Stack, empty_cache
from research.modules.mixers import MIXERS, mixer

WIDTH, HEADS, LENGTH, LAYERS = 16, 4, 12, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(LENGTH, WIDTH)).astype(np.float32)
OTHER = RNG.normal(size=(4, WIDTH)).astype(np.float32)
COTANGENT = jnp.asarray(RNG.normal(size=(5, LENGTH, WIDTH)), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """A mechanism in a model."""

    mechanism: Mechanism
    positions: Positions | None = None
    kv_heads: int = HEADS

    @property
    def geometry(self) -> Geometry:
        return Geometry(WIDTH, HEADS, self.kv_heads, WIDTH // HEADS, context=LENGTH)

    def stack(self, *, causal: bool, depth: str = "scan") -> Stack:
        block = BlockSpec(AttentionSpec(self.geometry, causal=causal, engine="reference"), 8, "relu")
        return Stack(with_pattern(block, self.mechanism, self.positions), LAYERS, depth)

    def __str__(self) -> str:
        positions = "" if self.positions is None else f"-{type(self.positions).__name__}"
        return type(self.mechanism).__name__ + positions + ("" if self.kv_heads == HEADS else "-grouped")


SMALL = {
    SlidingWindow: {"window": 3}, Longformer: {"window": 2, "dilation": 2},
    BigBird: {"block": 2, "window": 2, "global_blocks": 1, "random_blocks": 1},
    SparseTransformer: {"stride": 3}, Latent: {"rank": 6, "query_rank": 5, "rotary_dim": 2},
    MoBA: {"block": 2, "top": 2}, Linformer: {"rank": 3}, Reformer: {"buckets": 4, "rounds": 2},
    NSA: {"summary": 2, "stride": 1, "block": 2, "top": 4, "window": 2},
}  # fmt: skip
"""Fields that make a pattern of a mechanism show within a few tokens."""
PLAIN = [Case(cls(**SMALL.get(cls, {}))) for cls in typing.get_args(Single)]
COMBINED = [
    Case(Softmax(qk_norm=True, soft_cap=5.0, sink=True, gate=True), Rotary(scaling=YaRN(8.0, 8)), 2),
    Case(SlidingWindow(window=3, sink=True), RelativeBias(8, 6), 2),
    Case(Differential(sink=True, gate=True), Alibi(), 2),
    Case(Latent(), Rotary(layout="interleaved")),
    Case(Forgetting(gate=True, qk_norm=True), RelativeBias(8, 6), 2),
    Case(SparseTransformer(factors="fixed", stride=4, summary=2), Rotary()),
    Case(NSA(summary=4, stride=2, block=2, top=3, window=1), Rotary(), 2),
    Case(Interleaved(SlidingWindow(window=3), 1, Latent(), 1, "second"), Rotary()),
    Case(LinearTransformer(), Rotary()),
]
RECURRENT = [case for case in PLAIN if isinstance(case.mechanism, Recurrent | RWKV7)]
"""Which have a contract of their own beside this one: gradients and low precision are proven there."""
SOFTMAX = [case for case in PLAIN if case not in RECURRENT]
OWN_MODULE = [case for case in SOFTMAX if type(case.mechanism) in MIXERS]
"""The others are softmax attention with another mask."""
DECODERS = [case for case in PLAIN + COMBINED if case.mechanism.decoder]
ENCODERS = [case for case in PLAIN + COMBINED[:3] if case.mechanism.encoder]


def mark(cases: list[Case], slow: list[Case]) -> list[typing.Any]:
    """Returns the cases, those of ``slow`` marked so."""
    return [pytest.param(case, marks=pytest.mark.slow) if case in slow else case for case in cases]


def test_every_case_is_one_that_a_model_may_have():
    for cases, causal in ((DECODERS, True), (ENCODERS, False)):
        for case in cases:
            assert not list(case.mechanism.problems(case.geometry, case.positions, causal=causal)), str(case)


@functools.cache
def parameters(case: Case, causal: bool):
    """Returns parameters large enough that every part matters."""
    x = jnp.zeros((1, 1, WIDTH))
    init = case.stack(causal=causal).init
    tree = jax.eval_shape(lambda: init(jax.random.key(0), x, Context(Tokens.arange(1))))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.4, jnp.float32), tree)


def rows(padding: float, *, packed: bool = True) -> tuple[jax.Array, Tokens]:
    """Returns five rows: X; X with a token changed; two documents and padding; each of them with padding.

    The documents are the first 5 tokens of X, and OTHER. Not packed: the third row lacks the second document.
    """
    x = np.full((5, LENGTH, WIDTH), padding, np.float32)
    segments = np.zeros((5, LENGTH), np.int32)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (5, LENGTH)).copy()
    x[0] = x[1] = X
    x[1, 7, 0] += 1.0
    segments[:2] = 1
    x[2, :5], x[2, 5:9] = X[:5], OTHER
    segments[2, :5], segments[2, 5:9] = 1, 2
    positions[2, 5:] -= 5
    x[3, :5], segments[3, :5] = X[:5], 1
    x[4, :4], segments[4, :4] = OTHER, 1
    if not packed:
        x[2, 5:], segments[2, 5:] = padding, 0
    return jnp.asarray(x), Tokens(jnp.asarray(positions), jnp.asarray(segments))


@functools.cache
def outputs(case: Case, causal: bool) -> dict[str, np.ndarray]:
    """Returns the output of the rows, by what their padding holds."""
    stack, params = case.stack(causal=causal), parameters(case, causal)
    run = jax.jit(lambda x, tokens: stack.apply({"params": params}, x, Context(tokens))[0])
    return {
        str(padding): np.asarray(run(*rows(padding, packed=case.mechanism.packed)))
        for padding in (0.0, np.nan)
    }


def check_outputs(case: Case, causal: bool) -> None:
    out = outputs(case, causal)["0.0"]
    real = np.asarray(rows(0.0, packed=case.mechanism.packed)[1].segments) != 0
    # Padding may hold NaN; packed documents are what they are alone.
    np.testing.assert_array_equal(outputs(case, causal)["nan"][real], out[real])
    np.testing.assert_allclose(out[2, :5], out[3, :5], atol=3e-5, rtol=3e-5)
    if case.mechanism.packed:
        np.testing.assert_allclose(out[2, 5:9], out[4, :4], atol=3e-5, rtol=3e-5)
    changed = np.abs(out[1] - out[0]).max(-1)
    assert changed[7] > 1e-6 and changed[8:].max() > 1e-6
    if causal:
        np.testing.assert_array_equal(out[1, :7], out[0, :7])
        np.testing.assert_allclose(out[3, :5], out[0, :5], atol=3e-5, rtol=3e-5)
    else:
        assert changed[:7].max() > 1e-6


@pytest.mark.parametrize("case", mark(DECODERS, COMBINED), ids=str)
def test_in_a_decoder(case):
    check_outputs(case, causal=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", ENCODERS, ids=str)
def test_in_an_encoder(case):
    check_outputs(case, causal=False)


@pytest.mark.slow
@pytest.mark.parametrize("case", OWN_MODULE + COMBINED[:3], ids=str)
def test_gradients_are_finite_and_leave_padding_alone(case):
    causal = case.mechanism.decoder
    stack, params = case.stack(causal=causal), parameters(case, causal)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def run(params, x, tokens):
        out, _ = stack.apply({"params": params}, x, Context(tokens))
        return (jnp.where((tokens.segments != 0)[:, :, None], out, 0.0) * COTANGENT).sum()

    x, tokens = rows(0.0, packed=case.mechanism.packed)
    dparams, dx = run(params, x, tokens)
    assert not np.asarray(dx)[np.asarray(tokens.segments) == 0].any()
    for leaf in jax.tree.leaves(dparams):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0
    jax.tree.map(
        np.testing.assert_array_equal, run(params, *rows(1e4, packed=case.mechanism.packed)), (dparams, dx)
    )


@pytest.mark.parametrize("case", mark(DECODERS, COMBINED + RECURRENT), ids=str)
def test_a_prompt_and_then_a_token_at_a_time_is_all_at_once(case):
    """Prompts of 2 and 5 tokens in rows of 6, then one token at a time."""
    stack, params = case.stack(causal=True), parameters(case, True)
    want, lengths = outputs(case, True)["0.0"][:2], np.array([2, 5])
    x = rows(0.0)[0][:2]
    cache, slots = empty_cache(stack.specs, LAYERS, 2, 6 + 7, jnp.dtype("float32"))

    @jax.jit
    def run(x, positions, cache, slots):
        slots = slots.write(positions)
        out, cache = stack.apply({"params": params}, x, Context(Tokens(positions), slots=slots), cache)
        return out, cache, slots

    index = np.arange(6)
    positions = jnp.asarray(np.where(index < lengths[:, None], index, ABSENT), jnp.int32)
    got, cache, slots = run(x[:, :6], positions, cache, slots)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(got[row, :length], want[row, :length], atol=5e-5, rtol=5e-5)
    for step in range(7):
        here = lengths + step
        got, cache, slots = run(
            x[np.arange(2), here][:, None], jnp.asarray(here, jnp.int32)[:, None], cache, slots
        )
        np.testing.assert_allclose(got[:, 0], want[np.arange(2), here], atol=5e-5, rtol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", [PLAIN[0], RECURRENT[-1], COMBINED[-1]], ids=str)
def test_unrolled_is_scanned(case):
    causal = case.mechanism.decoder
    x, tokens = rows(0.0, packed=case.mechanism.packed)
    run = jax.jit(case.stack(causal=causal, depth="unroll").apply)
    got, _ = run({"params": parameters(case, causal)}, x, Context(tokens))
    real = np.asarray(tokens.segments) != 0
    np.testing.assert_allclose(
        np.asarray(got)[real], outputs(case, causal)["0.0"][real], atol=2e-5, rtol=2e-5
    )


def errors_of_bfloat16(case: Case) -> np.ndarray:
    """Returns the relative error of each real token."""
    causal = case.mechanism.decoder
    x, tokens = rows(0.0, packed=case.mechanism.packed)
    run = jax.jit(case.stack(causal=causal).apply)
    got, _ = run({"params": parameters(case, causal)}, x.astype(jnp.bfloat16), Context(tokens))
    real, want = np.asarray(tokens.segments) != 0, outputs(case, causal)["0.0"]
    error = np.linalg.norm(np.asarray(got, np.float32) - want, axis=-1)
    return (error / np.linalg.norm(want, axis=-1))[real]


@pytest.mark.slow
@pytest.mark.parametrize("case", SOFTMAX[1:], ids=str)
def test_bfloat16_is_as_good_as_for_softmax(case):
    # Where a choice is discrete rounding may turn it, and some tokens then read others: most do not.
    discrete = isinstance(case.mechanism, MoBA | NSA | Reformer)
    average = np.median if discrete else lambda x: np.sqrt(np.square(x).mean())
    assert average(errors_of_bfloat16(case)) < 2 * average(errors_of_bfloat16(PLAIN[0]))


@pytest.mark.parametrize("cls", [cls for cls in typing.get_args(Single) if cls.cross])
def test_a_memory_is_read_as_an_encoder_reads_its_own_tokens(cls):
    spec = AttentionSpec(Case(cls()).geometry, cls(), engine="reference")
    layer = mixer(spec, "layer")
    x = jnp.asarray(np.stack([X, X[::-1]]))
    tokens = Tokens.of_lengths(jnp.array([LENGTH, 5], jnp.int32), LENGTH)
    params = jax.jit(layer.init)(jax.random.key(0), x, tokens)
    own, _ = jax.jit(layer.apply)(params, x, tokens)
    # Two rows read each memory, of which the state is kept; padding and, later, all of it may hold NaN.
    twice = functools.partial(jnp.repeat, repeats=2, axis=0)
    rows = Tokens(tokens.positions, twice(tokens.segments))
    noisy = jnp.where((tokens.segments == 0)[:, :, None], jnp.nan, x)
    read = jax.jit(functools.partial(layer.apply, memory_tokens=tokens))
    first, state = read(params, twice(x), rows, memory=noisy)
    again, _ = read(params, twice(x), rows, memory=jnp.full_like(x, jnp.nan), projected=state)
    real = np.asarray(rows.segments) != 0
    for out in (first, again):
        np.testing.assert_allclose(np.asarray(out)[real], np.asarray(twice(own))[real], atol=2e-5)
