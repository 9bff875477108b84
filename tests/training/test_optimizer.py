"""Optimizers against updates written out in NumPy, and what weight decay and Muon take hold of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.attention.mechanisms import Softmax
from research.models.gpt import GPT
from research.models.seq2seq import Alignment, Seq2Seq
from research.training.optimizer import Adafactor, AdamW, Lion, Muon, decays, matrix_axes
from research.training.paths import path_name

RATES = [0.25, 0.5, 1.0]
"""A schedule of three steps, as shares of the peak."""
LAYERS, WIDTH, HEADS, HEAD_DIM, HIDDEN = 2, 12, 2, 4, 20
SHAPES = {
    "token_embedding": {"table": (6, WIDTH)},
    "final_norm": {"scale": (WIDTH,)},
    "stack": {
        "blocks": {
            "query": {"kernel": (LAYERS, WIDTH, HEADS, HEAD_DIM), "bias": (LAYERS, HEADS, HEAD_DIM)},
            "output": {"kernel": (LAYERS, HEADS, HEAD_DIM, WIDTH)},
            "up": {"kernel": (LAYERS, WIDTH, HIDDEN)},
            "down": {"kernel": (LAYERS, HIDDEN, WIDTH)},
        }
    },
}
ALL = [AdamW(), Lion(), Adafactor(), Muon()]


def schedule(step):
    return jnp.asarray(RATES, jnp.float32)[step]


def tree(seed: int):
    random = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(random.normal(size=shape), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def by_path(params) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_name(path): np.asarray(leaf, np.float64) for path, leaf in leaves}


def steps(optimizer, params, gradients):
    """Parameters after each gradient."""
    transformation = optimizer.build(schedule)
    memory, update = transformation.init(params), jax.jit(transformation.update)
    for gradient in gradients:
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = update(gradient, memory, params)
        params = optax.apply_updates(params, updates)
        yield by_path(params)


def decayed(path: str) -> bool:
    return not path.endswith(("bias", "scale"))


def test_adamw_is_algorithm_2_of_loshchilov_and_hutter():
    optimizer = AdamW(learning_rate=0.1, beta1=0.8, beta2=0.9, epsilon=1e-3, weight_decay=0.3)
    gradients = [tree(seed) for seed in (1, 2, 3)]
    expected = by_path(tree(0))
    m = {path: 0.0 for path in expected}
    v = dict(m)
    for t, found in enumerate(steps(optimizer, tree(0), gradients), start=1):
        for path, g in by_path(gradients[t - 1]).items():
            m[path] = 0.8 * m[path] + 0.2 * g
            v[path] = 0.9 * v[path] + 0.1 * g**2
            adam = (m[path] / (1 - 0.8**t)) / (np.sqrt(v[path] / (1 - 0.9**t)) + 1e-3)
            decay = 0.3 * expected[path] if decayed(path) else 0.0
            expected[path] = expected[path] - 0.1 * RATES[t - 1] * (adam + decay)
            np.testing.assert_allclose(found[path], expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_lion_is_program_1_of_chen_et_al():
    optimizer = Lion(learning_rate=0.1, beta1=0.9, beta2=0.7, weight_decay=0.3)
    gradients = [tree(seed) for seed in (1, 2, 3)]
    expected = by_path(tree(0))
    momentum = {path: 0.0 for path in expected}
    for t, found in enumerate(steps(optimizer, tree(0), gradients)):
        for path, g in by_path(gradients[t]).items():
            direction = np.sign(0.9 * momentum[path] + 0.1 * g)
            decay = 0.3 * expected[path] if decayed(path) else 0.0
            expected[path] = expected[path] - 0.1 * RATES[t] * (direction + decay)
            momentum[path] = 0.7 * momentum[path] + 0.3 * g
            np.testing.assert_allclose(found[path], expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.fixture(scope="module")
def muons_first_step():
    return next(steps(Muon(learning_rate=0.1, weight_decay=0.0), tree(0), [tree(1)]))


@pytest.mark.parametrize(
    ("path", "fan_in", "fan_out"),
    [
        ("query", WIDTH, HEADS * HEAD_DIM),
        ("output", HEADS * HEAD_DIM, WIDTH),
        ("up", WIDTH, HIDDEN),
        ("down", HIDDEN, WIDTH),
    ],
)
def test_muon_orthogonalises_each_layers_matrix(muons_first_step, path, fan_in, fan_out):
    """Newton-Schulz maps singular values by an odd polynomial and leaves the singular vectors alone."""
    name = f"stack/blocks/{path}/kernel"
    update = (muons_first_step[name] - by_path(tree(0))[name]) / (-0.1 * RATES[0])
    for layer in range(LAYERS):
        matrix = by_path(tree(1))[name][layer].reshape(fan_in, fan_out)
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        s = s / np.sqrt((s**2).sum())
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5  # Jordan et al., 2024
        assert (np.abs(s - 1) < 0.45).all()  # the coefficients trade accuracy for speed
        expected = (u * s) @ vt * max(1, fan_out / fan_in) ** 0.5
        np.testing.assert_allclose(update[layer].reshape(fan_in, fan_out), expected, rtol=1e-3, atol=1e-3)


def test_muon_leaves_embeddings_norms_and_biases_to_adamw():
    muon = Muon(learning_rate=0.1, adam_learning_rate=0.03, weight_decay=0.2)
    adamw = AdamW(learning_rate=0.03, weight_decay=0.2)
    gradients = [tree(seed) for seed in (1, 2, 3)]
    for found, other in zip(steps(muon, tree(0), gradients), steps(adamw, tree(0), gradients), strict=True):
        for path in found:
            same = np.array_equal(found[path], other[path])
            assert same == ("kernel" not in path), path


@pytest.mark.parametrize("heads", [{"heads": 4}, {"heads": 4, "kv_heads": 2, "feed_forward": "swiglu"}])
def test_muons_matrices_of_a_gpt_have_its_fan_in_and_fan_out(heads):
    gpt = GPT(
        vocabulary=32,
        context=8,
        layers=3,
        width=16,
        feed_forward_width=40,
        attention=Softmax(qk_norm=True),
        **heads,
    )
    key_value = gpt.geometry.head_dim * gpt.geometry.kv_heads
    fans = {"query": (16, 16), "key": (16, key_value), "value": (16, key_value), "output": (16, 16)}
    fans |= {"up": (16, 40), "gate": (16, 40), "down": (40, 16)}
    kernels = {path: leaf for path, leaf in gpt_parameters(gpt).items() if path.endswith("kernel")}
    assert len(kernels) == (6 if gpt.feed_forward == "gelu" else 7)
    for path, leaf in kernels.items():
        axes = matrix_axes((jax.tree_util.DictKey(path),), leaf)
        assert axes.reduction_axis[0] == 1 and axes.output_axis[-1] == leaf.ndim - 1
        sizes = tuple(int(np.prod([leaf.shape[i] for i in group])) for group in axes)
        assert sizes == fans[path.split("/")[-2]], path


LSTM_FANS = {
    "encoder/forward_0/kernel": (12, 24),  # half the width in each direction, four gates
    "encoder/forward_0/recurrent": (6, 24),
    "encoder/backward_0/kernel": (12, 24),
    "encoder/backward_0/recurrent": (6, 24),
    "cells_0/kernel": (24, 48),
    "cells_0/recurrent": (12, 48),
    "attentional/kernel": (24, 12),
    "state_projection/kernel": (12, 12),
    "source_projection/kernel": (12, 12),
    "position_projection/kernel": (12, 12),
}


def test_muon_orthogonalises_the_matrices_of_an_lstm_and_its_attention():
    model = Seq2Seq(vocabulary=16, layers=1, width=12, attention=Alignment("concat", "predictive"))
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = model.build().init(jax.random.key(0), tokens, tokens)["params"]
    random = np.random.default_rng(0)
    gradient = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), params)
    muon = Muon(learning_rate=0.1, adam_learning_rate=0.1, weight_decay=0.0)
    found = next(steps(muon, params, [gradient]))
    spread = {}
    for path, before in by_path(params).items():
        update = (before - found[path]) / (0.1 * RATES[0])
        if update.ndim == 2:
            inputs, outputs = update.shape
            spread[path] = np.linalg.svd(update, compute_uv=False) / max(1, outputs / inputs) ** 0.5
    orthogonal = {path for path, values in spread.items() if (np.abs(values - 1) < 0.45).all()}
    assert orthogonal == set(LSTM_FANS) and set(spread) - orthogonal == {"token_embedding/table"}
    assert {path: by_path(params)[path].shape for path in orthogonal} == LSTM_FANS


def gpt_parameters(gpt: GPT) -> dict[str, jax.ShapeDtypeStruct]:
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = jax.eval_shape(lambda: gpt.build().init(jax.random.key(0), tokens)["params"])
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def test_weight_decay_applies_to_matrices_and_embeddings_of_a_gpt_alone():
    gpt = GPT(
        vocabulary=32,
        context=8,
        layers=2,
        width=16,
        heads=2,
        attention=Softmax(qk_norm=True),
        tied_head=False,
    )
    marked = {
        path_name(path): on for path, on in jax.tree_util.tree_leaves_with_path(decays(gpt_parameters(gpt)))
    }
    block = "stack/blocks/"
    assert {path for path, on in marked.items() if on} == {
        "token_embedding/table",
        "position_embedding/table",
        "head/kernel",
        *(f"{block}attention/{name}/kernel" for name in ("query", "key", "value", "output")),
        *(f"{block}feed_forward/{name}/kernel" for name in ("up", "down")),
    }
    assert all(path.endswith(("bias", "scale")) for path, on in marked.items() if not on)


@pytest.mark.parametrize(
    ("optimizer", "factors"),
    [
        (AdamW(learning_rate=0.1, weight_decay=0.5), {"": 1 - 0.1 * 0.25 * 0.5}),
        (Lion(learning_rate=0.1, weight_decay=0.5), {"": 1 - 0.1 * 0.25 * 0.5}),
        (Adafactor(weight_decay=0.5), {"": 1 - 0.5}),
        (
            Muon(learning_rate=0.1, adam_learning_rate=0.01, weight_decay=0.5),
            {"kernel": 1 - 0.1 * 0.25 * 0.5, "table": 1 - 0.01 * 0.25 * 0.5},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_without_gradient_weight_decay_alone_shrinks_what_decays(optimizer, factors):
    params = tree(0)
    found = next(steps(optimizer, params, [jax.tree.map(jnp.zeros_like, params)]))
    for path, before in by_path(params).items():
        factor = next(f for end, f in factors.items() if path.endswith(end)) if decayed(path) else 1.0
        np.testing.assert_allclose(found[path], before * factor, rtol=1e-6, err_msg=path)


def test_adafactor_remembers_rows_and_columns_of_large_matrices_only():
    params = {"table": jnp.zeros((256, 128)), "small": jnp.zeros((100, 100))}
    memory = Adafactor().build(schedule).init(params)
    sizes = {leaf.size for leaf in jax.tree.leaves(memory)}
    assert {256, 128, 100 * 100} <= sizes and 256 * 128 not in sizes


@pytest.mark.parametrize("optimizer", ALL, ids=lambda o: type(o).__name__)
def test_an_optimizer_solves_a_regression(optimizer):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(64, WIDTH)), jnp.float32)
    truth = jnp.asarray(random.normal(size=(WIDTH, HIDDEN)) / WIDTH**0.5, jnp.float32)
    params = {
        "stack": {"blocks": {"up": {"kernel": jnp.zeros((1, WIDTH, HIDDEN)), "bias": jnp.zeros((1, HIDDEN))}}}
    }

    def loss(params):
        up = params["stack"]["blocks"]["up"]
        return jnp.mean((x @ up["kernel"][0] + up["bias"] - x @ truth - 0.3) ** 2)

    optimizer = type(optimizer)(weight_decay=0.0, learning_rate=0.02)
    transformation = optimizer.build(lambda step: 1.0)

    @jax.jit
    def step(params, memory):
        gradient = jax.grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = transformation.update(gradient, memory, params)
        return optax.apply_updates(params, updates), memory

    before, memory = loss(params), transformation.init(params)
    for _ in range(200):
        params, memory = step(params, memory)
    assert loss(params) < 0.05 * before
