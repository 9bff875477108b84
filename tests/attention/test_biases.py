"""Score biases against their papers' definitions, one pair at a time, and tiles against the whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention import Tokens, attend
from research.attention.biases import (
    AlibiBias,
    BucketBias,
    ForgettingBias,
    LineageBias,
    alibi_slopes,
    buckets,
)

RNG = np.random.default_rng(0)
Q = Tokens(jnp.array([[5, 0, 2], [1, 9, 30]], jnp.int32))
KV = Tokens(jnp.array([[0, 1, 2, 5], [9, 2, 40, 0]], jnp.int32))


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def pairs():
    for b, i, j in np.ndindex(2, 3, 4):
        yield b, i, j, int(KV.positions[b, j]) - int(Q.positions[b, i])


def test_slopes_are_the_papers():
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-h for h in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(16), [2.0 ** (-h / 2) for h in range(1, 17)], rtol=1e-6)
    # Of 12 heads: 8 heads' slopes, then every other one of 16 heads'.
    np.testing.assert_allclose(
        alibi_slopes(12), [2.0**-h for h in range(1, 9)] + [2.0 ** (-h / 2) for h in (1, 3, 5, 7)], rtol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("heads", [1, 3, 6, 8, 20, 25])
def test_slopes_are_blooms(heads):
    torch = pytest.importorskip("torch")
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    alibi = bloom.build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)
    np.testing.assert_allclose(alibi_slopes(heads), alibi[:, 0, 1].numpy(), rtol=1e-6)


def test_alibi_is_a_penalty_on_the_distance():
    slopes = draw(3)
    got = AlibiBias(slopes)(Q, KV)
    assert got.shape == (2, 3, 3, 4) and got.dtype == jnp.float32
    for b, i, j, distance in pairs():
        np.testing.assert_allclose(got[b, :, i, j], -np.asarray(slopes) * abs(distance), rtol=1e-6)


def t5_bucket(distance, count, most, bidirectional):
    """Returns the bucket by walking up from 0: the definition, in exact enough arithmetic."""
    offset, back = 0, max(-distance, 0)
    if bidirectional:
        count //= 2
        offset, back = (count if distance > 0 else 0), abs(distance)
    exact = count // 2
    if back < exact:
        return offset + back
    grown = np.log(np.float64(back) / exact) / np.log(most / exact) * (count - exact)
    return offset + min(exact + int(grown + 1e-9), count - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("count", "most"), [(32, 128), (8, 20), (6, 40)])
def test_buckets_are_t5s(count, most, bidirectional):
    distances = np.arange(-200, 201)
    got = np.asarray(buckets(jnp.asarray(distances, jnp.int32), count, most, bidirectional))
    assert got.tolist() == [t5_bucket(int(d), count, most, bidirectional) for d in distances]


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_hugging_face(bidirectional):
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    distances = np.arange(-3000, 3000)
    for count, most in ((32, 128), (16, 100), (32, 512)):
        got = np.asarray(buckets(jnp.asarray(distances, jnp.int32), count, most, bidirectional))
        theirs = t5.T5Attention._relative_position_bucket(torch.tensor(distances), bidirectional, count, most)
        assert got.tolist() == theirs.tolist()


@pytest.mark.parametrize("bidirectional", [True, False])
def test_bucket_bias_reads_its_table(bidirectional):
    table = draw(8, 3)
    got = BucketBias(table, 20, bidirectional)(Q, KV)
    assert got.shape == (2, 3, 3, 4) and got.dtype == jnp.float32
    for b, i, j, distance in pairs():
        np.testing.assert_array_equal(got[b, :, i, j], table[t5_bucket(distance, 8, 20, bidirectional)])


def test_forgetting_is_the_product_of_the_gates_in_between():
    gates = RNG.uniform(0.1, 1.0, size=(2, 5, 3))
    sums = jnp.asarray(np.cumsum(np.log(gates), axis=1), jnp.float32)
    tokens = Tokens.arange(5)
    got = np.exp(np.asarray(ForgettingBias(sums, sums)(tokens, tokens), np.float64))
    for b, h, i in np.ndindex(2, 3, 5):
        for j in range(i + 1):
            np.testing.assert_allclose(got[b, h, i, j], gates[b, j + 1 : i + 1, h].prod(), rtol=1e-5)


def every_bias():
    forgetting = ForgettingBias(draw(2, 3, 3), draw(2, 4, 3))
    alibi, bucket = AlibiBias(draw(3)), BucketBias(draw(8, 3), 20, True)
    return [alibi, bucket, forgetting, forgetting + alibi]


@pytest.mark.parametrize("bias", every_bias(), ids=lambda bias: type(bias).__name__)
def test_a_tile_is_a_part_of_the_whole(bias):
    whole = np.asarray(bias(Q, KV))
    q, kv = Tokens(Q.positions[:, 1:3]), Tokens(KV.positions[:, 1:4])
    tile = jax.jit(lambda b, i, j: b.rows(i, 2).columns(j, 3)(q, kv))(bias, jnp.int32(1), jnp.int32(1))
    np.testing.assert_allclose(tile, whole[:, :, 1:3, 1:4], rtol=1e-6)


def test_the_parameters_of_a_bias_get_gradients():
    q, k, v = draw(2, 3, 3, 4), draw(2, 4, 3, 4), draw(2, 4, 3, 4)
    alibi, bucket, forgetting, _ = every_bias()
    bias = alibi + bucket + forgetting

    def loss(bias):
        return jnp.square(attend(q, k, v, bias=bias, q_tokens=Q, kv_tokens=KV)).sum()

    direction = jax.tree.unflatten(
        jax.tree.structure(bias), [draw(*leaf.shape) for leaf in jax.tree.leaves(bias)]
    )
    gradient, want = jax.jit(lambda b, d: (jax.grad(loss)(b), jax.jvp(loss, (b,), (d,))[1]))(bias, direction)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    got = sum((np.asarray(g, np.float64) * np.asarray(d)).sum() for g, d in pairs)
    np.testing.assert_allclose(got, want, atol=1e-4)  # a sum of terms of about 5
    slopes, table, of_queries, of_keys = jax.tree.leaves(gradient)
    assert min(np.abs(slopes).max(), np.abs(table).max(), np.abs(of_keys).max()) > 1e-3
    assert np.abs(of_queries).max() < 1e-5  # a row's own sum is the same for all of its keys


def test_a_lineage_admits_the_keys_that_its_rows_hold():
    lineage = RNG.integers(0, 3, (2, 3, 4))
    bias = LineageBias.of(jnp.asarray(lineage, jnp.int32))
    got = np.asarray(bias(Q, KV))
    assert got.shape == (2, 1, 3, 12)
    for group, member, holder, slot in np.ndindex(2, 3, 3, 4):
        own = lineage[group, member, slot] == holder
        assert got[group, 0, member, holder * 4 + slot] == (0.0 if own else np.float32(-1e30))
    np.testing.assert_array_equal(bias.rows(1, 2).columns(5, 4)(Q, KV), got[:, :, 1:3, 5:9])
