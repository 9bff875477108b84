"""Device meshes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from research.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence")
"""Batch with parameters replicated; batch and parameters; heads and hidden units; length of activations."""


def make_mesh(
    data: int = 1,
    fsdp: int = -1,
    tensor: int = 1,
    sequence: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Returns a mesh with axes data, fsdp, tensor and sequence over all devices; one may be -1: the rest.

    Raises:
      UserError: the axes do not multiply up to the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(zip(AXES, (data, fsdp, tensor, sequence), strict=True))
    asked = " * ".join(f"{name} {size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    fixed = 1
    for size in sizes.values():
        fixed *= size if size != -1 else 1
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"sharding: {asked}: axes are positive, and at most one is -1 (the rest)")
    if len(devices) % fixed or (not free and fixed != len(devices)):
        raise UserError(
            f"sharding: {asked} is no mesh of {len(devices)} device{'s' * (len(devices) != 1)}; "
            f"--sharding.fsdp -1 takes what the other axes leave, and these must divide {len(devices)}"
        )
    if free:
        sizes[free[0]] = len(devices) // fixed
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )
