"""Several processes that train one run: joining them, agreeing, and parting.

JAX finds the other processes by itself on Cloud TPU, GKE, Slurm and Open MPI (`jax.distributed.initialize`);
elsewhere the command line names them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.errors import LostError, StoppedError, UserError

_HEARTBEAT = 30  # seconds without a sign of life after which JAX ends the other processes
_FAREWELL = 30  # seconds to wait for the others at the end
_START = 300  # seconds to wait for the others at the start

# How a collective says that a process at its other end is gone, rather than that the program is wrong.
_GONE = ("UNAVAILABLE", "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "Gloo", "closed by peer")


def join(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Makes this process one of those that train together; does nothing where there is one only.

    Args:
      coordinator: HOST:PORT at which process 0 listens; None: ask the environment.
      processes: how many there are; named if and only if ``coordinator`` is.
      process: which one this is, from 0; named if and only if ``coordinator`` is.
      environment: the environment's variables.

    Raises:
      UserError: the three do not fit together, or the others cannot be reached.
    """
    named = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in named.items() if value is None]
    if 0 < len(missing) < len(named):
        given = next(name for name, value in named.items() if value is not None)
        raise UserError(
            f"{given} needs {' and '.join(missing)} as well: HOST:PORT, how many, and which (from 0)"
        )
    if coordinator is not None and processes is not None and process is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise UserError(f"--coordinator: expected HOST:PORT, found {coordinator!r}")
        if not 0 <= process < processes:
            raise UserError(f"--process {process}: from 0 to {processes - 1} of --processes {processes}")
        if process > 0:
            _reach(host.strip("[]"), int(port))
    elif _alone(environment) or jax.distributed.is_initialized():
        return
    # JAX's own way to notice SIGTERM would swallow it until the loop begins, which has its own.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            # Named processes are not to be searched for: JAX would take a Slurm job around them for the run.
            cluster_detection_method=None if coordinator is None else "deactivate",
            initialization_timeout=_START,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_FAREWELL,
        )
    except ValueError as error:
        if coordinator is None and "coordinator_address" in str(error):
            return  # JAX has found no environment it knows
        raise
    except RuntimeError as error:
        if "before any JAX calls" in str(error):
            if coordinator is None and jax.process_count() == 1 and "SLURM_NTASKS" not in environment:
                return  # called from a program that computes already: it is alone
            raise UserError(
                "several processes must join before JAX computes: let the experiment's file make no arrays"
            ) from error
        raise UserError(f"cannot join the other processes: {str(error).splitlines()[0]}") from error


def _reach(host: str, port: int) -> None:
    """Waits until the coordinator listens; JAX, which waits as well, would end the process without a word."""
    deadline = time.monotonic() + _START
    while True:
        try:
            socket.create_connection((host, port), timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                reason = error.strerror or str(error)
                raise UserError(
                    f"--coordinator: cannot reach {host}:{port} within {_START} s ({reason}); process 0"
                    " listens there when it has started"
                ) from error
        time.sleep(0.5)  # it may start later than we do


def _alone(environment: Mapping[str, str]) -> bool:
    """Returns whether JAX would take an environment of one process for one of several, or part of it.

    Of a Slurm job with one task it would hide all devices but the first; a pod that is no part of an indexed
    job makes it fail.
    """
    if environment.get("SLURM_NTASKS") == "1":
        return True
    tpu = "TPU_WORKER_HOSTNAMES" in environment or "TPU_PROCESS_ADDRESSES" in environment
    return "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" not in environment and not tpu


@contextlib.contextmanager
def together(complain: Callable[[BaseException], int]) -> Iterator[None]:
    """The part of a program that several processes run together; what happens to one, the others notice.

    At the end of the context, and when all of them stop, the processes wait for one another. One that fails
    by itself does not: it says why and ends at once, for the others wait for it in a collective operation and
    are told by their broken connections.

    Args:
      complain: prints an error and returns the exit code.

    Raises:
      StoppedError, UserError: all processes have stopped.
    """
    if not jax.distributed.is_initialized():
        yield
        return
    try:
        yield
        jax.distributed.shutdown()
    except StoppedError:
        jax.distributed.shutdown()
        raise
    except BaseException as error:
        if isinstance(error, UserError) and not jax.distributed.is_initialized():
            raise  # all of them have agreed on it
        code = complain(loss(error) or error)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)  # Python's way out would wait for collectives that nobody answers


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """A part that must succeed in every process, without collectives in it: if one fails, all of them stop.

    Raises:
      UserError: another process has failed.
    """
    if jax.process_count() == 1:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    with jax.transfer_guard("allow"):
        failed = np.flatnonzero(multihost_utils.process_allgather(np.array(failure is not None)))
    if not len(failed):
        return
    jax.distributed.shutdown()
    if failure is not None:
        raise failure
    raise UserError(f"process {failed[0]} could not start: see what it says")


def of_first(numbers: Callable[[], tuple[int, ...]], count: int) -> tuple[int, ...]:
    """Returns ``count`` numbers as process 0 finds them; the other processes do not look."""
    if jax.process_count() == 1:
        return numbers()
    found = numbers() if jax.process_index() == 0 else (0,) * count
    with jax.transfer_guard("allow"):
        return tuple(int(i) for i in multihost_utils.broadcast_one_to_all(np.array(found, np.int32)))


def loss(error: BaseException) -> LostError | None:
    """Returns what an error comes to if it says that another process is gone, else None."""
    text = str(error)
    if not isinstance(error, (jax.errors.JaxRuntimeError, RuntimeError, ValueError)):
        return None
    if not any(sign in text for sign in _GONE):
        return None
    reason = next((line for line in text.splitlines() if line.strip()), "")
    return LostError(f"another process of the run is gone ({reason[:200]})")


def share(mesh: Mesh, axes: tuple[str, ...]) -> tuple[int, int]:
    """Returns which share of a batch this process reads, and how many shares there are.

    Rows are split over ``axes`` of the mesh. Processes whose devices hold the same rows read the same share;
    where processes have rows in common in part only, each reads all of them: share 0 of 1.
    """
    shares = _shares(mesh, axes)
    return shares.get(jax.process_index(), 0), len(set(shares.values())) or 1


@functools.cache
def _shares(mesh: Mesh, axes: tuple[str, ...]) -> dict[int, int]:
    """Returns which share each process reads; nothing, where each reads all."""
    rows: Mapping[Any, Any] = NamedSharding(mesh, PartitionSpec(axes)).devices_indices_map((mesh.size,))
    held: dict[int, set[int]] = {}
    for device, (part,) in rows.items():
        held.setdefault(device.process_index, set()).add(part.start or 0)
    parts = sorted({tuple(sorted(starts)) for starts in held.values()})
    apart = len(set().union(*parts)) == sum(map(len, parts))
    if not apart or len({len(starts) for starts in parts}) != 1:
        return {}
    return {process: parts.index(tuple(sorted(starts))) for process, starts in held.items()}


def whole(tree: object) -> object:
    """Returns arrays that lie on several processes' devices as NumPy arrays, whole; others as they are."""
    if jax.process_count() == 1:
        return tree
    with jax.transfer_guard("allow"):
        return multihost_utils.process_allgather(tree, tiled=True)
