"""Mechanisms with a module or a parameter of their own, against their papers' equations in float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention import chosen_blocks
from research.attention.block_choice import MoBA
from research.attention.hashing import Reformer, hashes
from research.attention.low_rank import Linformer
from research.attention.masks import Tokens
from research.attention.mechanisms import Differential, Forgetting, Geometry, Latent, Softmax
from research.attention.native_sparse import NSA
from research.attention.positions import Alibi, RelativeBias, Rotary, YaRN
from research.attention.recurrent_mechanisms import LinearTransformer, Mamba2
from research.attention.rwkv import RWKV7
from research.modules.attention import AttentionSpec
from research.modules.mixers import mixer

BATCH, LENGTH, WIDTH, HEADS, DIM = 2, 6, 12, 4, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(BATCH, LENGTH, WIDTH))
SEEN = np.tril(np.ones((LENGTH, LENGTH), bool))


def run(mechanism, positions=None, kv_heads=HEADS, causal=True):
    """Returns the output of a layer, and its parameters in float64."""
    geometry = Geometry(WIDTH, HEADS, kv_heads, DIM, context=9)
    module = mixer(AttentionSpec(geometry, mechanism, causal=causal, positions=positions), "layer")
    x = jnp.asarray(X, jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape) * 0.5, shapes)
    variables = {"params": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)}
    return np.asarray(jax.jit(module.apply)(variables, x)[0]), params


def linear(x, params, equation="blw,whd->blhd"):
    y = np.einsum(equation, x, params["kernel"])
    return y + params["bias"] if "bias" in params else y


def rms_norm(x, scale, epsilon=1e-5):
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + epsilon) * scale


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def weights(scores, sink=None):
    """Returns the causal softmax of [batch, heads, query, key] scores, with a sink logit per head."""
    powers = np.where(SEEN, np.exp(scores), 0.0)
    total = powers.sum(-1, keepdims=True)
    return powers / (total if sink is None else total + np.exp(sink)[None, :, None, None])


def projected(params):
    return (linear(X, params[name]) for name in ("query", "key", "value"))


def output(heads, params):
    return linear(heads, params["output"], "blhd,hdw->blw")


def turn(x, frequencies):
    """Returns x turned by its positions, pairs half a head apart."""
    angles = np.exp(1j * np.arange(LENGTH)[:, None] * frequencies)[None, :, None]
    z = (x[..., : len(frequencies)] + 1j * x[..., len(frequencies) :]) * angles
    return np.concatenate([z.real, z.imag], -1)


def check(got, want):
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5)


def test_softmax_with_everything():
    got, params = run(Softmax(qk_norm=True, soft_cap=2.0, sink=True, gate=True), Alibi(), kv_heads=2)
    q, k, v = projected(params)
    q, k = rms_norm(q, params["query_scale"]), rms_norm(k, params["key_scale"])
    k, v = np.repeat(k, 2, axis=2), np.repeat(v, 2, axis=2)
    scores = 2.0 * np.tanh(np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(DIM) / 2.0)
    place = np.arange(LENGTH)
    slopes = 2.0 ** (-2.0 * np.arange(1, HEADS + 1))
    scores -= slopes[:, None, None] * np.abs(place[:, None] - place[None])
    heads = np.einsum("bhij,bjhd->bihd", weights(scores, params["sink"]), v)
    check(got, output(heads * sigmoid(linear(X, params["output_gate"])), params))


def test_relative_bias_is_a_table_of_distances():
    got, params = run(Softmax(), RelativeBias(buckets=8, max_distance=100))
    q, k, v = projected(params)
    place = np.arange(LENGTH)
    bucket = np.minimum(np.maximum(place[:, None] - place[None], 0), 4)  # 4 and 5 share one
    scores = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(DIM) + params["relative_bias"][bucket].transpose(
        2, 0, 1
    )
    check(got, output(np.einsum("bhij,bjhd->bihd", weights(scores), v), params))


def test_yarn_makes_scores_colder():
    encoding = Rotary(scaling=YaRN(factor=16.0, context=10**6))
    got, params = run(Softmax(), encoding)
    q, k, v = projected(params)
    frequencies = np.array([1.0, 0.01])  # both turn more than 32 times in so long a context
    scores = np.einsum("bihd,bjhd->bhij", turn(q, frequencies), turn(k, frequencies)) / np.sqrt(DIM)
    scores *= (0.1 * np.log(16.0) + 1) ** 2
    check(got, output(np.einsum("bhij,bjhd->bihd", weights(scores), v), params))


def test_forgetting_is_the_papers():
    got, params = run(Forgetting(), kv_heads=2)
    q, k, v = projected(params)
    gates = sigmoid(linear(X, params["forget"], "blw,wh->blh"))
    scores = np.einsum("bihd,bjhd->bhij", q, np.repeat(k, 2, axis=2)) / np.sqrt(DIM)
    for i in range(LENGTH):
        for j in range(i):
            scores[:, :, i, j] += np.log(gates[:, j + 1 : i + 1].prod(axis=1))
    check(got, output(np.einsum("bhij,bjhd->bihd", weights(scores), np.repeat(v, 2, axis=2)), params))


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_differential_is_the_papers(kv_heads):
    got, params = run(Differential(initial=0.3), kv_heads=kv_heads)
    q, k, v = projected(params)
    dot = [params[f"lambda_query_{n}"] @ params[f"lambda_key_{n}"] for n in (1, 2)]
    lam = np.exp(dot[0]) - np.exp(dot[1]) + 0.3
    v = v.reshape(BATCH, LENGTH, kv_heads // 2, 2 * DIM)
    group, pairs = HEADS // kv_heads, []
    for pair in range(HEADS // 2):
        kv_pair, one = pair // group, pair % group
        maps = []
        for which in range(2):
            head = (2 * kv_pair + which) * group + one
            scores = np.einsum("bid,bjd->bij", q[:, :, head], k[:, :, 2 * kv_pair + which]) / np.sqrt(DIM)
            maps.append(weights(scores[:, None])[:, 0])
        read = np.einsum("bij,bjd->bid", maps[0] - lam * maps[1], v[:, :, kv_pair])
        pairs.append(rms_norm(read, params["pair_scale"]) * (1 - 0.3))
    check(got, output(np.stack(pairs, 2).reshape(BATCH, LENGTH, HEADS, DIM), params))


@pytest.mark.parametrize("positions", [Rotary(base=100.0), None])
@pytest.mark.parametrize("query_rank", [5, None])
def test_latent_is_deepseeks(positions, query_rank):
    got, params = run(Latent(rank=6, query_rank=query_rank, rotary_dim=2), positions)
    down = linear(X, params["latent"], "blw,wr->blr")
    latent, shared = rms_norm(down[..., :6], params["latent_norm"]["scale"]), down[..., None, 6:]
    source = X
    if query_rank is not None:
        source = linear(X, params["query_latent"], "blw,wr->blr")
        source = rms_norm(source, params["query_latent_norm"]["scale"])
    q = linear(source, params["query"])
    turned = q[..., DIM:]
    if positions is not None:
        turned, shared = turn(turned, np.ones(1)), turn(shared, np.ones(1))
    k, v = linear(latent, params["key"]), linear(latent, params["value"])
    scores = np.einsum("bihd,bjhd->bhij", q[..., :DIM], k)
    scores += np.einsum("bihd,bjd->bhij", turned, shared[:, :, 0])
    check(got, output(np.einsum("bhij,bjhd->bihd", weights(scores / np.sqrt(DIM + 2)), v), params))


def test_linformer_reads_mixtures_of_keys_and_values():
    got, params = run(Linformer(rank=3), kv_heads=2, causal=False)
    q, k, v = projected(params)
    mixture = params["mixture"][:, :LENGTH]
    k, v = (np.repeat(np.einsum("rl,blhd->brhd", mixture, x), 2, axis=2) for x in (k, v))
    powers = np.exp(np.einsum("bihd,brhd->bhir", q, k) / np.sqrt(DIM))
    heads = np.einsum("bhir,brhd->bihd", powers / powers.sum(-1, keepdims=True), v)
    check(got, output(heads, params))


def test_linformer_refuses_a_row_of_several_documents():
    module = mixer(AttentionSpec(Geometry(WIDTH, HEADS, HEADS, DIM, context=9), Linformer(rank=3)), "layer")
    segments = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 2, 2, 0]], np.int32)
    tokens = Tokens(jnp.arange(LENGTH, dtype=jnp.int32)[None], jnp.asarray(segments))
    x = jnp.asarray(X, jnp.float32)
    params = jax.jit(module.init)(jax.random.key(0), x)
    out = np.asarray(module.apply(params, x, tokens)[0])
    assert np.isfinite(out[0]).all() and np.isnan(out[1, :5]).all()


def test_reformer_reads_those_that_share_a_bucket():
    mechanism = Reformer(buckets=4, rounds=2, seed=3)
    got, params = run(mechanism)
    q, v = (linear(X, params[name]) for name in ("query", "value"))
    k = q / np.linalg.norm(q, axis=-1, keepdims=True)
    # Hashes by their definition: the nearest of the random directions and their opposites.
    directions = np.random.default_rng(3).normal(size=(DIM, 2, 2))
    turned = np.einsum("blhd,drc->blhrc", k, directions)
    buckets = np.concatenate([turned, -turned], -1).argmax(-1)
    np.testing.assert_array_equal(hashes(jnp.asarray(q, jnp.float32), mechanism), buckets)
    shared = (buckets[:, :, None] == buckets[:, None]).any(-1).transpose(0, 3, 1, 2)
    assert 0.2 < shared.mean() < 0.9
    want = np.zeros_like(q)
    for b, h, i in np.ndindex(BATCH, HEADS, LENGTH):
        others = [j for j in range(i) if shared[b, h, i, j]] or [i]
        powers = np.exp(k[b, others, h] @ q[b, i, h])
        want[b, i, h] = powers @ v[b, others, h] / powers.sum()
    check(got, output(want, params))


@pytest.mark.parametrize("top", [1, 2, 3, 9])
def test_moba_reads_its_own_block_and_the_best_before(top):
    mechanism = MoBA(block=2, top=top)
    got, params = run(mechanism, kv_heads=2)
    q, k, v = projected(params)
    want, seen = np.zeros_like(q), 0
    for b, h, i in np.ndindex(BATCH, HEADS, LENGTH):
        own = i // 2
        scores = {n: k[b, 2 * n : 2 * n + 2, h // 2].mean(0) @ q[b, i, h] for n in range(own)}
        blocks = [own, *sorted(scores, key=scores.get)[::-1][: top - 1]]
        keys = [j for j in range(i + 1) if j // 2 in blocks]
        powers = np.exp(k[b, keys, h // 2] @ q[b, i, h] / np.sqrt(DIM))
        want[b, i, h] = powers @ v[b, keys, h // 2] / powers.sum()
        seen += len(keys)
    check(got, output(want, params))
    geometry = Geometry(WIDTH, HEADS, 2, DIM, context=9)
    assert mechanism.visible_keys(geometry, LENGTH, causal=True) == seen / (BATCH * HEADS * LENGTH)


@pytest.mark.parametrize("causal", [True, False])
def test_a_linear_transformers_weights_turn_above_the_line_only(causal):
    """Su et al., 2021, eq. 19."""
    got, params = run(LinearTransformer(), Rotary(), causal=causal)
    q, k, v = projected(params)
    q, k = (np.where(part > 0, part + 1, np.exp(np.minimum(part, 0))) for part in (q, k))
    above, below = (
        np.einsum("bihd,bjhd->bhij", *(part(x) for x in (q, k))) * (SEEN if causal else 1.0)
        for part in (lambda x: turn(x, 10_000.0 ** -np.array([0, 0.5])), lambda x: x)
    )
    heads = np.einsum("bhij,bjhd->bihd", above / below.sum(-1, keepdims=True), v)
    check(got, output(heads, params))


def test_mamba2_steps_through_its_state():
    """Eq. 2 of its paper with the discretisation of section 7; its block but for the norm of each head."""
    size = 5
    got, params = run(Mamba2(key_dim=size, convolution=3))

    def convolved(name, x):
        x = np.concatenate([np.zeros_like(x[:, :2]), x], axis=1)
        taps = params[f"{name}_convolution"]
        x = sum(taps[n] * x[:, n : n + LENGTH] for n in range(3))  # the last tap is the token's own
        return silu(x + params[f"{name}_convolution_bias"])

    c, b = (
        convolved(name, linear(X, params[key]))[:, :, 0]
        for name, key in (("query", "read_key"), ("key", "write_key"))
    )
    x = convolved("value", linear(X, params["value"]))
    step = np.log1p(np.exp(np.einsum("blw,wh->blh", X, params["forget"]["kernel"]) + params["decay_bias"]))
    decay = np.exp(-np.exp(params["decay_scale"]) * step)
    heads = np.zeros((BATCH, LENGTH, HEADS, DIM))
    for row, h in np.ndindex(BATCH, HEADS):
        state = np.zeros((size, DIM))
        for t in range(LENGTH):
            state = decay[row, t, h] * state + step[row, t, h] * np.outer(b[row, t], x[row, t, h])
            heads[row, t, h] = c[row, t] @ state
    heads = rms_norm(heads + params["skip_scale"][:, None] * x, params["output_norm"]["scale"], 1e-6)
    check(got, output(heads * silu(linear(X, params["output_gate"])), params))


def test_rwkv7_removes_with_one_key_and_writes_with_another():
    """Eq. 3-21 of its paper, but for the residual of values."""
    got, params = run(RWKV7(rank=3))
    before = np.concatenate([np.zeros_like(X[:, :1]), X[:, :-1]], axis=1)
    mixed = X[:, :, None] + (before - X)[:, :, None] * params["shift_scale"]
    names = ("query", "decay", "key", "value", "rate", "gate")
    x = {name: mixed[:, :, n] for n, name in enumerate(names)}
    q, k, v = (linear(x[name], params[name]) for name in ("query", "key", "value"))

    def latent(name, source):
        return x[source] @ params[f"{name}_latent"]["kernel"]

    w = linear(np.tanh(latent("decay", "decay")), params["decay"]) + params["decay_bias"]
    w = np.exp(-np.exp(-0.5) * sigmoid(w))
    rate = sigmoid(linear(latent("rate", "rate"), params["rate"]) + params["rate_bias"])
    removal = k * params["removal_scale"]
    removal /= np.linalg.norm(removal, axis=-1, keepdims=True)
    k = k * (1 + params["rate_scale"] * (rate - 1))
    heads = np.zeros_like(v)
    for b, h in np.ndindex(BATCH, HEADS):
        S = np.zeros((DIM, DIM))
        for t in range(LENGTH):
            n = removal[b, t, h]
            S = (
                w[b, t, h][:, None] * S
                - np.outer(rate[b, t, h] * n, n @ S)
                + np.outer(k[b, t, h], v[b, t, h])
            )
            heads[b, t, h] = q[b, t, h] @ S
    heads = heads - heads.mean(-1, keepdims=True)
    heads = heads / np.sqrt(np.square(heads).mean(-1, keepdims=True) + DIM * 1e-5)
    heads = heads * params["read_scale"] + params["read_bias"]
    heads = heads + (q * k * params["bonus_scale"]).sum(-1, keepdims=True) * v
    check(got, output(heads * linear(sigmoid(latent("read_gate", "gate")), params["read_gate"]), params))


@pytest.mark.parametrize(
    ("mechanism", "tile"),
    [
        (NSA(summary=2, stride=1, block=1, top=4, window=2), 1 << 22),
        (NSA(summary=2, stride=1, block=2, top=9, window=3), 1),  # a query at a time
        pytest.param(NSA(summary=3, stride=1, block=1, top=5, window=1), 200, marks=pytest.mark.slow),
    ],
)
def test_nsa_reads_summaries_the_blocks_that_they_choose_and_a_window(mechanism, tile, monkeypatch):
    monkeypatch.setattr(chosen_blocks, "TILE", tile)
    got, params = run(mechanism, Rotary(), kv_heads=2)
    size, stride, block = mechanism.summary, mechanism.stride, mechanism.block
    flat = {name: linear(X, params[name]) for name in params if name.endswith(("query", "key", "value"))}
    turned = {name: turn(x, np.array([1.0, 0.01])) for name, x in flat.items()}

    def summaries(name):
        starts = range(0, LENGTH - size + 1, stride)
        tokens = np.stack([flat[f"summary_{name}"][:, m : m + size] for m in starts], axis=1)
        tokens = tokens + params[f"{name}_summary_places"][:, None]
        x = np.einsum("bnshd,sde->bnhe", tokens, params[f"{name}_summary_hidden"])
        x = x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
        return np.einsum("bnhe,ed->bnhd", x, params[f"{name}_summary_output"])

    def read(q, k, v):
        powers = np.exp(k @ q / np.sqrt(DIM))
        return powers / powers.sum(), powers @ v / powers.sum()

    def shared(m, j):  # tokens of summary m in block j
        return len(set(range(m * stride, m * stride + size)) & set(range(j * block, (j + 1) * block)))

    ck, cv = summaries("key"), summaries("value")
    heads, chosen = np.zeros((3, *flat["query"].shape)), set()
    for b, group, t in np.ndindex(BATCH, 2, LENGTH):
        whole = range(0, max(t + 1 - size, -1) // stride + 1)
        importance = np.zeros(len(whole))
        for h in (2 * group, 2 * group + 1):
            near = np.arange(max(t - mechanism.window + 1, 0), t + 1)
            keys, values = turned["window_key"][b, near, group], flat["window_value"][b, near, group]
            heads[2, b, t, h] = read(turned["query"][b, t, h], keys, values)[1]
            if whole:
                found = read(flat["query"][b, t, h], ck[b, whole, group], cv[b, whole, group])
                importance, heads[0, b, t, h] = importance + found[0], found[1]
        own = t // block
        scores = {
            j: sum(importance[m] * shared(m, j) for m in whole) for j in range(own) if 1 <= j <= own - 2
        }
        best = sorted(scores, key=scores.get)[::-1][: mechanism.top - 3]
        chosen.add(tuple(sorted(best)))
        tokens = [i for i in range(t + 1) if i // block in {0, own - 1, own, *best}]
        for h in (2 * group, 2 * group + 1):
            keys, values = turned["key"][b, tokens, group], flat["value"][b, tokens, group]
            heads[1, b, t, h] = read(turned["query"][b, t, h], keys, values)[1]
    gates = sigmoid(linear(X, params["branch_gate"]))
    check(got, output(np.einsum("nblhd,blhn->blhd", heads, gates), params))
    assert block > 1 or len(chosen) > 2
