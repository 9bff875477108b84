"""Which device holds what: ordered tables from path patterns to PartitionSpecs, one per strategy."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.errors import UserError
from research.training.paths import path_name

Table = tuple[tuple[str, P], ...]
"""Rows (pattern, spec), the first match counts. An axis written "tensor?" splits its dimension if it divides
it and replicates it if not: key/value heads may be fewer than the tensor axis."""

_HIDDEN = "(up|gate)"
FSDP_TENSOR: Table = (
    (r"(forward|backward|cells)_\d+/(kernel|recurrent)$", P("fsdp", "tensor")),
    (r"(forward|backward|cells)_\d+/bias$", P("tensor")),
    (r"((state|source|position)_projection|attentional)/kernel$", P("fsdp", "tensor")),
    (r"state_projection/bias$", P("tensor")),
    (r"(score|coverage|position)_vector$", P()),
    (r"(token|source)_embedding/table$", P("tensor", "fsdp")),
    (r"position_embedding/table$", P(None, "fsdp")),
    (r"type_embedding/table$", P(None, "fsdp")),
    (r"(pair_head|class_head)/kernel$", P("fsdp", None)),
    (r"(pair_head|class_head)/bias$", P()),
    (r"(token_head|pooler|transform)/bias$", P("tensor")),
    (r"(head|pooler|transform)/kernel$", P("fsdp", "tensor")),
    (r"query/kernel$", P(None, "fsdp", "tensor", None)),
    (r"query/bias$", P(None, "tensor", None)),
    (r"(key|value)/kernel$", P(None, "fsdp", "tensor?", None)),
    (r"(key|value)/bias$", P(None, "tensor?", None)),
    (r"output/kernel$", P(None, "tensor", None, "fsdp")),
    (r"output/bias$", P(None, "fsdp")),
    (r"(decay|rate|read_gate)/kernel$", P(None, None, "tensor?", None)),
    (rf"{_HIDDEN}/kernel$", P(None, "fsdp", "tensor")),
    (rf"{_HIDDEN}/bias$", P(None, "tensor")),
    (r"down/kernel$", P(None, "tensor", "fsdp")),
    (r"down/bias$", P(None, "fsdp")),
    (r"(query_)?latent/kernel$", P(None, "fsdp", None)),
    (r"(forget|strength)/kernel$", P(None, "fsdp", "tensor?")),
    (r"decay_latent/kernel$", P(None, "fsdp", None)),
    (r"(query|key|value)_convolution$", P(None, None, "tensor?", None)),
    (r"(query|key|value)_convolution_bias$", P(None, "tensor?", None)),
    (r"(key|value)_summary_(places|hidden|output)$", P()),
    (r"lora_[ab]$", P()),
    (r"((decay|rate|read)_bias|(decay|skip|shift|removal|rate|bonus|read)_scale)$", P()),
    (
        r"(norm/(scale|bias)|(query|key|pair)_scale|sink|relative_bias|head_bias|mixture|forget/bias|lambda_\w+)$",
        P(),
    ),
)


def _without(axis: str, table: Table) -> Table:
    """Returns the table with every dimension that ``axis`` splits replicated."""
    return tuple(
        (pattern, P(*(None if name in (axis, axis + "?") else name for name in spec)))
        for pattern, spec in table
    )


STRATEGIES: dict[str, Table] = {
    "replicated": ((r"", P()),),
    "fsdp": _without("tensor", FSDP_TENSOR),
    "fsdp+tensor": FSDP_TENSOR,
}
"""Every strategy's table; paths are those of the parameters."""
BATCH = P(("data", "fsdp"), "sequence")
"""Spec of every array of a batch, [batch, length]."""


def resolve(table: Table, path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Returns the spec of one parameter.

    Raises:
      UserError: no row covers the path, its spec names a mesh axis twice or one that the mesh lacks, has more
        dimensions than the parameter, or an axis does not divide its dimension; the message names the path.
    """
    spec = next((spec for pattern, spec in table if re.search(pattern, path)), None)
    if spec is None:
        raise UserError(f"sharding: no row of the strategy's table covers the parameter {path} {shape}")
    if len(spec) > len(shape):
        raise UserError(f"sharding: {path} has {len(shape)} dimensions, its spec {spec} has {len(spec)}")
    resolved: list[str | None] = []
    for dimension, (size, name) in enumerate(zip(shape, spec, strict=False)):
        if name is None:
            resolved.append(None)
            continue
        axis = str(name).removesuffix("?")
        if axis not in mesh.shape:
            raise UserError(f"sharding: {path}: the mesh {tuple(mesh.shape)} has no axis {axis!r}")
        if axis in resolved:
            raise UserError(f"sharding: {path}: the spec {spec} names axis {axis!r} twice")
        if size % mesh.shape[axis]:
            if not str(name).endswith("?"):
                devices = mesh.shape[axis]
                fits = math.gcd(size, devices)
                raise UserError(
                    f"sharding: {path}: dimension {dimension} of {shape} does not divide over the {devices} "
                    f"devices of axis {axis!r}; choose a --sharding.{axis} that divides {size}, such as "
                    f"--sharding.{axis} {fits} --sharding.data {mesh.shape['data'] * devices // fits}"
                )
            resolved.append(None)
        else:
            resolved.append(axis)
    return P(*resolved)


def parameter_specs(table: Table, params: Any, mesh: Mesh) -> dict[str, P]:
    """Returns the spec of every parameter, by path; ``params`` may be abstract. Raises like ``resolve``."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_name(path): resolve(table, path_name(path), leaf.shape, mesh) for path, leaf in leaves}


def state_shardings(table: Table, state: Any, params: Any, mesh: Mesh) -> Any:
    """Returns the sharding of every leaf of a state that holds ``params``, an optimizer's memory and scalars.

    A leaf that has the path and shape of a parameter (a moment, an average) lies as the parameter does; any
    other (a count, Adafactor's row and column statistics) is replicated.
    """
    specs = parameter_specs(table, params, mesh)
    shapes = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        parts = path_name(path).split("/")
        names = ("/".join(parts[start:]) for start in range(len(parts)))
        owner = next((name for name in names if shapes.get(name) == leaf.shape), None)
        return NamedSharding(mesh, P() if owner is None else specs[owner])

    return jax.tree.map_with_path(sharding, state)
