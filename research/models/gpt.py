"""GPT: a decoder-only Transformer language model (Radford et al., 2019), with the modern choices as fields."""

from __future__ import annotations

import dataclasses
from typing import Literal


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
    """Loop over layers on the device (fast to compile) or unroll them (faster for few layers); same parameters."""
    remat: Literal["none", "block", "dots"] = "none"
    """What the backward pass recomputes: nothing, whole blocks, or all but matmul outputs."""
    engine: Literal["auto", "reference", "cudnn"] = "auto"
    """Attention engine; one asked for by name refuses what it cannot serve."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters, softmax and loss stay float32."""
