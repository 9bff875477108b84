"""Masked language modelling: fill gaps in text, and tell whether two parts belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.attention.masks import Tokens
from research.objectives.objective import Apply, Batch, Loss, too_long, weighted


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Predict the selected tokens of a text from all others (Devlin et al., 2019, section 3.1).

    Batches have ``tokens``, ``positions``, ``segments`` [batch, length] int32, ``selected`` (indices),
    ``targets`` [batch, selected] int32 and ``weights`` [batch, selected] float32: the output projection is
    computed at the selected places only. Where they have ``types`` [batch, length] and ``pair`` [batch] int32
    too, whether the parts of a row belong together (next sentence or sentence order) is learned beside it.

    Sums: "loss" (nats of tokens), "accuracy" (tokens predicted right) and "weight" (tokens); with pairs
    "pair_loss", "pair_accuracy" and "pairs", each times the tokens selected in a row: over "weight" they are
    means, as long as rows are full.
    """

    pair_weight: float = 1.0
    """Weight of a pair's loss beside the mean loss of its row's tokens (BERT: 1)."""

    def problems(self, model: Any, data: Any) -> Iterator[str]:
        """Yields what keeps the model from learning this from the data, each as one clear sentence."""
        yield from too_long(data.length, model.context)
        if data.pairs != "none" and not model.pooler:
            yield f'data.pairs "{data.pairs}" needs model.pooler true'
        if data.pairs != "none" and model.token_types < 2:
            yield f'data.pairs "{data.pairs}" needs model.token_types 2, not {model.token_types}'

    def inputs(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns tokens, where they stand, their types, and which are selected."""
        place = Tokens(batch["positions"], batch["segments"], in_order=True)
        return (batch["tokens"], place, batch.get("types"), batch["selected"]), {}

    def loss(self, apply: Apply) -> Loss:
        """Returns the loss; ``apply`` is that of a `research.models.bert.BERTModule`."""

        def loss(
            params: Any, batch: Batch, key: Key[Array, ""] | None
        ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
            inputs, named = self.inputs(batch)
            logits, pair_logits = apply({"params": params}, *inputs, key=key, **named)
            weights = batch["weights"]
            nats, right = weighted(logits, batch["targets"], weights)
            sums = {"loss": nats, "accuracy": right, "weight": weights.sum()}
            if "pair" not in batch:
                return nats, sums
            there = (batch["pair"] >= 0).astype(jnp.float32)
            pair_nats, pair_right = weighted(pair_logits, jnp.maximum(batch["pair"], 0), there)
            count = float(weights.shape[1])
            sums |= {"pair_loss": count * pair_nats, "pair_accuracy": count * pair_right}
            return nats + self.pair_weight * count * pair_nats, {**sums, "pairs": count * there.sum()}

        return loss
