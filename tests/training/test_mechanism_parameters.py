"""Parameters of every mechanism: as many as it says, covered by every sharding table, known to optimizers."""

from __future__ import annotations

import typing

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from research.attention import Latent, Softmax
from research.attention.catalogue import Single
from research.attention.mechanisms import Geometry
from research.attention.positions import RelativeBias
from research.modules.attention import AttentionSpec
from research.modules.mixers import mixer
from research.scale.mesh import AXES
from research.training.optimizer import MATRIX, decays, matrix_axes
from research.training.paths import path_name
from research.training.sharding import STRATEGIES, parameter_specs

MESH = AbstractMesh((1, 2, 2, 1), AXES)
GEOMETRY = Geometry(width=32, heads=4, kv_heads=4, head_dim=8, context=16)
LAYERS = 2
EVERYTHING = Softmax(sink=True, gate=True, qk_norm=True)
MECHANISMS = [*(cls() for cls in typing.get_args(Single)), Latent(query_rank=6), EVERYTHING]


def parameters(mechanism, positions=None):
    """Returns the shapes of the parameters of a stack's attention."""
    spec = AttentionSpec(GEOMETRY, mechanism, causal=mechanism.decoder, positions=positions)
    layer = jax.eval_shape(mixer(spec, "attention").init, jax.random.key(0), jnp.zeros((1, 2, 32)))["params"]
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((LAYERS, *leaf.shape), leaf.dtype), layer)
    return {"stack": {"blocks": {"attention": stacked}}}


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda m: type(m).__name__)
def test_of_every_mechanism(mechanism):
    params = parameters(mechanism)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels = [leaf.size for path, leaf in leaves if path_name(path).endswith("kernel")]
    assert sum(kernels) == LAYERS * mechanism.matmul_parameters(GEOMETRY)
    for table in STRATEGIES.values():
        parameter_specs(table, params, MESH)
    for path, leaf in leaves:
        if MATRIX.search(path_name(path)):
            axes = matrix_axes(path, leaf)
            assert [*axes.reduction_axis, *axes.output_axis] == list(range(1, leaf.ndim))
            inputs = [leaf.shape[axis] for axis in axes.reduction_axis]
            assert inputs == [4, 8] if path_name(path).endswith("output/kernel") else len(inputs) == 1


def test_tables_and_sinks_do_not_decay():
    found = decays(parameters(EVERYTHING, RelativeBias()))["stack"]["blocks"]["attention"]
    assert not found["sink"] and not found["relative_bias"] and not found["query_scale"]
    assert found["query"]["kernel"] and found["output_gate"]["kernel"]
