"""Topologies: what is refused, and meshes over simulated slices."""

from __future__ import annotations

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from research.errors import UserError
from research.scale.chips import CHIPS, Topology, topology

LIBTPU = importlib.util.find_spec("libtpu") is not None


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("v5:4x4", "topology 'v5:4x4' is unknown; chips: v4, v5e, v5p, v6e, a100, h100, h200; or cpu:N"),
        ("v5e", "topology 'v5e' is unknown; give it as CHIP:AxB"),
        ("v5p:4x4", "slices of v5p have 3 sides: v5p:4x4x4"),
        ("v5e:4x4x4", "slices of v5e have 2 sides: v5e:4x4"),
        ("h100", "CHIP:N for GPUs"),
        ("h100:4x4", "GPUs are counted by nodes, more of them by --slices: h100:8"),
        ("cpu:", "simulated devices are given as cpu:N, such as cpu:8"),
        ("cpu:2x2", "simulated devices are given as cpu:N"),
        ("cpu:4096", "this process has"),
    ],
)
def test_an_unknown_topology_is_one_line(name, line):
    jax.devices()  # from here on there are no more
    with pytest.raises(UserError) as error:
        topology(name)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_shape_that_the_compiler_refuses_is_one_line_with_those_that_are(monkeypatch):
    def refuse(**named):
        raise RuntimeError("INVALID_ARGUMENT: 3x5 is not divisible\nby 2x2x1")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", refuse)
    with pytest.raises(UserError) as error:
        topology("v5e:3x5")
    assert str(error.value) == (
        "topology 'v5e:3x5': no such slice (INVALID_ARGUMENT: 3x5 is not divisible by 2x2x1); such as "
        "2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"
    )


@pytest.mark.skipif(LIBTPU, reason="the compiler for TPUs is installed")
def test_a_missing_compiler_is_one_line():
    with pytest.raises(UserError, match=r"needs their compiler, the package libtpu: pip install"):
        topology("v5e:4x4")


def test_gpus_make_an_abstract_mesh_over_nodes():
    mesh = topology("h100:8", slices=2).mesh(1, -1, 4, 1)
    assert isinstance(mesh, AbstractMesh) and dict(mesh.shape) == {
        "data": 2, "fsdp": 2, "tensor": 4, "sequence": 1
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fake:
    """A device, as far as refusing a mesh looks at it."""

    id: int


@pytest.mark.parametrize("axes", [(1, 3, 1, 1), (-1, -1, 1, 1), (1, 4, 1, 1), (3, -1, 1, 1), (1, -1, 0, 1)])
def test_axes_that_do_not_multiply_up_are_one_line(axes):
    slices = Topology("v5e:2x2", CHIPS["v5e"], 2, [Fake(i) for i in range(8)])
    if axes == (1, 4, 1, 1):  # data becomes the two slices
        slices = dataclasses.replace(slices, devices=slices.devices[:6])
    with pytest.raises(UserError, match=r"is no mesh of 2 x v5e:2x2 \(\d chips\): axes multiply up"):
        slices.mesh(*axes)


def test_what_remains_may_be_the_axis_between_slices(monkeypatch):
    slices = Topology("v5e:2x2", CHIPS["v5e"], 2, jax.devices()[:1] * 8)
    monkeypatch.setattr("research.scale.chips.arranged", lambda shape, *of: np.empty(shape, object))
    monkeypatch.setattr("research.scale.chips.Mesh", lambda arranged, axes, axis_types: arranged.shape)
    assert slices.mesh(-1, 4, 1, 1) == slices.mesh(1, -1, 1, 1) == (2, 4, 1, 1)
    with pytest.raises(UserError, match="data is a multiple of the slices"):
        slices.mesh(-1, 8, 1, 1)
