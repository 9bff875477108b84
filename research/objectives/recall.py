"""Recall: name the token asked for, at the places where something is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.attention.masks import Tokens
from research.modules.head import cross_entropy
from research.objectives.objective import Apply, Batch, Loss


@dataclasses.dataclass(frozen=True)
class Recall:
    """Name the token asked for, where a batch has weight: the loss of the synthetic tasks.

    Batches are those of `research.objectives.causal_lm.CausalLM`. Sums: "loss" (nats), "weight" (answers) and
    "correct" (answers whose likeliest token is the right one).
    """

    def problems(self, model: Any, data: Any) -> Iterator[str]:
        """Yields what keeps the model from learning this from the data, each as one clear sentence."""
        if data.longest > model.context:
            yield (
                f"the data has rows of {data.longest} tokens, longer than model.context {model.context}; "
                f"use --model.context {data.longest} or shorter rows"
            )
        if data.tokens > model.vocabulary:
            yield (
                f"the data has {data.tokens} different tokens, model.vocabulary is {model.vocabulary}; "
                f"use --model.vocabulary {data.tokens}"
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
            nats, _ = cross_entropy(logits, batch["targets"])
            correct = jnp.where(logits.argmax(-1) == batch["targets"], weights, 0.0)
            total = (nats * weights).sum()
            return total, {"loss": total, "weight": weights.sum(), "correct": correct.sum()}

        return loss
