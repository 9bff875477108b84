"""Scaled dot-product attention, the reference engine: plain, differentiable to any order in any mode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from research.attention.dropout import keep
from research.attention.masks import AnyArray

MASKED = -1e30
"""Score of a masked pair; finite, so that no gradient is NaN."""
FLOOR = -1e29
"""Least maximum of a row: in a row that is masked throughout, exp(MASKED - FLOOR) is 0, not 1."""


def masked_softmax(
    scores: Float[Array, "*shape keys"], allowed: Bool[Array, "*#shape #keys"]
) -> Float[Array, "*shape keys"]:
    """Returns softmax of the scores over what is allowed, float32; 0 throughout where nothing is.

    Scores that are not allowed may be NaN.
    """
    scores = jnp.where(allowed, scores.astype(jnp.float32), MASKED)
    top = jax.lax.stop_gradient(jnp.maximum(scores.max(-1, keepdims=True), FLOOR))
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    return weights / jnp.where(total == 0.0, 1.0, total)


def reference(
    q: Float[Array, "batch q_len heads head_dim"],
    k: Float[Array, "batch kv_len kv_heads head_dim"],
    v: Float[Array, "batch kv_len kv_heads value_dim"],
    allowed: Bool[AnyArray, "#batch q_len kv_len"] | None,
    *,
    scale: float,
    soft_cap: float | None = None,
    bias: Float[Array, "#batch #heads q_len kv_len"] | None = None,
    sink: Float[Array, " heads"] | None = None,
    dropout: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "batch q_len heads value_dim"]:
    """Returns softmax(cap(scale * q k^T) + bias + mask) v (Vaswani et al., 2017, eq. 1), dtype of v.

    Query head h reads key/value head h // (heads / kv_heads) (grouped-query attention; Ainslie et al., 2023).
    ``sink`` is a logit per head that takes its share of the softmax and gives nothing. Scores and softmax are
    float32. A row that may attend to nothing gives 0, with 0 gradient.
    """
    batch, q_len, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    # Heads before length, and the queries that share a key/value head as rows of one matrix: plain batched
    # matmuls.
    q = (q * jnp.asarray(scale, q.dtype)).transpose(0, 2, 1, 3).reshape(batch, kv_heads, -1, head_dim)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, heads, q_len, -1)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        scores = jnp.where(allowed[:, None], scores, MASKED)
    top = jnp.maximum(scores.max(-1, keepdims=True), FLOOR)
    if sink is not None:
        sink = sink.astype(jnp.float32)[None, :, None, None]
        top = jnp.maximum(top, sink)
    top = jax.lax.stop_gradient(top)
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    if sink is not None:
        total = total + jnp.exp(sink - top)
    if dropout_key is not None and dropout > 0.0:
        weights = jnp.where(keep(dropout_key, dropout, weights.shape), weights * (1.0 / (1.0 - dropout)), 0.0)
    weights = weights.astype(v.dtype).reshape(batch, kv_heads, -1, weights.shape[-1])
    out = jnp.einsum("bhqk,bhkd->bhqd", weights, v, preferred_element_type=jnp.float32)
    out = out.reshape(batch, heads, q_len, -1) / jnp.where(total == 0.0, 1.0, total)
    return out.transpose(0, 2, 1, 3).astype(v.dtype)
