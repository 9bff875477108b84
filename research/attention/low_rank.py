"""Linformer: softmax attention over a fixed number of mixtures of the keys and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from research.attention.engines import blank
from research.attention.masks import Tokens
from research.attention.mechanisms import Geometry, Mechanism
from research.attention.positions import Alibi, Positions, RelativeBias, Rotary


@dataclasses.dataclass(frozen=True)
class Linformer(Mechanism):
    """Softmax attention over ``rank`` learned mixtures of all tokens (Wang et al., 2020, eq. 7).

    softmax(Q (E K)^T / sqrt(head_dim)) E V, where E [rank, context] weighs tokens by their positions. Of the
    paper's forms this is the one that shares E between keys and values, and among heads; every layer has its
    own. A mixture knows neither before nor after, so an encoder alone can use it, and a row is one document:
    a row of several gives NaN.
    """

    decoder: ClassVar[bool] = False
    packed: ClassVar[bool] = False
    engines: ClassVar[bool] = True

    rank: int = 128
    """Mixtures that every token reads."""

    def problems(self, geometry: Geometry, positions: Positions | None, *, causal: bool) -> Iterator[str]:
        """Yields a decoder, and positions that act on pairs of tokens."""
        yield from super().problems(geometry, positions, causal=causal)
        if causal:
            yield (
                "model.attention 'linformer' mixes tokens of all positions, later ones too, and cannot be "
                "causal; in a decoder choose 'linear-transformer' or 'sliding-window'"
            )
        if isinstance(positions, Rotary | Alibi | RelativeBias):
            yield (
                "model.attention 'linformer' has no pairs of positions for model.positions to act on; choose "
                "'learned' or 'sinusoidal'"
            )

    def matmul_parameters(self, geometry: Geometry) -> int:
        """Returns the weights of the query, key, value and output projections, without E's."""
        return geometry.width * (2 * geometry.heads + 2 * geometry.kv_heads) * geometry.head_dim

    def flops_per_token(self, geometry: Geometry, length: int, *, causal: bool, visible: bool) -> float:
        """Returns what mixes keys and values, and 2 * head_dim for each score and each value read."""
        del length, causal, visible
        return 4.0 * self.rank * (geometry.kv_heads + geometry.heads) * geometry.head_dim


def mixtures(
    x: Float[Array, "batch length heads head_dim"],
    weights: Float[Array, "rank context"],
    tokens: Tokens | None,
) -> Float[Array, "batch rank heads head_dim"]:
    """Returns the sums of x with each row of ``weights`` at its tokens' positions, dtype of x.

    Padding takes no part and may hold NaN. A row of several documents gives NaN.
    """
    tokens = Tokens.arange(x.shape[1]) if tokens is None else tokens
    at = jnp.take(weights, jnp.asarray(tokens.positions), axis=1, mode="clip").astype(x.dtype)
    at = jnp.broadcast_to(jnp.moveaxis(at, 0, 1), (x.shape[0], weights.shape[0], x.shape[1]))
    mixed = jnp.einsum("brl,blhd->brhd", at, blank(x, tokens))
    if tokens.segments is None:
        return mixed
    segments = jnp.asarray(tokens.segments)
    several = ((segments != 0) & (segments != segments.max(axis=1, keepdims=True))).any(axis=1)
    return jnp.where(several[:, None, None, None], jnp.nan, mixed).astype(x.dtype)
