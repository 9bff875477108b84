"""An objective: a description that turns a batch into a module's inputs, and its outputs into sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.modules.head import cross_entropy

Batch = dict[str, Array]
Apply = Callable[..., Any]
"""A Flax module's ``apply``: (variables, *inputs, key=, **inputs) -> outputs."""
Loss = Callable[[Any, Batch, Key[Array, ""] | None], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]
"""params, batch, dropout key -> (what the gradient is taken of, sums for the metrics), sums over tokens."""


class Objective(Protocol):
    """A frozen dataclass that says what is learned from a batch."""

    def problems(self, model: Any, data: Any) -> Iterator[str]:
        """Yields what keeps the model from learning this from the data, each as one clear sentence."""

    def inputs(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns what the model's module is called with, beside the dropout key."""

    def loss(self, apply: Apply) -> Loss:
        """Returns the loss: sums over a batch, "loss" (nats) and "weight" among them; the step divides."""


def too_long(length: int, context: int, model: str = "model") -> Iterator[str]:
    """Yields that rows of ``length`` are longer than the context of ``model``, if they are."""
    if length > context:
        yield (
            f"data.length {length} is longer than {model}.context {context}; "
            f"the longest possible is {context}"
        )


def weighted(
    logits: Float[Array, "*batch classes"], targets: Int[Array, "*batch"], weights: Float[Array, "*batch"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the weighted sums of the cross entropy in nats and of what is predicted right, float32."""
    nats, _ = cross_entropy(logits, targets)
    right = (logits.argmax(-1).astype(targets.dtype) == targets).astype(jnp.float32)
    return total(nats, weights), (right * weights).sum()


def total(values: Float[Array, "*batch"], weights: Float[Array, "*batch"]) -> Float[Array, ""]:
    """Returns the weighted sum of what may be NaN where the weight is 0."""
    return (jnp.where(weights > 0, values, 0.0) * weights).sum()
