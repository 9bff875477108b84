"""The forgetting transformer's attention: softmax whose scores fall with the forget gates in between."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.attention.biases import Bias, ForgettingBias
from research.attention.cache import ForgettingState, Slots
from research.attention.masks import Tokens
from research.modules.attention import MultiHeadAttention
from research.modules.linear import Linear


class ForgettingAttention(MultiHeadAttention):
    """Multi-head attention with a forget gate per token and head (Lin et al., 2025, eq. 1-3)."""

    def _remember(
        self,
        x: Float[Array, "batch length width"],
        q: Float[Array, "batch length heads head_dim"],
        k: Float[Array, "batch length kv_heads head_dim"],
        v: Float[Array, "batch length kv_heads head_dim"],
        tokens: Tokens | None,
        cache: tuple[ForgettingState, Slots] | None,
    ) -> tuple[Any, Array, Array, Tokens | None, Bias | None]:
        """Returns what multi-head attention does, with the log gates in the state and in the bias."""
        geometry, length = self.spec.geometry, x.shape[1]
        gate = Linear((geometry.width,), (geometry.heads,), True, self.spec.stddev, name="forget")
        logits = gate(x).astype(jnp.float32)
        if tokens is not None:  # padding forgets nothing, whatever it holds
            logits = jnp.where(tokens.real[:, :, None], logits, jnp.inf)
        log_gates = nn.log_sigmoid(logits)
        inner = None if cache is None else (cache[0].key_values, cache[1])
        layer, k, v, kv_tokens, bias = super()._remember(x, q, k, v, tokens, inner)
        if cache is not None:
            slots = cache[1]
            log_gates = slots.latest(cache[0].log_gates, log_gates)
            layer = ForgettingState(layer, log_gates)
        sums = jnp.cumsum(log_gates, axis=1)
        latest = (
            sums if cache is None else jax.lax.dynamic_slice_in_dim(sums, slots.used - length, length, axis=1)
        )
        forgetting = ForgettingBias(latest, sums)
        return layer, k, v, kv_tokens, forgetting if bias is None else bias + forgetting
