"""BERT: a Transformer encoder that fills gaps (Devlin et al., 2019), with the modern choices as fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

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
from research.modules.block import BlockSpec, Context, Stack
from research.modules.embedding import Embedding, with_positions
from research.modules.feed_forward import ACTIVATIONS, FeedForwardName
from research.modules.linear import Linear
from research.modules.norm import Norm
from research.modules.placement import placed


@dataclasses.dataclass(frozen=True)
class BERT(Stacked):
    """A bidirectional Transformer encoder with BERT's heads; the defaults are BERT-base, uncased."""

    vocabulary: int = 30522
    """Rows of the embedding; a tokenizer that is trained for the run is trained to fit."""
    context: int = 512
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
    """How tokens read one another."""
    feed_forward_width: int | None = None
    """Hidden width of the feed-forward network; default: 4 * width."""
    feed_forward: FeedForwardName = "exact-gelu"
    """Activation of the feed-forward network."""
    positions: Positions | None = dataclasses.field(default_factory=Learned)
    """Positional encoding."""
    token_types: int = 2
    """Rows of the embedding that tells the sentences of a pair apart; 0: none."""
    norm: Literal["layer", "rms"] = "layer"
    """Normalisation."""
    norm_epsilon: float = 1e-12
    """Added to the variance in every normalisation."""
    lead: bool = False
    """Whether the first block stands before the pattern: the pattern's last mechanism, reading embeddings
    that are normalised already without another norm (ModernBERT; needs placement "pre")."""
    placement: Literal["pre", "post"] = "post"
    """"post": norm(x + f(x)), BERT's; "pre": x + f(norm(x)), with a norm after the last block."""
    bias: bool = True
    """Biases in linear layers and LayerNorm (the output projection always has one)."""
    pooler: bool = True
    """The pooler over the first token, and the head that says whether a pair belongs together."""
    dropout: float = 0.1
    """Dropout rate on embeddings, attention weights and sub-layer outputs."""
    depth: Literal["scan", "unroll"] = "scan"
    """Loop over layers (fast to compile) or unroll them (faster for few layers); same parameters."""
    remat: Literal["none", "block", "dots"] = "none"
    """What the backward pass recomputes: nothing, whole blocks, or all but matmul outputs."""
    engine: EngineName = "auto"
    """Attention engine; one asked for by name refuses what it cannot serve."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters, softmax and loss stay float32."""

    def build(self) -> BERTModule:
        """Returns the Flax module."""
        return BERTModule(self)

    def specs(self) -> tuple[BlockSpec, ...]:
        """Returns the repeating group of blocks."""
        attention = AttentionSpec(
            geometry=self.geometry, causal=False, bias=self.bias, dropout=self.dropout,
            weight_dropout=self.dropout, engine=self.engine,
        )  # fmt: skip
        block = BlockSpec(
            attention, self.hidden, self.feed_forward, self.norm, self.bias, self.norm_epsilon, self.placement
        )
        return with_pattern(block, self.attention, self.positions)

    def lead_spec(self) -> BlockSpec:
        """Returns the first block, where that stands before the pattern."""
        return dataclasses.replace(self.specs()[-1], attention_norm=False)

    def body_flops_per_token(self, length: int, *, visible: bool) -> float:
        """Returns the training FLOPs of one token in the blocks; counted as those of ``GPT`` are."""
        total = 0.0
        lead = [((self.lead_spec(),), 1)] if self.lead else []
        for specs, layers in (*lead, (self.specs(), self.layers - len(lead))):
            beyond = stack_flops_per_token(specs, layers, length, visible=visible)
            total += 6.0 * stack_matmul_parameters(specs, layers) + 3.0 * beyond
        return total

    def training_flops(self, shapes: Mapping[str, tuple[int, ...]], *, visible: bool) -> float:
        """Returns the FLOPs of a training step on a batch with arrays of these shapes.

        The blocks read every token, the output projection only those of "selected", the pooler one of each
        row where there is a "pair".
        """
        batch, length = shapes["tokens"]
        predicted = shapes["selected"][1]
        head = 6.0 * self.width * (self.width + self.vocabulary) * predicted
        pooler = 6.0 * self.width * (self.width + 2) if "pair" in shapes else 0.0
        return batch * (length * self.body_flops_per_token(length, visible=visible) + head + pooler)

    def problems(self) -> Iterator[str]:
        """Yields what does not fit together, each as one clear sentence."""
        if self.lead and self.placement != "pre":
            yield 'model.lead needs model.placement "pre"'
        yield from attention_problems(self, self.attention, self.layers - self.lead, causal=False)
        yield from engine_problems(self.engine, self.attention)


