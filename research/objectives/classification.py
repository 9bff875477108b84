"""Classification: choose a label, or give a score, for a row or for each of its words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.attention.masks import Tokens
from research.objectives.objective import Apply, Batch, Loss, too_long, weighted


@dataclasses.dataclass(frozen=True)
class Classification:
    """Choose the label of a row (cross entropy), of each word, or a row's score (squared error).

    Batches have ``tokens``, ``positions``, ``segments``, ``types`` [batch, length] int32, ``labels`` (int32
    classes, or float32 scores) and ``weights`` float32, both [batch] or, for words, [batch, length]. Sums:
    "loss" (nats, or squared error), "weight" (rows or words) and, for labels, "accuracy" (those right). Two
    labels have the counts that F1 and the Matthews correlation are made of: "class_1", "called_1" and
    "right_1" (both); scores what Pearson's correlation is: "labels", "scores", their squares and products.
    """

    def problems(self, model: Any, data: Any) -> Iterator[str]:
        """Yields what keeps the model from learning this from the data, each as one clear sentence."""
        yield from too_long(data.length, model.context, "model.bert")
        if (data.task == "tags") != model.per_token:
            yield f'data.task "{data.task}" needs model.per_token {str(data.task == "tags").lower()}'
        if data.task == "score" and model.classes != 1:
            yield f'data.task "score" needs model.classes 1, not {model.classes}'
        elif data.classes != model.classes:
            yield f"data.classes {data.classes} and model.classes {model.classes} must agree"

    def inputs(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns tokens, where they stand, and their types."""
        place = Tokens(batch["positions"], batch["segments"], in_order=True)
        return (batch["tokens"], place, batch["types"]), {}

    def loss(self, apply: Apply) -> Loss:
        """Returns the loss; ``apply`` is that of a `research.models.classifier.ClassifierModule`."""

        def loss(
            params: Any, batch: Batch, key: Key[Array, ""] | None
        ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
            inputs, named = self.inputs(batch)
            logits = apply({"params": params}, *inputs, key=key, **named)
            labels, weights = batch["labels"], batch["weights"]
            sums = {"weight": weights.sum()}
            if jnp.issubdtype(labels.dtype, jnp.floating):
                scores = jnp.where(weights > 0, logits[..., 0], labels)
                error = jnp.square(scores - labels).sum()
                moments = {
                    "labels": labels,
                    "scores": scores,
                    "labels_squared": labels * labels,
                    "scores_squared": scores * scores,
                    "products": labels * scores,
                }
                of = {name: (values * weights).sum() for name, values in moments.items()}
                return error, {"loss": error, **sums, **of}
            nats, right = weighted(logits, labels, weights)
            sums |= {"loss": nats, "accuracy": right}
            if logits.shape[-1] == 2:
                one, called = labels == 1, logits.argmax(-1) == 1
                counts = {"class_1": one, "called_1": called, "right_1": one & called}
                sums |= {name: jnp.where(of, weights, 0.0).sum() for name, of in counts.items()}
            return nats, sums

        return loss
