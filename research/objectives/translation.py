"""Translation: predict each target token from the source and the target before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.attention.masks import Tokens
from research.modules.head import cross_entropy
from research.objectives.objective import Apply, Batch, Loss, too_long, total


def smoothed_cross_entropy(
    logits: Float[Array, "batch length vocabulary"], targets: Int[Array, "batch length"], smoothing: float
) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
    """Returns cross entropy with smoothed targets and -log softmax(logits)[target], in nats, float32.

    The smoothed distribution is (1 - smoothing) on the target plus smoothing / vocabulary on every token
    (Szegedy et al., 2016, section 7), so the first value is
    log-partition - (1 - smoothing) * logit of the target - smoothing * mean of the logits.
    """
    nats, log_partition = cross_entropy(logits, targets)
    if smoothing == 0.0:
        return nats, nats
    uniform = log_partition - logits.astype(jnp.float32).mean(-1)
    return (1.0 - smoothing) * nats + smoothing * uniform, nats


@dataclasses.dataclass(frozen=True)
class Translation:
    """Predict each target token from the whole source and the target before it.

    Batches have ``source``, ``source_segments``, ``tokens``, ``targets``, ``segments`` [batch, length] int32
    and ``weights`` [batch, length] float32. Sums: "loss" (nats, without smoothing, though what is minimised
    is smoothed) and "weight" (tokens).
    """

    label_smoothing: float = 0.1
    """Share of each target's probability that is spread over the vocabulary (Szegedy et al., 2016)."""

    def problems(self, model: Any, data: Any) -> Iterator[str]:
        """Yields what keeps the model from learning this from the data, each as one clear sentence."""
        yield from too_long(data.length, model.context)
        if (data.source_tokenizer is None) != (model.source_vocabulary is None):
            here, there = "data.source_tokenizer", "model.source_vocabulary"
            if data.source_tokenizer is None:
                here, there = there, here
            yield (
                f"{here} without {there}: sides with vocabularies of their own cannot share an embedding; "
                "set both or neither"
            )

    def inputs(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns source and target tokens, and where they stand."""
        places = (
            Tokens(jnp.arange(batch[name].shape[1], dtype=jnp.int32)[None], batch[name], in_order=True)
            for name in ("source_segments", "segments")
        )
        return (batch["source"], batch["tokens"], *places), {}

    def loss(self, apply: Apply) -> Loss:
        """Returns the loss; ``apply``: (variables, source, tokens, source place, place, key=) -> logits."""

        def loss(
            params: Any, batch: Batch, key: Key[Array, ""] | None
        ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
            inputs, named = self.inputs(batch)
            logits = apply({"params": params}, *inputs, key=key, **named)
            weights = batch["weights"]
            smoothed, nats = smoothed_cross_entropy(logits, batch["targets"], self.label_smoothing)
            return total(smoothed, weights), {"loss": total(nats, weights), "weight": weights.sum()}

        return loss
