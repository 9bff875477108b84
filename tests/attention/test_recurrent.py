"""The chunked engine of linear attention against its recurrence, and the properties it must have."""

from __future__ import annotations

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recurrence_oracle import recurrence

from research.attention.masks import ABSENT, Tokens
from research.attention.recurrent import both_ways, read, recurrent, unit_lower_inverse, written

BATCH, LENGTH, HEADS, KEYS, VALUES, CHUNK = 2, 37, 2, 4, 3, 16
SEGMENTS = np.stack(
    [np.repeat([1, 2, 0, 2, 3], [9, 6, 3, 4, 15]), np.repeat([0, 4, 1, 5, 0], [5, 11, 1, 17, 3])]
).astype(np.int32)
DECAYS = {
    "none": None,
    "fixed": (HEADS,),
    "scalar": (BATCH, LENGTH, HEADS),
    "vector": (BATCH, LENGTH, HEADS, KEYS),
}
CASES = [(decay, rule) for decay in DECAYS for rule in ("additive", "delta", "removal")]


def cases(*fast: tuple[str, str]) -> pytest.MarkDecorator:
    """Runs a test on every case, those but ``fast`` marked slow: each compiles programs of its own."""
    marked = [case if case in fast else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
    return pytest.mark.parametrize(("decay", "rule"), marked)


FAST = cases(("none", "additive"), ("scalar", "delta"), ("vector", "removal"))
NAMES = ("q", "k", "v", "log_decay", "strength", "state", "removed", "erased")


def inputs(decay: str, rule: str, strong: float = 0.5, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns q, k of unit length, v, state, and log decay, strength and removal where the case has them."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    shape = (BATCH, LENGTH, HEADS)
    k = normal(*shape, KEYS)
    arrays = {
        "q": normal(*shape, KEYS), "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": normal(*shape, VALUES), "state": normal(BATCH, HEADS, KEYS, VALUES),
    }  # fmt: skip
    if DECAYS[decay] is not None:
        arrays["log_decay"] = -strong * np.abs(normal(*DECAYS[decay]))
    if rule == "delta":
        arrays["strength"] = rng.uniform(0, 2, shape).astype(np.float32)
    if rule == "removal":
        removed = normal(*shape, KEYS)
        arrays["removed"] = removed / np.linalg.norm(removed, axis=-1, keepdims=True)
        arrays["erased"] = arrays["removed"] * rng.uniform(0, 1, (*shape, KEYS)).astype(np.float32)
    return arrays


def cotangents() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(9)
    shapes = (BATCH, LENGTH, HEADS, VALUES), (BATCH, HEADS, KEYS, VALUES)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def tokens(segments: np.ndarray = SEGMENTS) -> Tokens:
    index = np.arange(segments.shape[1], dtype=np.int32)
    return Tokens(jnp.asarray(np.broadcast_to(index, segments.shape)), jnp.asarray(segments))


def call(arrays, tokens=None, chunk=CHUNK):
    q, k, v, log_decay, strength, state, *removal = (arrays.get(name) for name in NAMES)
    return recurrent(
        q, k, v, log_decay=log_decay, strength=strength, tokens=tokens, state=state, chunk=chunk,
        removal=None if removal[0] is None else tuple(removal),
    )  # fmt: skip


@jax.jit
def with_gradients(arrays, cotangents):
    """Returns output, last state, and gradients by name: one program per case, whatever is asked of it."""
    (out, state), pull = jax.vjp(functools.partial(call, tokens=tokens()), arrays)
    return out, state, pull(cotangents)[0]


def assert_near(got, want, tolerance=2e-6):
    """Within ``tolerance`` of the greatest magnitude (at least 1) of what is wanted."""
    scale = max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0, atol=tolerance * scale)


@FAST
@pytest.mark.parametrize("strong", [0.05, 3.0, 60.0])
def test_equals_the_recurrence_and_its_gradients(decay, rule, strong):
    arrays = inputs(decay, rule, strong)
    out, state, gradients = with_gradients(arrays, cotangents())
    want = recurrence(**arrays, segments=SEGMENTS, cotangents=cotangents())
    assert_near(out, want.out)
    assert_near(state, want.state)
    for name, gradient in gradients.items():
        assert_near(gradient, want.gradients[name], 5e-6)


@pytest.mark.parametrize(("decay", "rule"), [("scalar", "delta"), ("vector", "delta")])
def test_weak_decay_after_strong_keeps_its_digits(decay, rule):
    """Differences of sums over a chunk would be off by 1e-4 here; and log decay may be -inf."""
    arrays = inputs(decay, rule, 0.01)
    arrays["log_decay"][:, 3:12] = -90.0
    arrays["log_decay"][:, 20] = -np.inf
    out, state, gradients = with_gradients(arrays, cotangents())
    with np.errstate(invalid="ignore"):
        want = recurrence(**arrays, segments=SEGMENTS, cotangents=cotangents())
    assert_near(out, want.out)
    assert_near(state, want.state)
    for name, gradient in gradients.items():
        assert_near(gradient, want.gradients[name], 5e-6)


@FAST
def test_padding_may_hold_anything_and_reads_nothing(decay, rule):
    arrays = inputs(decay, rule)
    clean = with_gradients(arrays, cotangents())
    padding = SEGMENTS == 0
    for name in ("q", "k", "v", "strength", "log_decay", "removed", "erased"):
        if name in arrays and arrays[name].ndim > 2:
            arrays[name][padding] = np.nan
    jax.tree.map(np.testing.assert_array_equal, with_gradients(arrays, cotangents()), clean)
    out, _, gradients = clean
    assert not np.asarray(out)[padding].any()
    assert not any(np.asarray(gradients[name])[padding].any() for name in ("q", "k", "v"))


@FAST
def test_the_future_and_other_documents_change_nothing(decay, rule):
    arrays = inputs(decay, rule)
    before = np.asarray(with_gradients(arrays, cotangents())[0])
    for now in (0, 7, 8, 20, 35):
        later = {
            name: np.where((np.arange(LENGTH) > now).reshape(1, -1, *(1,) * (x.ndim - 2)), x * 1.5, x)
            if x.ndim > 2 and name != "state" else x
            for name, x in arrays.items()
        }  # fmt: skip
        after = np.asarray(with_gradients(later, cotangents())[0])
        np.testing.assert_array_equal(after[:, : now + 1], before[:, : now + 1])
    assert (after != before).any()


@cases()
def test_chunks_of_any_size_and_steps_are_the_same(decay, rule):
    """All at once in chunks of another size; or a prompt with padding behind it, then a token at a time."""
    arrays = inputs(decay, rule)
    want = recurrence(**arrays)
    out, state = jax.jit(functools.partial(call, chunk=64))(arrays)
    assert_near(out, want.out)
    assert_near(state, want.state)

    def part(start, stop):
        return {name: x[:, start:stop] if x.ndim > 2 and name != "state" else x for name, x in arrays.items()}

    # Padding as decoding has it: at a position that no token has.
    prompt = part(0, 24)
    positions = np.where(np.arange(24) < 21, np.arange(24), ABSENT).astype(np.int32)[None]
    prompt["v"][:, 21:] = np.nan
    out, state = jax.jit(call)(prompt, Tokens(jnp.asarray(positions)))
    assert_near(out[:, :21], recurrence(**inputs(decay, rule)).out[:, :21])
    arrays, step = inputs(decay, rule), jax.jit(call)
    for t in range(21, LENGTH):
        out, state = step(part(t, t + 1) | {"state": state})
        assert_near(out[:, 0], want.out[:, t], 5e-6)
    assert_near(state, want.state, 5e-6)


@cases()
@pytest.mark.parametrize("length", [5, 17])
def test_any_length(decay, rule, length):
    arrays = {
        name: x[:, :length] if x.ndim > 2 and name != "state" else x
        for name, x in inputs(decay, rule).items()
    }
    out, state = jax.jit(call)(arrays)
    want = recurrence(**arrays)
    assert_near(out, want.out)
    assert_near(state, want.state)


def naive(q, k, v, log_decay, strength, removed, erased):
    """The recurrence with every step in the dtype of its inputs."""

    def step(state, token):
        q, k, v, decay, strength, removed, erased = token
        state = decay[..., None] * state
        error = v if strength is None else strength[..., None] * (v - jnp.einsum("bhkv,bhk->bhv", state, k))
        less = 0 if removed is None else jnp.einsum("bhkv,bhk,bhn->bhnv", state, removed, erased)
        state = state + k[..., None] * error[..., None, :] - less
        return state, jnp.einsum("bhkv,bhk->bhv", state, q)

    decay = jnp.zeros((BATCH, LENGTH, HEADS, 1), q.dtype)
    if log_decay is not None:
        shaped = log_decay[None, None] if log_decay.ndim == 1 else log_decay
        shaped = shaped[..., None] if shaped.ndim == 3 else shaped
        decay = decay + shaped.astype(q.dtype)
    inputs = (q, k, v, jnp.exp(decay), strength, removed, erased)
    every = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), inputs)
    first = jnp.zeros((BATCH, HEADS, KEYS, VALUES), q.dtype)
    return jnp.moveaxis(jax.lax.scan(step, first, every)[1], 0, 1)


