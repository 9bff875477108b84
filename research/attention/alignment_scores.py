"""Attention of recurrent decoders: how well a decoder state goes with each source token, and what it reads.

Queries are decoder states [batch, q_len, …], keys and values encoder states [batch, kv_len, …]. Scores become
weights by ``softmax.masked_softmax`` and a context by ``read``; all of these are float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def additive(
    query: Float[Array, "batch q_len dim"],
    keys: Float[Array, "batch kv_len dim"],
    vector: Float[Array, " dim"],
    coverage: Float[Array, "batch q_len kv_len"] | None = None,
    coverage_vector: Float[Array, " dim"] | None = None,
) -> Float[Array, "batch q_len kv_len"]:
    """Returns v . tanh(query + key [+ coverage * u]) (Bahdanau et al., 2015; coverage: Tu et al., 2016).

    Luong's "concat", v . tanh(W [s; h]) (2015, section 3.1), is this too: a product with each half of W.

    Args:
      query: W s, already projected.
      keys: U h, already projected: once, not at every step.
      vector: v.
      coverage: the attention each source token has received so far.
      coverage_vector: u, what a unit of coverage adds before the tanh.
    """
    hidden = query[:, :, None] + keys[:, None]
    if coverage is not None and coverage_vector is not None:
        hidden = hidden + coverage[..., None].astype(hidden.dtype) * coverage_vector[None, None, None]
    return jnp.einsum("bqkd,d->bqk", jnp.tanh(hidden), vector, preferred_element_type=jnp.float32)


def dot(
    query: Float[Array, "batch q_len dim"], keys: Float[Array, "batch kv_len dim"]
) -> Float[Array, "batch q_len kv_len"]:
    """Returns query . key (Luong et al., 2015, section 3.1, "dot"; with s W as the query it is "general")."""
    return jnp.einsum("bqd,bkd->bqk", query, keys, preferred_element_type=jnp.float32)


def predicted_position(
    query: Float[Array, "batch q_len dim"],
    kernel: Float[Array, "dim hidden"],
    vector: Float[Array, " hidden"],
    lengths: Int[Array, " batch"],
) -> Float[Array, "batch q_len"]:
    """Returns S * sigmoid(v . tanh(W query)), S being the source's length (Luong et al., 2015, eq. 9)."""
    logits = jnp.einsum("bqh,h->bq", jnp.tanh(query @ kernel), vector, preferred_element_type=jnp.float32)
    return lengths[:, None].astype(jnp.float32) * jax.nn.sigmoid(logits)


def near(
    centre: Float[Array, "#batch q_len"], positions: Int[Array, "#batch kv_len"], window: int
) -> Bool[Array, "#batch q_len kv_len"]:
    """Returns True for source positions at most ``window`` from the centre (local attention, section 3.2)."""
    return jnp.abs(positions[:, None].astype(jnp.float32) - centre[..., None]) <= window


def gaussian(
    centre: Float[Array, "#batch q_len"], positions: Int[Array, "#batch kv_len"], window: int
) -> Float[Array, "#batch q_len kv_len"]:
    """Returns exp(-(s - centre)^2 / (2 sigma^2)), sigma = window / 2 (Luong et al., 2015, eq. 10)."""
    distance = positions[:, None].astype(jnp.float32) - centre[..., None]
    return jnp.exp(-jnp.square(distance) / (2 * (window / 2) ** 2))


def read(
    weights: Float[Array, "batch q_len kv_len"],
    values: Float[Array, "batch kv_len dim"],
    present: Bool[Array, "batch kv_len"],
) -> Float[Array, "batch q_len dim"]:
    """Returns the sum of the values by their weights, dtype of values; absent ones may hold NaN."""
    values = jnp.where(present[..., None], values, jnp.zeros((), values.dtype))
    return jnp.einsum("bqk,bkd->bqd", weights.astype(values.dtype), values)
