"""Score biases as data: what a mechanism adds to the scores, a tile at a time, with its parameters inside."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from research.attention.masks import Tokens


class Bias:
    """What is added to the scaled scores, after the soft cap and before the mask; subclasses say what.

    A subclass is a frozen dataclass registered as a pytree: its arrays (slopes, tables, gates) get gradients.
    Engines evaluate it tile by tile, so it must never need more than the tokens of one tile.
    """

    def __call__(self, q: Tokens, kv: Tokens) -> Float[Array, "#batch #heads q_len kv_len"]:
        """Returns the bias of each pair, float32."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it adds")

    def rows(self, start: jax.typing.ArrayLike, size: int) -> Bias:
        """Returns the bias of the ``size`` queries from ``start`` on: slices what is held per query."""
        del start, size
        return self

    def columns(self, start: jax.typing.ArrayLike, size: int) -> Bias:
        """Returns the bias of the ``size`` keys from ``start`` on: slices what is held per key."""
        del start, size
        return self
