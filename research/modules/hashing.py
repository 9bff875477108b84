"""Reformer's layer."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Float

from research.attention.biases import Bias
from research.attention.cache import KeyValues, Slots
from research.attention.features import unit
from research.attention.hashing import Reformer, SameBucket, hashes
from research.attention.masks import Tokens
from research.modules.attention import MultiHeadAttention
from research.modules.linear import Linear


class HashedAttention(MultiHeadAttention):
    """Multi-head attention with shared queries and keys within hash buckets (Kitaev et al., 2020)."""

    def _project(
        self,
        x: Float[Array, "batch length width"],
        source: Float[Array, "batch length width"],
        projected: KeyValues | None,
    ) -> tuple[
        Float[Array, "batch length heads head_dim"],
        Float[Array, "batch length heads head_dim"],
        Float[Array, "batch length heads head_dim"],
    ]:
        """Returns queries, their directions as keys, and values."""
        del source, projected
        spec, geometry = self.spec, self.spec.geometry
        q, v = (
            Linear((geometry.width,), (geometry.heads, geometry.head_dim), spec.bias, spec.stddev, name=name)(
                x
            )
            for name in ("query", "value")
        )
        return q, unit(q, 1e-12), v

    def _remember(
        self,
        x: Float[Array, "batch length width"],
        q: Float[Array, "batch length heads head_dim"],
        k: Float[Array, "batch length heads head_dim"],
        v: Float[Array, "batch length heads head_dim"],
        tokens: Tokens | None,
        cache: tuple[Any, Slots] | None,
    ) -> tuple[Any, Array, Array, Tokens | None, Bias | None]:
        """Returns what multi-head attention does, with the buckets in the bias; a query's are its key's."""
        mechanism = self.spec.mechanism
        assert isinstance(mechanism, Reformer)
        own = hashes(k, mechanism)
        layer, k, v, kv_tokens, bias = super()._remember(x, q, k, v, tokens, cache)
        same = SameBucket(own, own if cache is None else hashes(k, mechanism))
        return layer, k, v, kv_tokens, same if bias is None else bias + same
