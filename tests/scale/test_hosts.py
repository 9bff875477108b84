"""Joining several processes: what is refused, and which share of a batch each reads."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from research.errors import LostError, UserError
from research.scale import hosts
from research.scale.mesh import AXES


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("localhost:1", None, None), "--coordinator needs --processes and --process as well"),
        ((None, 2, None), "--processes needs --coordinator and --process as well"),
        (("localhost:1", None, 0), "--coordinator needs --processes as well"),
        (("localhost", 2, 0), "--coordinator: expected HOST:PORT, found 'localhost'"),
        (("localhost:http", 2, 0), "--coordinator: expected HOST:PORT"),
        (("localhost:99999", 2, 0), "--coordinator: expected HOST:PORT"),
        (("localhost:1", 2, 2), "--process 2: from 0 to 1 of --processes 2"),
    ],
)
def test_what_does_not_name_the_processes_is_refused(arguments, line):
    with pytest.raises(UserError, match="^" + line):
        hosts.join(*arguments)


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, True),
        ({"SLURM_NTASKS": "1"}, False),  # JAX would hide all devices but the first
        ({"SLURM_NTASKS": "8"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a pod by itself
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_where_jax_is_asked_for_the_environment(monkeypatch, environment, asked):
    calls = []

    def initialize(*arguments, **options):
        calls.append(arguments)
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    hosts.join(None, None, None, environment)
    assert calls == ([(None, None, None)] if asked else [])


def test_a_program_that_computes_already_is_alone_and_cannot_join():
    jax.devices()
    hosts.join(None, None, None, {})
    for arguments, environment in (
        (("localhost:1", 2, 0), {}),
        ((None, None, None), {"SLURM_NTASKS": "8"}),
    ):
        with pytest.raises(UserError, match="several processes must join before JAX computes"):
            hosts.join(*arguments, environment)


def test_a_coordinator_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.setattr(hosts, "_START", 0.1)
    with pytest.raises(
        UserError, match=r"^--coordinator: cannot reach localhost:1 within 0.1 s \(Connection"
    ):
        hosts.join("localhost:1", 2, 1)


def test_without_an_environment_that_jax_knows_there_is_one_process():
    hosts.join(None, None, None, {})
    assert not jax.distributed.is_initialized()


class Device:
    """A device of some process, as far as a sharding looks at it."""

    platform = device_kind = "cpu"

    def __init__(self, number, process):
        self.id, self.process_index = number, process


def mesh_of(processes, **sizes):
    """A mesh whose devices, in order, belong to these processes."""
    devices = np.array([Device(i, process) for i, process in enumerate(processes)], dtype=object)
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    return Mesh(devices.reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


@pytest.mark.parametrize(
    ("processes", "sizes", "shares"),
    [
        ([0, 0, 1, 1], {"fsdp": 4}, {0: (0, 2), 1: (1, 2)}),
        ([0, 0, 1, 1], {"data": 2, "fsdp": 2}, {0: (0, 2), 1: (1, 2)}),
        # The devices of both processes hold all rows: both read all of them.
        ([0, 0, 1, 1], {"tensor": 4}, {0: (0, 1), 1: (0, 1)}),
        ([0, 1, 0, 1], {"fsdp": 2, "tensor": 2}, {0: (0, 1), 1: (0, 1)}),
        ([0, 0, 1, 1, 2, 2, 3, 3], {"fsdp": 2, "tensor": 4}, {0: (0, 2), 1: (0, 2), 2: (1, 2), 3: (1, 2)}),
        ([0, 1, 2, 3], {"fsdp": 2, "sequence": 2}, {0: (0, 2), 1: (0, 2), 2: (1, 2), 3: (1, 2)}),
        # Slices arrange their chips so that a host's need not lie side by side.
        ([0, 1, 0, 1], {"fsdp": 4}, {0: (0, 2), 1: (1, 2)}),
        # Rows in common in part only.
        ([0, 0, 0, 1, 1, 1], {"fsdp": 3, "tensor": 2}, {0: (0, 1), 1: (0, 1)}),
    ],
)
def test_the_share_of_a_batch_follows_from_the_mesh(monkeypatch, processes, sizes, shares):
    mesh = mesh_of(processes, **sizes)
    for process, expected in shares.items():
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert hosts.share(mesh, ("data", "fsdp")) == expected


def test_errors_of_lost_connections_and_others():
    gone = RuntimeError("INTERNAL: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:1\n more")
    found = hosts.loss(gone)
    assert isinstance(found, LostError) and "another process of the run is gone (INTERNAL: Gloo" in str(found)
    assert hosts.loss(RuntimeError("RESOURCE_EXHAUSTED: out of memory")) is None
    assert hosts.loss(KeyError("Gloo")) is None


def test_one_process_agrees_with_itself():
    with hosts.agreed():
        pass
    with pytest.raises(UserError, match="no"), hosts.agreed():
        raise UserError("no")
    assert hosts.of_first(lambda: (3, 4), 2) == (3, 4)
