"""Linformer's layer."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.attention.dropout import dropout
from research.attention.engines import attend
from research.attention.low_rank import Linformer, mixtures
from research.attention.masks import Tokens
from research.modules.attention import AttentionSpec
from research.modules.linear import Linear


class LowRankAttention(nn.Module):
    """Multi-head attention over mixtures of the keys and values (Linformer; Wang et al., 2020, eq. 7)."""

    spec: AttentionSpec

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        tokens: Tokens | None = None,
        *,
        cache: None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length width"], Any]:
        """Returns the output and None; arguments as for ``MultiHeadAttention``."""
        del cache
        spec, geometry, mechanism = self.spec, self.spec.geometry, self.spec.mechanism
        assert isinstance(mechanism, Linformer)
        q, k, v = (
            Linear((geometry.width,), (heads, geometry.head_dim), spec.bias, spec.stddev, name=name)(x)
            for name, heads in (
                ("query", geometry.heads),
                ("key", geometry.kv_heads),
                ("value", geometry.kv_heads),
            )
        )
        # Sums over the context begin with the size of what they sum.
        shape = (mechanism.rank, geometry.context)
        weights = self.param("mixture", nn.initializers.normal(geometry.context**-0.5), shape, jnp.float32)
        k, v = mixtures(k, weights, tokens), mixtures(v, weights, tokens)
        weight_key, output_key = (None, None) if key is None else jax.random.split(key)
        out = attend(
            q, k, v, q_tokens=tokens, kv_tokens=Tokens.arange(mechanism.rank),
            dropout=spec.weight_dropout, dropout_key=weight_key, engine=spec.engine,
        )  # fmt: skip
        heads = (geometry.heads, geometry.head_dim)
        out = Linear(heads, (geometry.width,), spec.bias, spec.output_stddev, name="output")(out)
        return dropout(out, spec.dropout, output_key), None
