"""What one chip can do, and chips that are not here: slices of TPUs, nodes of GPUs, simulated CPU devices."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from research.errors import UserError
from research.scale.mesh import AXES, arranged, slice_of


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip: figures of its vendor (cloud.google.com/tpu/docs, a page each; NVIDIA's data sheets)."""

    name: str
    platform: Literal["tpu", "gpu"]
    flops: float
    """Peak bfloat16 FLOP/s."""
    memory: int
    """Bytes of HBM."""
    memory_bandwidth: float
    """Bytes/s to and from HBM."""
    interconnect: float
    """Bytes/s from one chip to the others of its slice or node, all links together."""
    dimensions: int
    """Of the torus that a slice is; GPUs of a node are in a row."""
    hosts: float
    """Bytes/s from one chip to other slices or nodes: its share of the host's network (assumed)."""


_GIB = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 275e12, 32 * _GIB, 1228e9, 300e9, 3, 6.25e9),
        Chip("v5e", "tpu", 197e12, 16 * _GIB, 819e9, 200e9, 2, 3.125e9),
        Chip("v5p", "tpu", 459e12, 95 * _GIB, 2765e9, 600e9, 3, 6.25e9),
        Chip("v6e", "tpu", 918e12, 32 * _GIB, 1638e9, 448e9, 2, 6.25e9),
        Chip("a100", "gpu", 312e12, 80_000_000_000, 2039e9, 300e9, 1, 25e9),
        Chip("h100", "gpu", 989e12, 80_000_000_000, 3350e9, 450e9, 1, 50e9),
        Chip("h200", "gpu", 989e12, 141_000_000_000, 4800e9, 450e9, 1, 50e9),
    )
}
"""Chips by the name that topologies begin with."""
_SLICES = {
    2: ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
}
"""Shapes that can be had, by dimensions; of a torus of three, more with sides that are multiples of 4."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of chips that need not be here: the compiler knows them."""

    name: str
    chip: Chip | None
    """None: simulated devices of this machine's CPU, of which no figure means anything."""
    slices: int
    devices: Sequence[Any]
    """Of all slices, one slice after another; of GPUs, whose compiler is not here, only their numbers."""

    @property
    def compiles(self) -> bool:
        """Whether there is a compiler for the chips."""
        return self.chip is None or self.chip.platform == "tpu"

    def mesh(self, data: int, fsdp: int, tensor: int, sequence: int) -> Mesh | AbstractMesh:
        """Returns a mesh over all chips; of several slices the axis ``data`` runs between, all else inside.

        It is abstract where nothing can be compiled for the chips.

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
        extents, kinds = tuple(sizes.values()), (AxisType.Auto,) * len(AXES)
        if not self.compiles:
            return AbstractMesh(extents, AXES, kinds)
        if self.chip is None:
            return Mesh(np.array(self.devices).reshape(extents), AXES, kinds)
        return Mesh(arranged(extents, self.devices, self.slices), AXES, kinds)


def topology(name: str, slices: int = 1) -> Topology:
    """Returns chips that need not be here.

    Args:
      name: a slice that the compiler for TPUs knows, such as ``v5e:4x4`` or ``v5p:4x4x4``; a node of GPUs,
        such as ``h100:8``; or simulated devices, ``cpu:8``.
      slices: how many slices or nodes.

    Raises:
      UserError: no such chip or shape, or the package libtpu is not installed.
    """
    if name.startswith("cpu:"):
        return _simulated(name, slices)
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match or match[1] not in CHIPS:
        asked = name.partition(":")[0]
        shape = "give it as CHIP:AxB, AxBxC for v4 and v5p, or CHIP:N for GPUs"
        hint = shape if asked in CHIPS else f"chips: {', '.join(CHIPS)}; or cpu:N"
        raise UserError(f"topology {name!r} is unknown; {hint}")
    chip = CHIPS[match[1]]
    if match[2].count("x") + 1 != chip.dimensions:
        example = "x".join("4" * chip.dimensions)
        sides = f"slices of {chip.name} have {chip.dimensions} sides"
        if chip.platform == "gpu":
            sides, example = "GPUs are counted by nodes, more of them by --slices", "8"
        raise UserError(f"topology {name!r}: {sides}: {chip.name}:{example}")
    if slices < 1:
        raise UserError(f"--slices {slices}: at least 1")
    if chip.platform == "gpu":
        return Topology(name, chip, slices, range(slices * int(match[2])))
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
        shapes = ", ".join(_SLICES[chip.dimensions])
        raise UserError(
            f"topology {name!r}: no such slice ({' '.join(str(error).split())[:200]}); such as {shapes}"
        ) from error
    devices: list[Any] = sorted(found.devices, key=lambda device: (slice_of(device), device.id))
    return Topology(name, chip, slices, devices)


def _simulated(name: str, slices: int) -> Topology:
    """Returns simulated devices of this machine's CPU."""
    if not re.fullmatch(r"cpu:[1-9]\d*", name):
        raise UserError(f"topology {name!r}: simulated devices are given as cpu:N, such as cpu:8")
    if slices != 1:
        raise UserError(f"--slices {slices}: simulated devices are one slice")
    count = int(name.removeprefix("cpu:"))
    with contextlib.suppress(RuntimeError):  # JAX runs already, with the devices that it has
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"topology {name!r}: this process has {len(devices)} simulated devices")
    return Topology(name, None, 1, devices[:count])


def default_platform_is_cpu() -> None:
    """Keeps JAX from looking for a TPU that is not there, where only its compiler is wanted."""
    jax.config.update("jax_platforms", "cpu")
