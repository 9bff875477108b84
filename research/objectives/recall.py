"""Recall: name the token asked for, at the places where something is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from jaxtyping import Array, Float, Key

from research.attention.masks import Tokens
from research.objectives.objective import Apply, Batch, Loss, weighted


@dataclasses.dataclass(frozen=True)
class Recall:
    """Name the token asked for, where a batch has weight: the loss of the synthetic tasks.

    Batches are those of `research.objectives.causal_lm.CausalLM`. Sums: "loss" (nats), "weight" (answers) and
    "accuracy" (answers whose likeliest token is the right one).
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
        return (batch["tokens"], Tokens(batch["positions"], batch["segments"], in_order=True)), {}

    def loss(self, apply: Apply) -> Loss:
        """Returns the loss; ``apply``: (variables, tokens, place, key=) -> (logits, anything)."""

        def loss(
            params: Any, batch: Batch, key: Key[Array, ""] | None
        ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
            inputs, named = self.inputs(batch)
            logits, _ = apply({"params": params}, *inputs, key=key, **named)
            nats, right = weighted(logits, batch["targets"], batch["weights"])
            return nats, {"loss": nats, "weight": batch["weights"].sum(), "accuracy": right}

        return loss
