"""The short causal convolution before linear attention: depthwise, within documents, with its state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def short_convolution(
    x: Float[Array, "batch length channels"],
    kernel: Float[Array, "width channels"],
    *,
    document: Int[Array, "#batch length"] | None = None,
    tail: Float[Array, "batch before channels"] | None = None,
) -> Float[Array, "batch length channels"]:
    """Returns sum_n kernel[width - 1 - n] x_(t - n) over the tokens of t's document, dtype of x.

    Args:
      x: inputs, 0 at padding.
      kernel: weights; the last is the token's own.
      document: number of the document of each token of a row, from 0; None: one document.
      tail: the width - 1 inputs before the first token, which continues their document (0); None: 0.

    Padding within a document counts as inputs of 0. Computed in the dtype of x.
    """
    width, length = len(kernel), x.shape[1]
    kernel = kernel.astype(x.dtype)[:, None, None]
    if tail is None:
        tail = jnp.zeros((x.shape[0], width - 1, x.shape[2]), x.dtype)
    inputs = jnp.concatenate([tail.astype(x.dtype), x], axis=1)
    if document is not None:
        document = jnp.pad(document, ((0, 0), (width - 1, 0)))
    out = x * kernel[-1]
    for n in range(1, width):
        start = width - 1 - n
        earlier = inputs[:, start : start + length]
        if document is not None:
            same = document[:, start : start + length] == document[:, width - 1 :]
            earlier = jnp.where(same[:, :, None], earlier, jnp.zeros((), x.dtype))
        out = out + earlier * kernel[-1 - n]
    return out


def next_tail(
    tail: Float[Array, "batch before channels"],
    x: Float[Array, "batch length channels"],
    *,
    real: Bool[Array, "#batch length"] | None = None,
    document: Int[Array, "#batch length"] | None = None,
) -> Float[Array, "batch before channels"]:
    """Returns the inputs of the last ``before`` real tokens of the last document, dtype of ``tail``.

    Args:
      tail: the inputs before x. x: inputs, 0 at padding. real: False at padding; None: all are real.
      document: number of the document of each token of a row, from 0, that of padding being its
      predecessor's.
    """
    before = tail.shape[1]
    inputs = jnp.concatenate([tail, x.astype(tail.dtype)], axis=1)
    if real is None or before == 0:
        return inputs[:, inputs.shape[1] - before :]
    shape = (x.shape[0], x.shape[1])
    index = jnp.where(real, jnp.arange(x.shape[1], dtype=jnp.int32)[None] + before, -1)
    index = jnp.broadcast_to(index, shape)
    first = jnp.broadcast_to(jnp.arange(before, dtype=jnp.int32)[None], (shape[0], before))
    last = jax.lax.top_k(jnp.concatenate([first, index], axis=1), before)[0][:, ::-1]
    kept = jnp.take_along_axis(inputs, last[:, :, None], axis=1)
    if document is None:
        return kept
    document = jnp.broadcast_to(jnp.pad(document, ((0, 0), (before, 0))), inputs.shape[:2])
    same = jnp.take_along_axis(document, last, axis=1) == document[:, -1:]
    return jnp.where(same[:, :, None], kept, jnp.zeros((), kept.dtype))
