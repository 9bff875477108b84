"""Device meshes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
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

    Of devices in several slices, between which communication is slow, ``data`` runs between slices and all
    else inside: where its size is a multiple of the slices, and by itself where it is 1 and fsdp is -1.

    Raises:
      UserError: the axes do not multiply up to the devices.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({slice_of(device) for device in devices})
    if data == 1 and fsdp == -1:
        data = slices
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
    shape, kinds = tuple(sizes.values()), (AxisType.Auto,) * len(AXES)
    if slices > 1 and sizes["data"] % slices == 0:
        return Mesh(arranged(shape, devices, slices), AXES, axis_types=kinds)
    return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)


def arranged(shape: tuple[int, ...], devices: Sequence[Any], slices: int) -> np.ndarray:
    """Returns the devices as an array of a mesh's shape, neighbours beside one another.

    The first axis runs between slices, and is a multiple of them.
    """
    from jax.experimental import mesh_utils

    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    inside = (shape[0] // slices, *shape[1:])
    between = (slices, *(1,) * (len(shape) - 1))
    return mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True)


def slice_of(device: Any) -> int:
    """Returns the number of the slice that a device is part of."""
    return int(getattr(device, "slice_index", 0))