class _Input(nn.Module):
    """Token embeddings with those of positions and types added, normalised and dropped out."""

    bert: BERT

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        positions: Int[Array, "#batch length"],
        types: Int[Array, "batch length"] | None,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "batch length width"]:
        bert = self.bert
        x = with_positions(x, positions, bert.positions, bert.context)
        if bert.token_types:
            table = Embedding(bert.token_types, bert.width, name="type_embedding")
            # Without types every token is of the first.
            x = x + table(jnp.zeros(x.shape[:2], jnp.int32) if types is None else types, x.dtype)
        x = Norm(bert.norm, bert.bias, bert.norm_epsilon, name="norm")(x)
        return placed(dropout(x, bert.dropout, key))


class _TokenHead(nn.Module):
    """Logits over the vocabulary: a linear map, GELU, norm, and the embedding as output projection."""

    bert: BERT

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch selected width"], embedding: Embedding
    ) -> Float[Array, "batch selected vocabulary"]:
        bert = self.bert
        x = Linear((bert.width,), (bert.width,), bert.bias, name="transform")(x)
        x = Norm(bert.norm, bert.bias, bert.norm_epsilon, name="norm")(ACTIVATIONS["exact-gelu"](x))
        bias = self.param("bias", nn.initializers.zeros, (bert.vocabulary,), jnp.float32)
        return embedding.attend(x) + bias[None, None]


class BERTModule(nn.Module):
    """The network a ``BERT`` describes."""

    bert: BERT

    def setup(self) -> None:
        """Names the parts; those that are not called have no parameters."""
        bert = self.bert
        self.token_embedding = Embedding(bert.vocabulary, bert.width)
        self.input = _Input(bert)
        if bert.lead:
            self.lead = Stack((bert.lead_spec(),), 1, bert.depth, bert.remat)
        self.stack = Stack(bert.specs(), bert.layers - bert.lead, bert.depth, bert.remat)
        if bert.placement == "pre":
            self.final_norm = Norm(bert.norm, bert.bias, bert.norm_epsilon)
        self.token_head = _TokenHead(bert)
        if bert.pooler:
            self.pooler = Linear((bert.width,), (bert.width,), bert.bias)
            self.pair_head = Linear((bert.width,), (2,), True)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        place: Tokens | None = None,
        types: Int[Array, "batch length"] | None = None,
        selected: Int[Array, "batch selected"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch selected vocabulary"], Float[Array, "batch 2"] | None]:
        """Returns logits of the tokens at the selected places, and of the pair of sentences; float32.

        Args:
          tokens: token ids.
          place: positions and segments of the tokens; None: 0, 1, 2 … in one document.
          types: 0 for tokens of the first sentence of a pair, 1 for those of the second; None: all 0.
          selected: indices of the tokens to predict; None: all.
          key: key of the dropout; None: no dropout.

        The logits of a pair are for "the second follows the first" and "it does not"; None without a pooler.
        """
        x = self.encode(tokens, place, types, key=key)
        pair = None
        if self.bert.pooler:
            pair = self.pair_head(self.pool(x[:, 0])).astype(jnp.float32)
        if selected is not None:
            x = jnp.take_along_axis(x, selected[..., None], axis=1, mode="clip")
        return self.token_head(x, self.token_embedding), pair

    def encode(
        self,
        tokens: Int[Array, "batch length"],
        place: Tokens | None = None,
        types: Int[Array, "batch length"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch length width"]:
        """Returns what the encoder makes of each token; arguments as for the call."""
        input_key, stack_key = (None, None) if key is None else jax.random.split(key)
        positions = positions_of(place, tokens.shape[1])
        x = self.token_embedding(tokens, jnp.dtype(self.bert.dtype))
        x = self.input(x, positions, types, input_key)
        if self.bert.lead:
            lead_key, stack_key = (None, None) if stack_key is None else jax.random.split(stack_key)
            x, _ = self.lead(x, Context(place), None, lead_key)
        x, _ = self.stack(x, Context(place), None, stack_key)
        return placed(self.final_norm(x) if self.bert.placement == "pre" else x)

    def pool(self, first: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
        """Returns the pooled sentence from what the encoder made of its first token."""
        return jnp.tanh(self.pooler(first))
