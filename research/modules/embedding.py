"""Token embeddings: looked up on the way in, and as the output projection on the way out."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.attention.positions import Learned, Positions, Sinusoidal, learned, sinusoidal
from research.modules.placement import as_rows


class Embedding(nn.Module):
    """A table with one row per token (or position)."""

    rows: int
    width: int
    stddev: float = 0.02

    def setup(self) -> None:
        """Names the table."""
        self.table = self.param(
            "table", nn.initializers.normal(self.stddev), (self.rows, self.width), jnp.float32
        )

    def __call__(self, tokens: Int[Array, "*batch"], dtype: jnp.dtype) -> Float[Array, "*batch width"]:
        """Returns the rows of the tokens, clipped to the table."""
        return jnp.take(self.table, tokens, axis=0, mode="clip").astype(dtype)

    def attend(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch rows"]:
        """Returns the products of x with every row, float32: the logits of a tied head."""
        logits = jnp.matmul(as_rows(x), self.table.astype(x.dtype).T, preferred_element_type=jnp.float32)
        return logits.reshape(*x.shape[:-1], self.rows)


def with_positions(
    x: Float[Array, "batch length width"],
    positions: Int[Array, "#batch length"],
    encoding: Positions | None,
    context: int,
    stddev: float = Embedding.stddev,
) -> Float[Array, "batch length width"]:
    """Returns token embeddings with the encoding of their positions added, if it is one that is added.

    Called within a module, which then owns the learned table "position_embedding": ``context`` rows, and
    those before the first position's. ``stddev`` is the standard deviation that x begins with.
    """
    if isinstance(encoding, Learned):
        table = Embedding(context + encoding.offset, x.shape[-1], name="position_embedding").table
        return x + learned(positions + encoding.offset, table).astype(x.dtype)
    if isinstance(encoding, Sinusoidal):
        amplitude = stddev if encoding.amplitude is None else encoding.amplitude
        return x + (amplitude * sinusoidal(positions, x.shape[-1], encoding)).astype(x.dtype)
    return x
