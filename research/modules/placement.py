"""Where activations, and weights while they are used, lie on a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from research.attention.devices import BATCH_AXES, HEAD_AXIS, LENGTH_AXIS, split_of


def placed(x: Float[Array, "batch length *rest"]) -> Float[Array, "batch length *rest"]:
    """Returns x, split over the mesh in force by batch and length; x itself where there is none.

    Left to itself, the partitioner may rather move activations to where parameters lie than gather the
    parameters of a layer when they are needed, and then every device works on the whole batch.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not {*BATCH_AXES, LENGTH_AXIS} <= set(mesh.axis_names):
        return x
    rest = (P.UNCONSTRAINED,) * (x.ndim - 2)
    return jax.lax.with_sharding_constraint(x, P(BATCH_AXES, LENGTH_AXIS, *rest))


def as_rows(x: Float[Array, "*batch width"]) -> Float[Array, "*rows width"]:
    """Returns x as one matrix, [tokens, width], unless the mesh in force splits the length.

    Tokens that are split both by row and by length have no such order: the length would be gathered.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.shape.get(LENGTH_AXIS, 1) > 1 else x.reshape(-1, x.shape[-1])


def gathered(kernel: Float[Array, "inputs outputs"]) -> Float[Array, "inputs outputs"]:
    """Returns a matrix whole on every device of the mesh in force, but for outputs split by "tensor"."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or HEAD_AXIS not in mesh.axis_names:
        return kernel
    return jax.lax.with_sharding_constraint(kernel, P(None, HEAD_AXIS))


def rows_apart(run: Callable[..., Any], arguments: Any, results: Any) -> Callable[..., Any]:
    """Returns ``run``, which each device of the mesh in force calls on the rows that it has.

    Left to itself, the partitioner splits a loop over tokens by whatever its parameters are split by, or adds
    up the devices' gradients at every token. Where there is no mesh, or its devices do not divide the rows,
    it is ``run`` itself.

    Args:
      run: takes and returns arrays; one row must not depend on another.
      arguments: for each argument (or part of its tree), P with `BATCH_AXES` at the axis of rows; P(): whole.
      results: the same for what it returns.
    """

    def call(*given: Any) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        split = split_of(mesh)
        if split.rows == 1 or split.unknown > 1 or not set(BATCH_AXES) <= set(mesh.axis_names):
            return run(*given)
        specs = jax.tree.broadcast(arguments, given)
        rows = [
            x.shape[len(spec) - 1]
            for x, spec in zip(*map(jax.tree.leaves, (given, specs)), strict=True)
            if spec
        ]
        if any(count % split.rows for count in rows):
            return run(*given)
        # Unchecked, since a loop's first state does not say over which axes it varies.
        return jax.shard_map(run, in_specs=specs, out_specs=results, check_vma=False)(*given)

    return call
