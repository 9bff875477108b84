"""Arrays of a checkpoint, read straight into the memory that they stay in.

Orbax writes arrays as Zarr in an OCDBT database. TensorStore reads them here without it, because Orbax holds
an array, what is read of its file and what is copied to the device at once (1.7 times the bytes of the
weights): here files are mapped into memory, and copied piece by piece to where the arrays stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from research.data.object_store import is_object
from research.training.paths import path_name

if TYPE_CHECKING:
    import tensorstore

Tree = TypeVar("Tree")
Part = tuple[tuple[slice, ...], np.ndarray]
"""Region of an array, and memory of that shape for it."""

_ALIGNMENT = 64
"""Bytes; a CPU device of XLA takes over memory that begins at a multiple."""
_PIECE = 1 << 25
"""Bytes that are copied at once, at least."""
_PIECES = 16
"""Parts that an array is copied in, at most."""
_THREADS = 2
"""Arrays read at once."""


def read_arrays(folder: Path, like: Tree) -> Tree:
    """Returns arrays that Orbax has saved.

    Args:
      folder: that of the saved tree, on a disk or in a bucket.
      like: part of the tree, of ``jax.ShapeDtypeStruct`` with shardings: they decide where the arrays lie,
        whatever mesh they were saved from, and their dtypes.
    """
    import tensorstore as ts

    context = ts.Context({"file_io_mode": {"mode": "memmap"}, "file_io_concurrency": {"limit": _THREADS}})
    base = str(folder) if is_object(folder) else f"file://{folder.absolute()}"
    database = {"driver": "ocdbt", "base": f"{base}/"}

    def read(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path_name(path).replace("/", ".")
        spec = {"driver": "zarr", "kvstore": {**database, "path": f"{name}/"}}
        stored = ts.open(spec, open=True, read=True, context=context).result()
        return placed(leaf, lambda parts: _copy(stored, parts))

    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    with ThreadPoolExecutor(_THREADS) as pool:
        return jax.tree.unflatten(structure, pool.map(lambda item: read(*item), leaves))


def placed(like: jax.ShapeDtypeStruct, fill: Callable[[Sequence[Part]], None]) -> jax.Array:
    """Returns an array whose parts, one for each distinct region that a device has, are filled here.

    A CPU device takes over what was filled, other devices copy it. So beyond the array there is at most what
    ``fill`` holds, and where devices have memory of their own the array once more, in the host's.

    Args:
      like: shape, dtype and sharding.
      fill: fills all parts.
    """
    sharding = like.sharding
    assert sharding is not None
    parts: dict[tuple[tuple[int, int, int], ...], np.ndarray] = {}
    where = {}
    for device, index in sharding.addressable_devices_indices_map(like.shape).items():
        assert index is not None
        where[device] = tuple(part.indices(size) for part, size in zip(index, like.shape, strict=True))
        if where[device] not in parts:
            parts[where[device]] = _aligned(sharding.shard_shape(like.shape), like.dtype)
    fill([(tuple(slice(*bounds) for bounds in region), memory) for region, memory in parts.items()])
    shards = [jax.device_put(parts[region], device) for device, region in where.items()]
    return jax.make_array_from_single_device_arrays(like.shape, sharding, shards)


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Returns an array, not filled, that a CPU device takes over without copying it."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _copy(stored: tensorstore.TensorStore, parts: Sequence[Part]) -> None:
    """Copies regions of a stored array."""
    import tensorstore as ts

    raw = stored.spec().to_json()["metadata"]["compressor"] is None
    for region, out in parts:
        source = stored if stored.dtype.numpy_dtype == out.dtype else ts.cast(stored, out.dtype)
        if region:
            source = source[region][ts.d[:].translate_to[0]]
        for rows in _pieces(out) if raw else (...,):  # a compressed chunk would be expanded for every piece
            ts.array(out)[rows].write(source[rows]).result()


def _pieces(out: np.ndarray) -> Iterator[Any]:
    """Yields indices that split an array along its first axis."""
    if out.nbytes <= _PIECE:
        yield ...
        return
    # A chunk that lies unaligned in its file is copied for every piece, hence not too many.
    rows = math.ceil(len(out) * max(_PIECE / out.nbytes, 1 / _PIECES))
    for start in range(0, len(out), rows):
        yield slice(start, min(start + rows, len(out)))
