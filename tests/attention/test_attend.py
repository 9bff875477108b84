"""``attend`` against its definition and against the properties that every engine must have."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_oracle import dense, softmax_attention
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from research.attention import (
    BlockMask,
    Causal,
    DilatedWindow,
    Everything,
    Fixed,
    Global,
    Present,
    RandomBlocks,
    SameSegment,
    Strided,
    Tokens,
    Window,
    attend,
)

LEAVES = st.sampled_from(
    [
        Everything(), Causal(), Window(2), Window(0, 1), Window(1, 3), SameSegment(), Present(),
        DilatedWindow(1, 2, 2), Global(1), Global(1, (4,)), Strided(3), Fixed(3, 1),
        BlockMask(2, ((0, 1), (), (3, 0), (1,))), RandomBlocks(2, 1, 8),
        RandomBlocks(3, 2, 9, 1, causal=True),
    ]
)  # fmt: skip
MASKS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
    ),
    max_leaves=4,
)
ENGINES = ["reference", "flash"]
LENGTHS = st.sampled_from([1, 2, 3, 5, 8])


def arrays(seed, batch, q_len, kv_len, heads, kv_heads, head_dim=4, value_dim=4, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = (q_len, heads, head_dim), (kv_len, kv_heads, head_dim), (kv_len, kv_heads, value_dim)
    return tuple(jnp.asarray(rng.normal(size=(batch, *shape)), dtype) for shape in shapes)


def attend_and_gradients(q, k, v, cotangent, **options):
    """Returns the output and the gradients of q, k and v, jitted together: one compilation per example."""

    def both(q, k, v):
        out, pull = jax.vjp(functools.partial(attend, **options), q, k, v)
        return out, pull(cotangent)

    return jax.tree.map(np.asarray, jax.jit(both)(q, k, v))


@st.composite
def tokens(draw, batch, length, segments):
    positions = draw(st.lists(st.integers(0, 9), min_size=batch * length, max_size=batch * length))
    ids = draw(st.lists(st.integers(0, 2), min_size=batch * length, max_size=batch * length))
    shape = (batch, length)
    return Tokens(
        jnp.array(positions, jnp.int32).reshape(shape),
        jnp.array(ids, jnp.int32).reshape(shape) if segments else None,
    )


@st.composite
def requests(draw):
    batch, q_len, kv_len = draw(st.integers(1, 2)), draw(LENGTHS), draw(LENGTHS)
    heads, kv_heads = draw(st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]))
    segments = draw(st.booleans())
    options = {
        "mask": draw(MASKS),
        "q_tokens": draw(tokens(batch, q_len, segments)),
        "kv_tokens": draw(tokens(batch, kv_len, segments)),
        "scale": draw(st.sampled_from([None, 0.3, 2.0])),
        "soft_cap": draw(st.sampled_from([None, None, 1.5, 30.0])),
        "engine": draw(st.sampled_from(ENGINES)),
    }
    value_dim = draw(st.sampled_from([4, 1, 6]))
    return arrays(
        draw(st.integers(0, 99)), batch, q_len, kv_len, heads, kv_heads, value_dim=value_dim
    ), options


def real(tokens, batch):
    """Returns [batch, length] booleans: which tokens are not padding."""
    if tokens.segments is None:
        return np.ones((batch, tokens.length), bool)
    return np.broadcast_to(np.asarray(tokens.segments) != 0, (batch, tokens.length))


def admitted(mask, q_tokens, kv_tokens, batch):
    """Returns the mask's pairs of which neither token is padding."""
    neither = real(q_tokens, batch)[:, :, None] & real(kv_tokens, batch)[:, None, :]
    return dense(mask, q_tokens, kv_tokens, batch) & neither


@settings(max_examples=20)
@given(requests())
def test_equals_the_oracle_forward_and_backward(request):
    (q, k, v), options = request
    batch = q.shape[0]
    cotangent = np.random.default_rng(5).normal(size=(*q.shape[:3], v.shape[-1])).astype(np.float32)
    allowed = admitted(options["mask"], options["q_tokens"], options["kv_tokens"], batch)
    want, want_gradients = softmax_attention(
        q, k, v, allowed, scale=options["scale"], soft_cap=options["soft_cap"], cotangent=cotangent
    )
    # Padding holds NaN: neither the output nor any gradient may know.
    q, k, v = (
        np.where(real(options[name], batch)[:, :, None, None], x, np.float32(np.nan))
        for name, x in (("q_tokens", q), ("kv_tokens", k), ("kv_tokens", v))
    )
    out, gradients = attend_and_gradients(q, k, v, cotangent, **options)
    np.testing.assert_allclose(out, want, atol=3e-6, rtol=3e-5)
    for got, expected in zip(gradients, want_gradients[:3], strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-4)
    nothing = ~allowed.any(-1)
    assert not out[nothing].any() and not gradients[0][nothing].any()
    nobody = ~allowed.any(1)
    assert not gradients[1][nobody].any() and not gradients[2][nobody].any()


