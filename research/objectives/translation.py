"""Translation: predict each target token from the source and the target before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.attention.masks import Tokens
from research.objectives.objective import Batch, Loss, cross_entropy

Apply = Callable[..., Float[Array, "batch length vocabulary"]]


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


def translation(apply: Apply, smoothing: float = 0.0) -> Loss:
    """Returns the loss of an encoder-decoder model.

    Args:
      apply: (params, source, tokens, source place, place, key) -> logits.
      smoothing: share of each target's probability that is spread over the vocabulary.

    The loss takes batches of ``source``, ``source_segments``, ``tokens``, ``targets``, ``segments``
    [batch, length] int32 and ``weights`` [batch, length] float32. Sums returned: "loss" (nats, without
    smoothing, though what is minimised is smoothed) and "weight" (tokens).
    """

    def loss(
        params: Any, batch: Batch, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        places = (
            Tokens(jnp.arange(batch[name].shape[1], dtype=jnp.int32)[None], batch[name])
            for name in ("source_segments", "segments")
        )
        logits = apply({"params": params}, batch["source"], batch["tokens"], *places, key=key)
        weights = batch["weights"]
        # What padding predicts may be NaN: it goes before the logarithm, whose gradient would be 0 * NaN.
        logits = jnp.where((weights > 0)[..., None], logits, 0.0)
        smoothed, nats = smoothed_cross_entropy(logits, batch["targets"], smoothing)
        return (smoothed * weights).sum(), {"loss": (nats * weights).sum(), "weight": weights.sum()}

    return loss