@cases()
def test_bfloat16_errs_at_most_twice_as_much_as_the_naive_recurrence(decay, rule):
    """Root mean square over four draws, of output and gradients."""

    def outcome(function):
        def run(arrays, cotangent):
            out, pull = jax.vjp(function, arrays)
            assert out.dtype == jnp.bfloat16
            return {"out": out} | pull(cotangent)[0]

        return jax.jit(run)

    functions = {"ours": outcome(lambda arrays: call(arrays)[0]), "naive": outcome(lambda x: naive(**x))}
    cotangent = jnp.asarray(cotangents()[0], jnp.bfloat16)
    of_state = np.zeros((BATCH, HEADS, KEYS, VALUES))
    squares = {name: collections.Counter() for name in functions}
    for seed in range(4):
        arrays = inputs(decay, rule, 0.1, seed)
        del arrays["state"]
        half = {name: jnp.asarray(x, jnp.bfloat16) for name, x in arrays.items()}
        half = dict.fromkeys(("log_decay", "strength", "removed", "erased")) | half
        exact = {name: None if x is None else np.asarray(x, np.float64) for name, x in half.items()}
        want = recurrence(**exact, cotangents=(np.asarray(cotangent, np.float64), of_state))
        wanted = {"out": want.out} | want.gradients
        for side, function in functions.items():
            for name, x in function(half, cotangent).items():
                if x is not None:
                    squares[side][name] += float(np.mean((np.asarray(x, np.float64) - wanted[name]) ** 2))
    assert all(squares["ours"][name] <= 4 * squares["naive"][name] for name in squares["ours"]), squares


