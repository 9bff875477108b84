"""Causal language modelling: predict each token from those before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.attention.masks import Tokens

Batch = dict[str, Array]
Apply = Callable[..., tuple[Float[Array, "batch length vocabulary"], Any]]
Loss = Callable[[Any, Batch, Key[Array, ""] | None], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]
"""params, batch, dropout key -> (what the gradient is taken of, sums for the metrics), sums over tokens."""


def cross_entropy(
    logits: Float[Array, "batch length vocabulary"], targets: Int[Array, "batch length"]
) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
    """Returns -log softmax(logits)[target] in nats and the log-partition, both float32."""
    logits = logits.astype(jnp.float32)
    log_partition = jax.nn.logsumexp(logits, axis=-1)
    # A comparison instead of a gather: its gradient is elementwise, and a sharded vocabulary stays sharded.
    classes = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    chosen = jnp.where(classes == targets[..., None], logits, 0.0).sum(-1)
    return log_partition - chosen, log_partition


def causal_lm(apply: Apply, z_loss: float = 0.0) -> Loss:
    """Returns the loss of a causal language model.

    Args:
      apply: (params, tokens, place, key) -> (logits, anything).
      z_loss: weight of the squared log-partition (Chowdhery et al., 2022, section 5).

    The loss takes batches of ``tokens``, ``targets``, ``positions``, ``segments`` [batch, length] int32 and
    ``weights`` [batch, length] float32. Sums returned: "loss" (nats) and "weight" (tokens).
    """

    def loss(
        params: Any, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        place = Tokens(batch["positions"], batch["segments"])
        logits, _ = apply({"params": params}, batch["tokens"], place, key=key)
        weights = batch["weights"]
        # What padding predicts may be NaN: it goes before the logarithm, whose gradient would be 0 * NaN.
        logits = jnp.where((weights > 0)[..., None], logits, 0.0)
        nats, log_partition = cross_entropy(logits, batch["targets"])
        total = (nats * weights).sum()
        penalty = (jnp.square(log_partition) * weights).sum() if z_loss else 0.0
        return total + z_loss * penalty, {"loss": total, "weight": weights.sum()}

    return loss
