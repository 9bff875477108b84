"""The arithmetic a machine can do: vendors' peaks and a measured rate."""

from __future__ import annotations

import time

PEAK_BF16 = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "TPU v6": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}
"""Vendors' dense bfloat16 peak in FLOP/s, by a part of the device's kind; the first match counts."""


def peak_flops(device_kind: str) -> float | None:
    """Returns a device's dense bfloat16 peak in FLOP/s by its ``device_kind``; None if it is not known."""
    return next((peak for name, peak in PEAK_BF16.items() if name in device_kind), None)


def matmul_rate(size: int = 2048, repeats: int = 5, dtype: str = "float32") -> float:
    """Returns the measured rate of a square matrix product on the default device, in FLOP/s (the best)."""
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds)
