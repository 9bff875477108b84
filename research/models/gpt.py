"""GPT: a decoder-only Transformer (Radford et al., 2019), with the modern choices as fields."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.attention.cache import KeyValues, Slots
from research.attention.dropout import dropout
from research.attention.masks import Causal, Mask, SameSegment, Tokens, Window
from research.attention.positions import learned, sinusoidal
from research.modules.attention import AttentionSpec
from research.modules.block import BlockSpec, Context, Stack
from research.modules.embedding import Embedding
from research.modules.linear import Linear
from research.modules.norm import Norm
from research.modules.placement import placed


@dataclasses.dataclass(frozen=True)
class GPT:
    """A decoder-only Transformer; the defaults are GPT-2 124M."""

    vocabulary: int = 50304
    """Rows of the embedding; a tokenizer that is trained for the run is trained to fit."""
    context: int = 1024
    """Longest sequence, in tokens."""
    layers: int = 12
    """Blocks."""
    width: int = 768
    """Width of the residual stream."""
    heads: int = 12
    """Query heads."""
    kv_heads: int | None = None
    """Key/value heads (fewer than heads: grouped-query attention; 1: multi-query); default: heads."""
    feed_forward_width: int | None = None
    """Hidden width of the feed-forward network; default: 4 * width."""
    feed_forward: Literal["gelu", "relu", "relu2", "swiglu"] = "gelu"
    """Activation of the feed-forward network ("gelu" is GPT-2's tanh form)."""
    positions: Literal["learned", "sinusoidal", "rotary", "none"] = "learned"
    """Positional encoding."""
    rotary_base: float = 10000.0
    """Base of the rotary frequencies."""
    norm: Literal["layer", "rms"] = "layer"
    """Normalisation before each sub-layer and before the head."""
    bias: bool = True
    """Biases in linear layers and LayerNorm."""
    qk_norm: bool = False
    """RMS-normalise queries and keys per head."""
    window: int | None = None
    """Sliding-window attention: each token sees this many tokens, itself included; default: all before it."""
    attention_soft_cap: float | None = None
    """Soft cap of attention logits, c * tanh(s / c)."""
    logit_soft_cap: float | None = None
    """Soft cap of output logits."""
    tied_head: bool = True
    """Use the embedding as the output projection."""
    dropout: float = 0.0
    """Dropout rate on embeddings, attention weights and sub-layer outputs."""
    depth: Literal["scan", "unroll"] = "scan"
    """Loop over layers (fast to compile) or unroll them (faster for few layers); same parameters."""
    remat: Literal["none", "block", "dots"] = "none"
    """What the backward pass recomputes: nothing, whole blocks, or all but matmul outputs."""
    engine: Literal["auto", "reference", "cudnn"] = "auto"
    """Attention engine; one asked for by name refuses what it cannot serve."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters, softmax and loss stay float32."""

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.heads

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def hidden(self) -> int:
        """Hidden width of the feed-forward network."""
        return 4 * self.width if self.feed_forward_width is None else self.feed_forward_width

    @property
    def mask(self) -> Mask:
        """Which token may attend to which."""
        causal: Mask = Causal() if self.window is None else Causal() & Window(self.window - 1)
        return causal

    def build(self) -> GPTModule:
        """Returns the Flax module."""
        return GPTModule(self)

    def empty_cache(self, batch: int, slots: int) -> tuple[KeyValues, Slots]:
        """Returns a cache for ``batch`` rows of at most ``slots`` tokens."""
        shape = (self.layers, batch, slots, self.key_value_heads, self.head_dim)
        return KeyValues.empty(*shape, jnp.dtype(self.dtype)), Slots.empty(batch, slots)


def block_spec(gpt: GPT, mask: Mask) -> BlockSpec:
    """Returns what the blocks of a GPT share, with GPT-2's initialisation."""
    attention = AttentionSpec(
        width=gpt.width,
        heads=gpt.heads,
        kv_heads=gpt.key_value_heads,
        head_dim=gpt.head_dim,
        bias=gpt.bias,
        rotary_base=gpt.rotary_base if gpt.positions == "rotary" else None,
        qk_norm=gpt.qk_norm,
        soft_cap=gpt.attention_soft_cap,
        dropout=gpt.dropout,
        engine=gpt.engine,
        # Residual projections shrink with depth (Radford et al., 2019, section 2.3).
        output_stddev=0.02 / math.sqrt(2 * gpt.layers),
    )
    return BlockSpec(
        attention=attention,
        hidden=gpt.hidden,
        feed_forward=gpt.feed_forward,
        norm=gpt.norm,
        norm_bias=gpt.bias,
        mask=mask,
    )


class GPTModule(nn.Module):
    """The network a ``GPT`` describes."""

    gpt: GPT

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        place: Tokens | None = None,
        *,
        cache: tuple[KeyValues, Slots] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length vocabulary"], tuple[KeyValues, Slots] | None]:
        """Returns logits, float32, and the cache with these tokens in it, if one was given.

        Args:
          tokens: token ids.
          place: positions and segments of the tokens; None: 0, 1, 2 … in one document.
          cache: keys and values of the tokens before these.
          key: key of the dropout; None: no dropout.
        """
        gpt = self.gpt
        dtype = jnp.dtype(gpt.dtype)
        embedding = Embedding(gpt.vocabulary, gpt.width, name="token_embedding")
        x = embedding(tokens, dtype)
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] if place is None else place.positions
        if gpt.positions == "learned":
            table = Embedding(gpt.context, gpt.width, name="position_embedding").table
            x = x + learned(positions, table).astype(dtype)
        elif gpt.positions == "sinusoidal":
            x = x + sinusoidal(positions, gpt.width).astype(dtype)
        embedding_key, stack_key = (None, None) if key is None else jax.random.split(key)
        x = placed(dropout(x, gpt.dropout, embedding_key))
        mask = gpt.mask if place is None or place.segments is None else gpt.mask & SameSegment()
        layers, slots = (None, None) if cache is None else (cache[0], cache[1].write(positions))
        x, layers = Stack(block_spec(gpt, mask), gpt.layers, gpt.depth, gpt.remat, name="stack")(
            x, Context(tokens=place, slots=slots), layers, stack_key
        )
        x = placed(Norm(gpt.norm, gpt.bias, name="final_norm")(placed(x)))
        if gpt.tied_head:
            logits = embedding.attend(x)
        else:
            logits = Linear((gpt.width,), (gpt.vocabulary,), False, name="head")(x).astype(jnp.float32)
        if gpt.logit_soft_cap is not None:
            logits = gpt.logit_soft_cap * jnp.tanh(logits / gpt.logit_soft_cap)
        logits = placed(logits)
        return logits, None if layers is None or slots is None else (layers, slots)
