"""One call of attention over the devices of a mesh: each has some rows, some heads, a part of the length."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from research.attention.masks import Tokens

BATCH_AXES = ("data", "fsdp")
HEAD_AXIS = "tensor"
LENGTH_AXIS = "sequence"


@dataclasses.dataclass(frozen=True)
class Split:
    """Over how many devices a call lies."""

    rows: int = 1
    heads: int = 1
    length: int = 1
    unknown: int = 1
    """Of mesh axes that are not ours."""

    @property
    def devices(self) -> int:
        """Devices that share the call."""
        return self.rows * self.heads * self.length * self.unknown


def split_of(mesh: AbstractMesh) -> Split:
    """Returns how a mesh splits a call.

    Inside shard_map, where all axes are manual, each device has a call of its own. Where only some are, the
    others are as good as unknown.
    """
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    free = {name: size for name, size in mesh.shape.items() if kinds[name] != AxisType.Manual}
    ours = {*BATCH_AXES, HEAD_AXIS, LENGTH_AXIS} if len(free) == len(kinds) else set()
    known = {name: size for name, size in free.items() if name in ours}
    return Split(
        rows=math.prod(known.get(axis, 1) for axis in BATCH_AXES),
        heads=known.get(HEAD_AXIS, 1),
        length=known.get(LENGTH_AXIS, 1),
        unknown=math.prod(size for name, size in free.items() if name not in ours),
    )


def on_each_device(
    run: Callable[..., Float[Array, "rows q_part heads value_dim"]],
    q: Float[Array, "batch q_len heads head_dim"],
    k: Float[Array, "batch kv_len kv_heads head_dim"],
    v: Float[Array, "batch kv_len kv_heads value_dim"],
    q_tokens: Tokens,
    kv_tokens: Tokens,
    sink: Float[Array, " heads"] | None,
) -> Float[Array, "batch q_len heads value_dim"]:
    """Returns what ``run`` returns, each device of the mesh in force calling it on its part of the arguments.

    ``run`` takes q, k and v, and the others by name. Where there are fewer key/value heads than devices that
    share the heads, they are repeated. The devices must divide the rows, the heads and both lengths, and all
    axes of the mesh be ours.
    """
    mesh = jax.sharding.get_abstract_mesh()
    split = split_of(mesh)
    if split.devices == 1:
        return run(q, k, v, q_tokens=q_tokens, kv_tokens=kv_tokens, sink=sink)
    copies = math.lcm(k.shape[2], split.heads) // k.shape[2]
    if copies > 1:
        k, v = (jnp.repeat(x, copies, axis=2) for x in (k, v))
    rows = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
    length, heads = (axis if axis in mesh.axis_names else None for axis in (LENGTH_AXIS, HEAD_AXIS))
    arrays = P(rows, length, heads)

    def of_tokens(tokens: Tokens) -> Any:
        return jax.tree.map(lambda x: P(None if x.shape[0] == 1 else rows, length), tokens)

    def part(q: Array, k: Array, v: Array, q_tokens: Tokens, kv_tokens: Tokens, sink: Array | None) -> Array:
        return run(q, k, v, q_tokens=q_tokens, kv_tokens=kv_tokens, sink=sink)

    return jax.shard_map(
        part,
        in_specs=(arrays, arrays, arrays, of_tokens(q_tokens), of_tokens(kv_tokens), P(heads)),
        out_specs=arrays,
        check_vma=False,  # kernels do not say over which axes their results vary
    )(q, k, v, q_tokens, kv_tokens, sink)
