"""Causal language modelling: predict each token from those before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.attention.masks import Tokens
from research.objectives.objective import Apply, Batch, Loss, cross_entropy


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """Predict each token from those before it.

    Batches have ``tokens``, ``targets``, ``positions``, ``segments`` [batch, length] int32 and ``weights``
    [batch, length] float32. Sums: "loss" (nats) and "weight" (tokens).
    """

    z_loss: float = 0.0
    """Weight of the squared log-partition (PaLM; Chowdhery et al., 2022, section 5)."""

    def problems(self, model: Any, data: Any) -> Iterator[str]:
        """Yields what keeps the model from learning this from the data, each as one clear sentence."""
        if data.length > model.context:
            yield (
                f"data.length {data.length} is longer than model.context {model.context}; "
                f"the longest possible is {model.context}"
            )

    def inputs(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns tokens, and where they stand."""
        return (batch["tokens"], Tokens(batch["positions"], batch["segments"])), {}

    def loss(self, apply: Apply) -> Loss:
        """Returns the loss; ``apply``: (variables, tokens, place, key=) -> (logits, anything)."""

        def loss(
            params: Any, batch: Batch, key: Key[Array, ""] | None
        ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
            inputs, named = self.inputs(batch)
            logits, _ = apply({"params": params}, *inputs, key=key, **named)
            weights = batch["weights"]
            # What padding predicts may be NaN: it goes before the logarithm, whose gradient would be 0 * NaN.
            logits = jnp.where((weights > 0)[..., None], logits, 0.0)
            nats, log_partition = cross_entropy(logits, batch["targets"])
            total = (nats * weights).sum()
            penalty = (jnp.square(log_partition) * weights).sum() if self.z_loss else 0.0
            return total + self.z_loss * penalty, {"loss": total, "weight": weights.sum()}

        return loss
