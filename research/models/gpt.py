"""GPT: a decoder-only Transformer (Radford et al., 2019), with the modern choices as fields."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from research.attention.cache import Slots
from research.attention.catalogue import Attention
from research.attention.dropout import dropout
from research.attention.engines import EngineName
from research.attention.masks import Tokens, positions_of
from research.attention.mechanisms import Softmax
from research.attention.positions import Learned, Positions
from research.models.stacks import (
    Stacked,
    attention_problems,
    engine_problems,
    stack_flops_per_token,
    stack_matmul_parameters,
    with_pattern,
)
from research.modules.attention import AttentionSpec
from research.modules.block import BlockSpec, Context, Stack, empty_cache
from research.modules.embedding import Embedding, with_positions
from research.modules.feed_forward import FeedForwardName
from research.modules.head import project, projected_cross_entropy
from research.modules.linear import Linear
from research.modules.norm import Norm
from research.modules.placement import placed


@dataclasses.dataclass(frozen=True)
class GPT(Stacked):
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
    head_dim: int | None = None
    """Channels of a head; default: width / heads."""
    attention: Attention = dataclasses.field(default_factory=Softmax)
    """How tokens read those before them."""
    feed_forward_width: int | None = None
    """Hidden width of the feed-forward network; default: 4 * width."""
    feed_forward: FeedForwardName = "gelu"
    """Activation of the feed-forward network ("gelu" is the tanh form, GPT-2's)."""
    positions: Positions | None = dataclasses.field(default_factory=Learned)
    """Positional encoding."""
    norm: Literal["layer", "rms"] = "layer"
    """Normalisation before each sub-layer and before the head."""
    norm_epsilon: float = 1e-5
    """Added to the variance before its root is taken."""
    bias: bool = True
    """Biases in linear layers and LayerNorm."""
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
    engine: EngineName = "auto"
    """Attention engine; one asked for by name refuses what it cannot serve."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters, softmax and loss stay float32."""

    def build(self) -> GPTModule:
        """Returns the Flax module."""
        return GPTModule(self)

    def empty_cache(self, batch: int, slots: int) -> tuple[tuple[Any, ...], Slots]:
        """Returns the empty decoding state for ``batch`` rows of at most ``slots`` tokens."""
        return empty_cache(self.specs(), self.layers, batch, slots, jnp.dtype(self.dtype))

    def specs(self) -> tuple[BlockSpec, ...]:
        """Returns the repeating group of blocks, with GPT-2's initialisation."""
        attention = AttentionSpec(
            geometry=self.geometry,
            causal=True,
            bias=self.bias,
            dropout=self.dropout,
            weight_dropout=self.dropout,
            engine=self.engine,
            norm_epsilon=self.norm_epsilon,
            # Residual projections shrink with depth (Radford et al., 2019, section 2.3).
            output_stddev=0.02 / math.sqrt(2 * self.layers),
        )
        block = BlockSpec(attention, self.hidden, self.feed_forward, self.norm, self.bias, self.norm_epsilon)
        return with_pattern(block, self.attention, self.positions)

    def matmul_parameters(self) -> int:
        """Returns the number of weights in matrix products: all matrices and the head, no look-up tables."""
        return stack_matmul_parameters(self.specs(), self.layers) + self.width * self.vocabulary

    def training_flops(self, shapes: Mapping[str, tuple[int, ...]], *, visible: bool) -> float:
        """Returns the FLOPs of a training step on a batch with arrays of these shapes."""
        batch, length = shapes["tokens"]
        return batch * length * self.training_flops_per_token(length, visible=visible)

    def training_flops_per_token(self, length: int, *, visible: bool) -> float:
        """Returns the FLOPs of forward and backward for one token of a sequence, as PaLM's appendix B counts.

        6 per matrix weight (2 forward, 4 backward), and three times what each layer's mechanism counts beyond
        its weights. Recomputation (remat) and all that is no matrix product is left out.

        Args:
          length: tokens in a sequence.
          visible: count only the keys that a query may see (Dao, 2023), not all (Chowdhery et al., 2022).
        """
        beyond = stack_flops_per_token(self.specs(), self.layers, length, visible=visible)
        return 6.0 * self.matmul_parameters() + 3.0 * beyond

    def problems(self) -> Iterator[str]:
        """Yields what does not fit together, each as one clear sentence."""
        yield from attention_problems(self, self.attention, self.layers, causal=True)
        yield from engine_problems(self.engine, self.attention)


class GPTModule(nn.Module):
    """The network a ``GPT`` describes."""

    gpt: GPT

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        place: Tokens | None = None,
        *,
        cache: tuple[tuple[Any, ...], Slots] | None = None,
        targets: Int[Array, "batch length"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Any, tuple[tuple[Any, ...], Slots] | None]:
        """Returns logits [batch, length, vocabulary], float32, and the cache with these tokens in it, if one
        was given; with targets, -log p(target) and the log-partition [batch, length] instead of logits.

        Args:
          tokens: token ids.
          place: positions and segments of the tokens; None: 0, 1, 2 … in one document.
          cache: decoding state of the tokens before these.
          targets: the token after each; what padding predicts is scored as if its state were 0.
          key: key of the dropout; None: no dropout.
        """
        gpt = self.gpt
        dtype = jnp.dtype(gpt.dtype)
        embedding = Embedding(gpt.vocabulary, gpt.width, name="token_embedding")
        x = embedding(tokens, dtype)
        positions = positions_of(place, tokens.shape[1])
        x = with_positions(x, positions, gpt.positions, gpt.context)
        embedding_key, stack_key = (None, None) if key is None else jax.random.split(key)
        x = placed(dropout(x, gpt.dropout, embedding_key))
        layers, slots = (None, None) if cache is None else (cache[0], cache[1].write(positions))
        x, layers = Stack(gpt.specs(), gpt.layers, gpt.depth, gpt.remat, name="stack")(
            x, Context(tokens=place, slots=slots), layers, stack_key
        )
        x = placed(Norm(gpt.norm, gpt.bias, gpt.norm_epsilon, name="final_norm")(placed(x)))
        kernel = embedding.table.T
        if not gpt.tied_head:
            kernel, _ = Linear((gpt.width,), (gpt.vocabulary,), False, name="head").weights()
        cache = None if layers is None or slots is None else (layers, slots)
        if targets is None:
            return placed(project(x, kernel, gpt.logit_soft_cap)), cache
        if place is not None and place.segments is not None:
            # What padding holds may be NaN, and the gradient of its logarithm 0 * NaN.
            x = jnp.where((place.segments != 0)[..., None], x, jnp.zeros((), x.dtype))
        return projected_cross_entropy(x, kernel, targets, gpt.logit_soft_cap), cache