def test_default_tokens_are_one_document_in_order():
    q, k, v = arrays(0, 2, 7, 7, 4, 2)
    places = Tokens.arange(7)
    np.testing.assert_array_equal(
        attend(q, k, v, mask=Causal()), attend(q, k, v, mask=Causal(), q_tokens=places, kv_tokens=places)
    )
    want, _ = softmax_attention(q, k, v, np.broadcast_to(np.tril(np.ones((7, 7), bool)), (2, 7, 7)))
    np.testing.assert_allclose(attend(q, k, v, mask=Causal()), want, atol=3e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mask", [~Everything(), Window(-1), Causal() & Window(1, 3) & ~Window(1, 3)])
def test_rows_without_any_key_are_zero_with_zero_gradient(mask, engine):
    q, k, v = arrays(1, 2, 5, 5, 2, 1)
    out, gradients = attend_and_gradients(q, k, v, np.ones_like(q), mask=mask, engine=engine)
    assert not out.any() and not any(g.any() for g in gradients)


@pytest.mark.parametrize("engine", ENGINES)
def test_large_scores_stay_finite(engine):
    q, k, v = arrays(2, 1, 4, 4, 1, 1)
    out, gradients = attend_and_gradients(q * 1e4, k * 1e4, v, np.ones_like(q), mask=Causal(), engine=engine)
    best = np.asarray(softmax_attention(q * 1e4, k * 1e4, v, np.tril(np.ones((1, 4, 4), bool)))[0])
    np.testing.assert_allclose(out, best, rtol=1e-5)
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mask", [Causal(), Causal() & Window(2), Causal() & SameSegment()])
def test_the_future_changes_nothing(mask, engine):
    q, k, v = arrays(3, 2, 9, 9, 4, 2)
    places = Tokens(Tokens.arange(9).positions, jnp.array([[1] * 5 + [2] * 4, [1] * 9], jnp.int32))
    run = jax.jit(functools.partial(attend, mask=mask, q_tokens=places, kv_tokens=places, engine=engine))
    before = np.asarray(run(q, k, v))
    for now in range(9):
        changed = [np.where(np.arange(9)[:, None, None] > now, np.float32(1e3), x) for x in (q, k, v)]
        after = np.asarray(run(*changed))
        np.testing.assert_array_equal(after[:, : now + 1], before[:, : now + 1])
    assert now == 8 and (np.asarray(run(q, k, v + 1)) != before).any()


@pytest.mark.parametrize("engine", ENGINES)
def test_packed_equals_separate(engine):
    lengths = [1, 4, 3]
    packed = arrays(4, 1, 9, 9, 2, 2)  # the last token is padding
    positions = np.concatenate([np.arange(n) for n in lengths] + [[0]])[None]
    segments = np.repeat([1, 2, 3, 0], [*lengths, 1])[None]
    places = Tokens(jnp.asarray(positions, jnp.int32), jnp.asarray(segments, jnp.int32))
    out = attend(*packed, mask=Causal() & SameSegment(), q_tokens=places, engine=engine)
    start = 0
    for n in lengths:
        alone = attend(*(x[:, start : start + n] for x in packed), mask=Causal(), engine="reference")
        np.testing.assert_allclose(out[:, start : start + n], alone, atol=1e-6)
        start += n
    assert not np.asarray(out[:, -1]).any()


@pytest.mark.parametrize("kv_heads", [1, 2, 3])
def test_grouped_heads_equal_repeated_heads(kv_heads):
    q, k, v = arrays(5, 2, 6, 6, 6, kv_heads)
    repeated = [np.repeat(x, 6 // kv_heads, axis=2) for x in (k, v)]
    cotangent = arrays(6, 2, 6, 6, 6, 6)[0]
    out, (dq, dk, dv) = attend_and_gradients(q, k, v, cotangent, mask=Causal())
    want, (want_dq, *wants) = attend_and_gradients(q, *repeated, cotangent, mask=Causal())
    np.testing.assert_allclose(out, want, atol=1e-6)
    np.testing.assert_allclose(dq, want_dq, atol=1e-6)
    for got, expected in zip((dk, dv), wants, strict=True):
        np.testing.assert_allclose(got, expected.reshape(2, 6, kv_heads, -1, 4).sum(3), atol=3e-6)


def naive(q, k, v, allowed):
    """Attention with every step in the dtype of its inputs."""
    group = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, group, axis=2), jnp.repeat(v, group, axis=2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    scores = jnp.where(allowed[:, None], scores, jnp.asarray(-1e30, q.dtype))
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("length", "head_dim"), [(16, 16), (65, 40), (256, 16)])
def test_bfloat16_errs_at_most_twice_as_much_as_naive_attention(length, head_dim, engine):
    half = [jnp.asarray(x, jnp.bfloat16) for x in arrays(7, 1, length, length, 4, 2, head_dim, head_dim)]
    cotangent = jnp.asarray(arrays(8, 1, length, length, 4, 2, head_dim, head_dim)[0], jnp.bfloat16)
    allowed = np.tril(np.ones((1, length, length), bool))
    exact, exact_gradients = softmax_attention(
        *(np.asarray(x, np.float64) for x in half), allowed, cotangent=np.asarray(cotangent, np.float64)
    )

    def errors(function):
        out, pull = jax.vjp(function, *half)
        assert out.dtype == jnp.bfloat16
        found, wanted = (out, *pull(cotangent)), (exact, *exact_gradients[:3])
        return [np.abs(np.asarray(x, np.float64) - y).max() for x, y in zip(found, wanted, strict=True)]

    ours = errors(jax.jit(functools.partial(attend, mask=Causal(), engine=engine)))
    theirs = errors(jax.jit(functools.partial(naive, allowed=allowed)))
    assert all(a <= 2 * b for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


def test_differentiable_twice_and_in_both_modes():
    q, k, v = arrays(9, 1, 3, 3, 2, 1, head_dim=2, value_dim=2)
    places = Tokens.of_lengths(jnp.array([2], jnp.int32), 3)  # with a padded token: a row without keys
    function = functools.partial(
        attend, mask=Causal() & SameSegment(), q_tokens=places, kv_tokens=places, soft_cap=2.0,
        engine="reference",
    )  # fmt: skip
    # Under jit: the checker's NumPy arrays arrive as JAX's.
    check_grads(jax.jit(function), (q, k, v), order=2, modes=("fwd", "rev"), atol=2e-2, rtol=2e-2)


def test_hessian_vector_product_equals_differences_of_the_oracle_gradient():
    q, k, v = arrays(10, 2, 5, 5, 2, 1)
    cotangent, *_ = arrays(11, 2, 5, 5, 2, 1)
    directions = arrays(12, 2, 5, 5, 2, 1)
    allowed = np.broadcast_to(np.tril(np.ones((5, 5), bool)), (2, 5, 5))

    def oracle(step):
        moved = [
            np.asarray(x, np.float64) + step * np.asarray(d)
            for x, d in zip((q, k, v), directions, strict=True)
        ]
        return softmax_attention(*moved, allowed, cotangent=cotangent)[1]

    def loss(q, k, v):
        return (attend(q, k, v, mask=Causal(), engine="reference") * cotangent).sum()

    gradient = jax.grad(loss, argnums=(0, 1, 2))
    _, ours = jax.jit(lambda: jax.jvp(gradient, (q, k, v), directions))()
    for got, above, below in zip(ours, oracle(1e-5)[:3], oracle(-1e-5)[:3], strict=True):
        np.testing.assert_allclose(got, (above - below) / 2e-5, atol=2e-5, rtol=1e-4)


def test_misfits_are_refused():
    q, k, v = arrays(13, 1, 3, 5, 4, 3)
    with pytest.raises(ValueError, match="4 query heads are no multiple of 3"):
        attend(q, k, v)
    q, k, v = arrays(13, 1, 3, 5, 4, 2)
    with pytest.raises(ValueError, match="3 queries and 5 keys: their positions must be given"):
        attend(q, k, v, mask=Causal())
    assert attend(q, k, v).shape == (1, 3, 4, 4)
