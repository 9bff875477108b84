"""What one chip can do, and slices of chips that are not here."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from research.errors import UserError, nearest
from research.scale.mesh import AXES


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU chip: figures of its vendor (cloud.google.com/tpu/docs, pages of each version)."""

    name: str
    flops: float
    """Peak bfloat16 FLOP/s."""
    memory: int
    """Bytes of HBM."""
    memory_bandwidth: float
    """Bytes/s to and from HBM."""
    interconnect: float
    """Bytes/s from one chip to the others of its slice, all links together."""
    dimensions: int
    """Of the torus that a slice is."""
    hosts: float
    """Bytes/s from one chip to other slices: its share of the host's network (assumed, not published)."""


_GIB = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * _GIB, 1228e9, 300e9, 3, 6.25e9),
        Chip("v5e", 197e12, 16 * _GIB, 819e9, 200e9, 2, 3.125e9),
        Chip("v5p", 459e12, 95 * _GIB, 2765e9, 600e9, 3, 6.25e9),
        Chip("v6e", 918e12, 32 * _GIB, 1638e9, 448e9, 2, 6.25e9),
    )
}
"""Chips by the name that topologies begin with."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of chips that need not be here: the compiler knows them."""

    name: str
    chip: Chip
    slices: int
    devices: Sequence[Any]
    """Of all slices, one slice after another."""

    def mesh(self, data: int, fsdp: int, tensor: int, sequence: int) -> Mesh:
        """Returns a mesh over all chips; of several slices the axis ``data`` runs between, all else inside.

        Raises:
          UserError: the axes do not multiply up to the chips of the slices.
        """
        sizes = dict(zip(AXES, (data, fsdp, tensor, sequence), strict=True))
        if sizes["data"] == 1:
            sizes["data"] = self.slices
        fixed = math.prod(size for size in sizes.values() if size != -1)
        free = [name for name, size in sizes.items() if size == -1]
        chips = len(self.devices)
        shape = " x ".join(f"{name} {size}" for name, size in sizes.items())
        fits = len(free) <= 1 and all(size > 0 or size == -1 for size in sizes.values())
        fits = fits and chips % fixed == 0 and (bool(free) or fixed == chips)
        if fits and free:
            sizes[free[0]] = chips // fixed
        if not fits or sizes["data"] % self.slices:
            raise UserError(
                f"sharding: {shape} is no mesh of {self.slices} x {self.name} ({chips} chips): axes multiply "
                "up to the chips, at most one is -1 (the rest), and data is a multiple of the slices"
            )
        arranged = self._arranged(tuple(sizes.values()))
        return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def _arranged(self, shape: tuple[int, ...]) -> np.ndarray:
        from jax.experimental import mesh_utils

        if self.slices == 1:
            return mesh_utils.create_device_mesh(shape, self.devices, allow_split_physical_axes=True)
        inside = (shape[0] // self.slices, *shape[1:])
        between = (self.slices, *(1,) * (len(shape) - 1))
        return mesh_utils.create_hybrid_device_mesh(
            inside, between, self.devices, allow_split_physical_axes=True
        )


def topology(name: str, slices: int = 1) -> Topology:
    """Returns slices of a shape that the compiler for TPUs knows, such as ``v5e:4x4`` or ``v5p:4x4x4``.

    Raises:
      UserError: no such chip or shape, or the package libtpu is not installed.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match or match[1] not in CHIPS:
        asked = name.partition(":")[0]
        hint = (
            nearest(asked, CHIPS) if asked not in CHIPS else "; give it as CHIP:AxB, or AxBxC for v4 and v5p"
        )
        raise UserError(f"topology {name!r} is unknown{hint}")
    chip = CHIPS[match[1]]
    if match[2].count("x") + 1 != chip.dimensions:
        example = "x".join("4" * chip.dimensions)
        raise UserError(
            f"topology {name!r}: slices of {chip.name} have {chip.dimensions} sides: {chip.name}:{example}"
        )
    if slices < 1:
        raise UserError(f"--slices {slices}: at least 1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would ask a cloud's metadata server, for minutes
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{chip.name}-{math.prod(map(int, match[2].split('x')))}")
    from jax.experimental import topologies

    more = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
    except Exception as error:  # whatever the plugin raises
        if "TPU support not installed" in str(error):
            raise UserError(
                'planning for TPUs needs their compiler, the package libtpu: pip install -e ".[tpu]"'
            ) from error
        raise UserError(f"topology {name!r}: {' '.join(str(error).split())[:200]}") from error
    devices: list[Any] = sorted(found.devices, key=lambda device: (slice_of(device), device.id))
    return Topology(name, chip, slices, devices)


def slice_of(device: Any) -> int:
    """Returns the number of the slice that a device is part of."""
    return int(getattr(device, "slice_index", 0))


def default_platform_is_cpu() -> None:
    """Keeps JAX from looking for a TPU that is not there, where only its compiler is wanted."""
    jax.config.update("jax_platforms", "cpu")
