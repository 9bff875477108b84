"""Causal language modelling: predict each token from those before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.attention.masks import Tokens
from research.objectives.objective import Apply, Batch, Loss, too_long


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
        yield from too_long(data.length, model.context)

    def inputs(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns tokens, where they stand, and targets to score."""
        place = Tokens(batch["positions"], batch["segments"], in_order=True)
        return (batch["tokens"], place), {"targets": batch["targets"]}

    def loss(self, apply: Apply) -> Loss:
        """Returns the loss.

        ``apply``: (variables, tokens, place, targets=, key=) -> ((nats, log-partition), anything).
        """

        def loss(
            params: Any, batch: Batch, key: Key[Array, ""] | None
        ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
            inputs, named = self.inputs(batch)
            (nats, log_partition), _ = apply({"params": params}, *inputs, key=key, **named)
            weights = batch["weights"]
            total = (nats * weights).sum()
            penalty = (jnp.square(log_partition) * weights).sum() if self.z_loss else 0.0
            return total + self.z_loss * penalty, {"loss": total, "weight": weights.sum()}

        return loss
