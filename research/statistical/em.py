"""One iteration of expectation-maximisation over a bitext, its batches shared out to the devices of a mesh.

The expectation step is any function ``parameters, totals, own, batch -> totals, beliefs``: it adds a batch's
expected counts to the totals, each device to its own, which are summed once, at the end of the iteration.
What a model wants to know of a batch in the next iteration (its *beliefs*) waits on the host in the meantime.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.statistical.bitext import Batch, Bitext, Block, make_batch

AXIS = "data"
"""The mesh's axis, over which sentence pairs are divided."""

Tree = TypeVar("Tree")


def device_per_core() -> None:
    """Makes JAX take every core (of up to eight) for a device, unless it runs already.

    Expectations are many small operations: sentence pairs shared out to the cores are faster than each one
    shared out by itself.
    """
    with contextlib.suppress(RuntimeError):  # JAX runs already, with the devices that it has
        jax.config.update("jax_num_cpu_devices", min(len(os.sched_getaffinity(0)), 8))


def device_mesh(devices: int | None = None) -> Mesh:
    """Returns a mesh of the first ``devices`` devices, or of all."""
    return Mesh(np.array(jax.devices()[:devices]), (AXIS,))


@functools.lru_cache(maxsize=64)
def make_step(
    expect: Callable[..., tuple[Any, Any]], mesh: Mesh, **settings: Any
) -> Callable[..., tuple[Any, Any]]:
    """Returns the compiled expectation step; totals, with a leading axis of devices, are updated in place.

    Args:
      expect: the step (see above), a function of a module, so that what is compiled serves the next training.
      mesh: devices.
      settings: keyword arguments of ``expect``.
    """

    def local(parameters: Any, totals: Any, own: Any, batch: Batch) -> tuple[Any, Any]:
        totals = jax.tree.map(lambda t: t[0], totals)
        totals, beliefs = expect(parameters, totals, own, batch, **settings)
        return jax.tree.map(lambda t: t[None], totals), beliefs

    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), P(AXIS), P(AXIS), P(AXIS)),
        out_specs=(P(AXIS), P(AXIS)),
        check_vma=False,
    )
    return jax.jit(sharded, donate_argnums=1)


def zeros(like: Tree, mesh: Mesh) -> Tree:
    """Returns empty totals shaped like ``like``, for every device."""
    sharding = NamedSharding(mesh, P(AXIS))
    return jax.tree.map(lambda x: jnp.zeros((mesh.size, *x.shape), x.dtype, device=sharding), like)


def reduce_totals(totals: Tree) -> Tree:
    """Returns the totals summed over the devices of this process, on the first of them.

    By copies between devices: XLA's all-reduce among simulated CPU devices needs a thread for each, and where
    there are fewer cores it waits for ever.
    """

    def reduce(total: jax.Array) -> jax.Array:
        parts = sorted(total.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        first = parts[0].data
        return functools.reduce(jnp.add, (jax.device_put(p.data, first.device)[0] for p in parts))

    return jax.tree.map(reduce, totals)


def run_blocks(
    step: Callable[..., tuple[Any, Any]],
    parameters: Any,
    totals: Any,
    bitext: Bitext,
    found: Sequence[Block],
    mesh: Mesh,
    beliefs: Callable[[Block], Any] = lambda block: (),
    keep: Callable[[Block, Any], None] = lambda block, new: None,
) -> Any:
    """Runs the expectation step over all batches and returns the totals.

    Batches are made by a thread while others are computed, and the beliefs of one are fetched when the next
    is under way.
    """
    sharding = NamedSharding(mesh, P(AXIS))

    def prepare(block: Block) -> tuple[Any, Batch]:
        return jax.device_put((beliefs(block), make_batch(bitext, block)), sharding)

    pending: tuple[Block, Any] | None = None
    for block, (own, batch) in _ahead(prepare, found):
        totals, new = step(parameters, totals, own, batch)
        if pending:
            keep(*pending)
        pending = (block, new)
    if pending:
        keep(*pending)
    return totals


def _ahead(
    prepare: Callable[[Block], tuple[Any, Batch]], found: Sequence[Block]
) -> Iterator[tuple[Block, tuple[Any, Batch]]]:
    """Yields each block and what ``prepare`` makes of it, which happens one block ahead."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for block in found:
            following = (block, pool.submit(prepare, block))
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting:
            yield waiting[0], waiting[1].result()