def pairs(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Both passes by the oracle: forwards, and backwards on what is turned round."""
    turned = {name: x if x.ndim < 3 or name == "state" else x[:, ::-1] for name, x in arrays.items()}
    back = recurrence(**turned, segments=SEGMENTS[:, ::-1]).out[:, ::-1]
    return recurrence(**arrays, segments=SEGMENTS).out + back


@cases(("scalar", "additive"))
def test_both_ways(decay, rule):
    arrays = inputs(decay, rule)
    del arrays["state"]
    want = pairs(arrays)
    if rule == "additive":  # where a pair counts once
        itself = (arrays["q"] * arrays["k"]).sum(-1, keepdims=True) * arrays["v"]
        want = want - np.where((SEGMENTS != 0)[:, :, None, None], itself, 0)
    q, k, v, log_decay, strength, _, *removal = (arrays.get(name) for name in NAMES)
    run = jax.jit(functools.partial(both_ways, tokens=tokens(), chunk=CHUNK))
    removal = None if removal[0] is None else tuple(removal)
    assert_near(run(q, k, v, log_decay=log_decay, strength=strength, removal=removal), want, 5e-6)


def test_both_ways_without_decay_is_the_sum_over_the_document():
    arrays = inputs("none", "additive")
    same = (SEGMENTS[:, :, None] == SEGMENTS[:, None]) & (SEGMENTS != 0)[:, None]
    scores = np.einsum("bihd,bjhd->bijh", arrays["q"], arrays["k"]) * same[..., None]
    q, k, v = (arrays[name] for name in ("q", "k", "v"))
    got = jax.jit(functools.partial(both_ways, tokens=tokens(), chunk=CHUNK))(q, k, v)
    assert_near(got, np.einsum("bijh,bjhv->bihv", scores, v))
    # Over a memory: all its real tokens, whatever their document.
    scores = np.einsum("bihd,bjhd->bijh", q[:, :5], k) * (SEGMENTS != 0)[:, None, :, None]
    noisy = np.where((SEGMENTS == 0)[:, :, None, None], np.nan, v)
    got = read(jnp.asarray(q[:, :5]), written(jnp.asarray(k), jnp.asarray(noisy), tokens()))
    assert_near(got, np.einsum("bijh,bjhv->bihv", scores, v))


@pytest.mark.parametrize(("decay", "rule"), CASES)
def test_only_chunks_are_looped_over(decay, rule):
    program = jax.make_jaxpr(lambda arrays: jax.vjp(call, arrays)[1](cotangents()))(inputs(decay, rule))
    lengths = [int(length) for length in re.findall(r"\blength=(\d+)", str(program))]
    assert lengths == [-(-LENGTH // CHUNK)] * 2  # forward, backward
    assert "while[" not in str(program)


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_inverse_of_a_unit_triangle(size):
    """Of ones (the same key again and again, strength 1), where powers of the triangle would be vast."""
    rng = np.random.default_rng(size)
    below = np.stack([np.tri(size, k=-1), rng.uniform(-1, 1, (size, size)) * np.tri(size, k=-1) / 4])
    below = below.astype(np.float32).reshape(2, 1, 1, size, size)
    want = np.linalg.inv(np.eye(size) + below.astype(np.float64))
    np.testing.assert_allclose(unit_lower_inverse(jnp.asarray(below)), want, atol=2e-5)


def test_misuse_is_refused():
    arrays = jax.tree.map(jnp.asarray, inputs("none", "delta"))
    with pytest.raises(ValueError, match="chunks of 24 tokens: a power of two"):
        call(arrays, chunk=24)
    with pytest.raises(ValueError, match="under the delta rule a token reads what it writes"):
        recurrent(arrays["q"], arrays["k"], arrays["v"], strength=arrays["strength"], itself=False)
    with pytest.raises(ValueError, match="a strength or a removal, not both"):
        call(arrays | {"removed": arrays["k"], "erased": arrays["k"]})


@pytest.mark.slow
@pytest.mark.parametrize("decay", ["none", "vector"])
def test_the_delta_rule_is_the_removal_of_what_its_key_reads(decay):
    arrays = jax.tree.map(jnp.asarray, inputs(decay, "delta"))
    want = call(arrays, tokens())
    strength = arrays.pop("strength")
    arrays["removed"], arrays["erased"] = arrays["k"], arrays["k"] * strength[..., None]
    arrays["k"] = arrays["erased"]
    jax.tree.map(assert_near, call(arrays, tokens()), want)
