"""An objective: a description that turns a batch into a module's inputs, and its outputs into sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from jaxtyping import Array, Float, Key

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
