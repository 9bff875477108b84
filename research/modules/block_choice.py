"""MoBA's layer."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Float

from research.attention.biases import Bias
from research.attention.block_choice import MoBA, choose_blocks
from research.attention.cache import Slots
from research.attention.masks import Tokens
from research.modules.attention import MultiHeadAttention


class BlockChoiceAttention(MultiHeadAttention):
    """Multi-head attention whose queries choose the blocks that they read (MoBA; Lu et al., 2025)."""

    def _remember(
        self,
        x: Float[Array, "batch length width"],
        q: Float[Array, "batch length heads head_dim"],
        k: Float[Array, "batch length kv_heads head_dim"],
        v: Float[Array, "batch length kv_heads head_dim"],
        tokens: Tokens | None,
        cache: tuple[Any, Slots] | None,
    ) -> tuple[Any, Array, Array, Tokens | None, Bias | None]:
        """Returns what multi-head attention does, with the choice in the bias."""
        mechanism = self.spec.mechanism
        assert isinstance(mechanism, MoBA)
        layer, k, v, kv_tokens, bias = super()._remember(x, q, k, v, tokens, cache)
        q_tokens = Tokens.arange(q.shape[1]) if tokens is None else tokens
        chosen = choose_blocks(q, k, q_tokens, q_tokens if kv_tokens is None else kv_tokens, mechanism)
        return layer, k, v, kv_tokens, chosen if bias is None else bias + chosen
