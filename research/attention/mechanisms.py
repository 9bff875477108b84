"""Attention mechanisms as descriptions: what one is, what it admits, what it costs, and its decoding state.

A mechanism is a frozen dataclass. `research.modules.mixers` has the module that computes it, and
`research.attention.catalogue` lists every one that a model can be given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from research.attention.cache import KeyValues
from research.attention.masks import Everything, Mask, Window
from research.attention.positions import Positions


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes of an attention layer."""

    width: int
    """Width of the residual stream."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key/value heads; divides heads."""
    head_dim: int
    """Channels of a head."""


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """How tokens of a sequence read one another; subclasses say."""

    def problems(self, geometry: Geometry, positions: Positions | None, *, causal: bool) -> Iterator[str]:
        """Yields what keeps a layer of this geometry from using the mechanism, each as one clear sentence.

        Args:
          geometry: sizes of the layer.
          positions: the model's positional encoding.
          causal: whether a token may see only those before it (a decoder) or all (an encoder).
        """
        del geometry, positions, causal
        yield from ()

    def matmul_parameters(self, geometry: Geometry) -> int:
        """Returns the weights in matrix products of one layer: projections, no biases, no norms."""
        raise NotImplementedError

    def flops_per_token(self, geometry: Geometry, length: int, *, causal: bool, visible: bool) -> float:
        """Returns the forward FLOPs of one token in one layer, beyond the 2 of each projection weight.

        Args:
          geometry: sizes of the layer.
          length: tokens in a sequence.
          causal: whether a token sees only those before it.
          visible: count only the pairs that the mask admits (the mean over tokens); False: every pair, as if
            nothing were masked. A mechanism whose work does not depend on a mask ignores it.
        """
        raise NotImplementedError

    def state(self, geometry: Geometry, batch: int, slots: int, dtype: jnp.dtype) -> Any:
        """Returns the empty decoding state of one layer: a pytree of arrays.

        Args:
          geometry: sizes of the layer.
          batch: rows.
          slots: tokens that the cache must hold, prompt included.
          dtype: of what is kept at the precision of the computation.
        """
        raise NotImplementedError

    def state_bytes(self, geometry: Geometry, length: int, dtype: jnp.dtype) -> int:
        """Returns the bytes of one layer's decoding state for one sequence of ``length`` tokens."""
        shapes = jax.eval_shape(lambda: self.state(geometry, 1, length, dtype))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    def layers(self) -> tuple[tuple[Mechanism, bool], ...]:
        """Returns the repeating pattern over depth: mechanism of each layer, and whether it has positions."""
        return ((self, True),)


@dataclasses.dataclass(frozen=True)
class Softmax(Mechanism):
    """Scaled dot-product attention over every token the model may see (Vaswani et al., 2017, eq. 1).

    Heads and key/value heads of the model make it multi-head, grouped-query (Ainslie et al., 2023) or
    multi-query (Shazeer, 2019).
    """

    qk_norm: bool = False
    """RMS-normalise queries and keys per head (Henry et al., 2020; Dehghani et al., 2023)."""
    soft_cap: float | None = None
    """Soft cap c of the scores, c * tanh(s / c) (Gemma 2)."""

    def pattern(self, *, causal: bool) -> Mask:
        """Returns which pairs the mechanism admits, beside the model's own causal or open mask."""
        del causal
        return Everything()

    def matmul_parameters(self, geometry: Geometry) -> int:
        """Returns the weights of the query, key, value and output projections."""
        heads = 2 * geometry.heads + 2 * geometry.kv_heads
        return geometry.width * heads * geometry.head_dim

    def flops_per_token(self, geometry: Geometry, length: int, *, causal: bool, visible: bool) -> float:
        """Returns 2 * head_dim for each score and as many for each value read, for every head."""
        keys = self.visible_keys(length, causal=causal) if visible else float(length)
        return 4.0 * geometry.heads * geometry.head_dim * keys

    def visible_keys(self, length: int, *, causal: bool) -> float:
        """Returns the mean number of keys that a token of a sequence of ``length`` sees."""
        return (length + 1) / 2 if causal else float(length)

    def state(self, geometry: Geometry, batch: int, slots: int, dtype: jnp.dtype) -> KeyValues:
        """Returns room for the keys and values of every token."""
        return KeyValues.empty(batch, slots, geometry.kv_heads, geometry.head_dim, dtype)


@dataclasses.dataclass(frozen=True)
class SlidingWindow(Softmax):
    """Softmax attention to the nearest tokens only (Beltagy et al., 2020; Jiang et al., 2023)."""

    window: int = 128
    """Tokens that a token sees, itself included: those before it in a decoder, both sides in an encoder."""

    def pattern(self, *, causal: bool) -> Mask:
        """Returns the window: all of it before the token, or half on each side."""
        if causal:
            return Window(self.window - 1, 0)
        return Window(self.window // 2, (self.window - 1) // 2)

    def visible_keys(self, length: int, *, causal: bool) -> float:
        """Returns the window, less what the ends of the sequence cut off."""
        window = min(self.window, length)
        if causal:
            return (window * (window + 1) / 2 + (length - window) * window) / length
        before, after = min(self.window // 2, length - 1), min((self.window - 1) // 2, length - 1)
        return before + after + 1 - (before * (before + 1) + after * (after + 1)) / (2 * length)
