"""What a model costs: arithmetic per token, counted analytically, and the arithmetic a machine can do.

Compilers' own counts leave out custom kernels, so every figure here is counted from the description.
"""

from __future__ import annotations

import time

from research.models.gpt import GPT

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


def matmul_parameters(model: GPT) -> int:
    """Returns the number of weights in matrix products: all matrices and the head, no look-up tables."""
    key_value_width = model.head_dim * model.key_value_heads
    attention = 2 * model.width * model.width + 2 * model.width * key_value_width
    feed_forward = (3 if model.feed_forward == "swiglu" else 2) * model.width * model.hidden
    return model.layers * (attention + feed_forward) + model.width * model.vocabulary


def training_flops_per_token(model: GPT, length: int, *, causal: bool) -> float:
    """Returns the FLOPs of forward and backward for one token of a sequence, as PaLM's appendix B counts.

    6 per matrix weight (2 forward, 4 backward), and 12 * layers * width for each key that a query is scored
    against: 2 * width for its logit and 2 * width for its value forward, twice that backward. Recomputation
    (remat) and all that is not a matrix product is left out.

    Args:
      model: the description.
      length: tokens in a sequence.
      causal: False counts ``length`` keys for every query (Chowdhery et al., 2022); True only those it may
        see: half of them for plain causal attention (Dao, 2023), fewer with a window.
    """
    window = min(model.window or length, length)
    visible = window * (window + 1) / 2 + (length - window) * window
    keys = visible / length if causal else length
    return 6.0 * matmul_parameters(model) + 12.0 * model.layers * model.width * keys


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
