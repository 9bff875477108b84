"""Dropout decided by (key, index): the same under any sharding, remat or device count."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt32


def _mix(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """Returns a bijective 32-bit mix of x (the "lowbias32" constants of Wellons' hash prospector)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def keep(
    key: Key[Array, ""],
    rate: float,
    shape: tuple[int, ...],
    *,
    start: tuple[jax.typing.ArrayLike, ...] | None = None,
    size: tuple[int, ...] | None = None,
) -> Bool[Array, "*shape"]:
    """Returns independent booleans that are False with probability ``rate``.

    Each is a hash of the key and of the element's index (two rounds, one per word of the key): a handful of
    integer operations that fuse into whatever uses them, where a cipher such as Threefry would dominate a
    step on a CPU.

    Args:
      key: key of the dropout.
      rate: probability of False.
      shape: shape of the whole array.
      start: index of the first element of the tile that is wanted; None: the array itself.
      size: shape of that tile.

    Raises:
      ValueError: the array has 2^32 elements or more, so that indices would repeat.
    """
    if math.prod(shape) >= 2**32:
        raise ValueError(f"dropout over {shape}: at most 2^32 - 1 elements")
    size = shape if size is None else size
    first, second = jax.random.key_data(key)
    index = jnp.zeros(size, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        place = jax.lax.broadcasted_iota(jnp.uint32, size, axis)
        if start is not None:
            place = place + jnp.asarray(start[axis]).astype(jnp.uint32)
        index = index + place * jnp.uint32(stride)
        stride *= shape[axis]
    bits = _mix(_mix(index ^ first) ^ second)
    return bits >= jnp.uint32(round(rate * 2**32))


def dropout(x: Float[Array, "*shape"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*shape"]:
    """Returns x with a share ``rate`` of elements zeroed and the rest scaled by 1/(1 - rate).

    That is inverted dropout (Srivastava et al., 2014). A ``key`` of None, or a rate of 0, leaves x as it is.
    """
    if key is None or rate == 0.0:
        return x
    return jnp.where(keep(key, rate, x.shape), x * (1.0 / (1.0 - rate)), jnp.zeros((), x.dtype))
