"""Linear maps, norms, feed-forward networks and embeddings against their formulas in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import paper_transformer as paper
import pytest

from research.modules.embedding import Embedding
from research.modules.feed_forward import FeedForward
from research.modules.linear import Linear
from research.modules.norm import Norm

KEY = jax.random.key(0)


def inputs(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_variables(module, *arguments):
    shapes = jax.eval_shape(module.init, KEY, *arguments)
    return {"params": paper.random_parameters(shapes["params"])}


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_norms(kind, bias, epsilon):
    module, x = Norm(kind, bias, epsilon), inputs(2, 3, 7) * 3 + 2
    variables = random_variables(module, x)
    assert ("bias" in variables["params"]) == (bias and kind == "layer")
    formula = {"layer": paper.layer_norm, "rms": paper.rms_norm}[kind]
    want = formula(np.asarray(x, np.float64), paper.wide(variables["params"]), epsilon)
    np.testing.assert_allclose(module.apply(variables, x), want, atol=1e-5)
    half = module.apply(variables, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), want, atol=0.05)


def test_norms_have_float32_statistics():
    x = jnp.asarray([[1000.0, 1001.0, 1002.0, 1003.0] * 64], jnp.float32)
    module = Norm("layer")
    np.testing.assert_allclose(
        module.apply(module.init(KEY, x), x)[0, :4], [-1.3416, -0.4472, 0.4472, 1.3416], rtol=1e-3
    )


@pytest.mark.parametrize("activation", ["gelu", "relu", "relu2", "swiglu"])
@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward(activation, bias):
    module, x = FeedForward(6, 10, activation, bias), inputs(2, 3, 6)
    variables = random_variables(module, x)
    names = {"up", "down", "gate"} if activation == "swiglu" else {"up", "down"}
    assert set(variables["params"]) == names
    want = paper.feed_forward(np.asarray(x, np.float64), paper.wide(variables["params"]), activation)
    np.testing.assert_allclose(module.apply(variables, x), want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("module", "x", "subscripts"),
    [
        (Linear((5,), (7,)), inputs(2, 3, 5), "bta,ao->bto"),
        (Linear((5,), (2, 4)), inputs(2, 3, 5), "bta,aho->btho"),
        (Linear((2, 4), (5,)), inputs(2, 3, 2, 4), "btha,hao->bto"),
        (Linear((2, 4), (5,), use_bias=False), inputs(2, 4), "ha,hao->o"),
    ],
)
def test_linear_maps_groups_of_axes(module, x, subscripts):
    variables = random_variables(module, x)
    params = paper.wide(variables["params"])
    want = np.einsum(subscripts, np.asarray(x, np.float64), params["kernel"]) + params.get("bias", 0.0)
    np.testing.assert_allclose(module.apply(variables, x), want, atol=1e-5)
    assert module.apply(variables, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_linear_initialisation():
    params = Linear((300,), (400,), stddev=0.05).init(KEY, inputs(1, 300))["params"]
    assert abs(params["kernel"].std() - 0.05) < 0.001 and abs(params["kernel"].mean()) < 0.001
    assert params["kernel"].dtype == jnp.float32 and not params["bias"].any()


def test_embedding_looks_up_and_is_the_tied_head():
    module, tokens = Embedding(9, 4), jnp.array([[0, 8, 3], [100, 1, 1]], jnp.int32)
    variables = {"params": {"table": inputs(9, 4, seed=1)}}
    table = np.asarray(variables["params"]["table"])
    np.testing.assert_array_equal(
        module.apply(variables, tokens, jnp.dtype("float32")), table[[[0, 8, 3], [8, 1, 1]]]
    )
    assert module.apply(variables, tokens, jnp.dtype("bfloat16")).dtype == jnp.bfloat16
    x = inputs(2, 3, 4)
    got = module.apply(variables, x, method="attend")
    np.testing.assert_allclose(got, np.asarray(x, np.float64) @ table.T, atol=1e-5)
    assert module.apply(variables, x.astype(jnp.bfloat16), method="attend").dtype == jnp.float32
