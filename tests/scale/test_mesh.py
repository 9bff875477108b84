"""Meshes: sizes, the axis that takes the rest, and what is said of one that does not fit."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import pytest

from research.errors import UserError
from research.scale import mesh as meshes
from research.scale.mesh import AXES, make_mesh


@pytest.fixture
def eight(monkeypatch):
    """Stand-ins for eight devices; what is asked of JAX is recorded instead of built."""
    monkeypatch.setattr(
        meshes.jax,
        "make_mesh",
        lambda sizes, axes, axis_types, devices: SimpleNamespace(sizes=sizes, axes=axes),
    )
    return jax.devices()[:1] * 8


def test_one_device_is_a_mesh_of_one():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert mesh.axis_names == AXES and dict(mesh.shape) == dict.fromkeys(AXES, 1)


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        ({}, (1, 8, 1, 1)),
        ({"data": 2}, (2, 4, 1, 1)),
        ({"data": -1, "fsdp": 2}, (4, 2, 1, 1)),
        ({"fsdp": 2, "tensor": 2, "sequence": -1}, (1, 2, 2, 2)),
        ({"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}, (2, 2, 2, 1)),
        ({"tensor": 8}, (1, 1, 8, 1)),
    ],
)
def test_axes_are_as_asked_and_minus_one_takes_the_rest(eight, asked, sizes):
    mesh = make_mesh(**asked, devices=eight)
    assert mesh.sizes == sizes and mesh.axes == AXES


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"data": 16}, "data 16 * fsdp -1 * tensor 1 * sequence 1 is no mesh of 8 devices"),
        ({"data": 3}, "these must divide 8"),
        ({"fsdp": 4}, "fsdp 4 * tensor 1 * sequence 1 is no mesh of 8 devices"),
        ({"tensor": 0}, "axes are positive, and at most one is -1"),
        ({"tensor": -2}, "axes are positive"),
        ({"tensor": -1}, "at most one is -1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(eight, asked, line):
    with pytest.raises(UserError) as error:
        make_mesh(**asked, devices=eight)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_one_device_is_spoken_of_in_the_singular():
    with pytest.raises(UserError, match="no mesh of 1 device; "):
        make_mesh(data=2, devices=jax.devices()[:1])


@pytest.mark.parametrize(
    ("asked", "shape"),
    [({}, (2, 4, 1, 1)), ({"tensor": 2}, (2, 2, 2, 1)), ({"data": 4}, (4, 2, 1, 1)), ({"fsdp": 8}, None)],
)
def test_of_several_slices_data_runs_between_them_where_it_can(monkeypatch, eight, asked, shape):
    devices = [SimpleNamespace(slice_index=i // 4) for i in range(8)]
    monkeypatch.setattr(meshes, "arranged", lambda shape, devices, slices: (shape, slices))
    monkeypatch.setattr(meshes, "Mesh", lambda arranged, axes, axis_types: arranged)
    found = make_mesh(devices=devices, **asked)
    if shape is None:  # parameters split over all, slow links included, because that was asked for
        assert found.sizes == (1, 8, 1, 1)
    else:
        assert found == (shape, 2)
