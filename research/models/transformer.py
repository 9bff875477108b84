"""The Transformer: encoder, decoder and cross-attention (Vaswani et al., 2017), modern choices as fields."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.attention.cache import MemoryRead, Slots
from research.attention.catalogue import Attention, Single
from research.attention.dropout import dropout
from research.attention.engines import EngineName
from research.attention.masks import Tokens, positions_of
from research.attention.mechanisms import Mechanism, Softmax
from research.attention.positions import Positions, Sinusoidal
from research.errors import UserError
from research.models.encoder_decoder import EncoderDecoder, ModelDecoder
from research.models.stacks import (
    Stacked,
    attention_problems,
    engine_problems,
    named,
    stack_flops_per_token,
    stack_matmul_parameters,
    with_pattern,
)
from research.modules.attention import AttentionSpec, reads_lineages
from research.modules.block import (
    Apart,
    BlockSpec,
    Context,
    Stack,
    cache_apart,
    empty_cache,
    parameters_apart,
)
from research.modules.embedding import Embedding, with_positions
from research.modules.feed_forward import FeedForwardName
from research.modules.linear import Linear
from research.modules.norm import Norm
from research.modules.placement import placed

Memory = tuple[Float[Array, "batch source_length width"], Tokens | None]
"""What the encoder made of the source, and the source's tokens."""
Cache = tuple[tuple[Any, ...], Slots]
"""State of the layers, and which position each slot holds."""


@dataclasses.dataclass(frozen=True)
class Transformer(Stacked):
    """An encoder-decoder Transformer; the defaults are the base model of the paper."""

    vocabulary: int = 37000
    """Rows of the embedding, which source and target share."""
    source_vocabulary: int | None = None
    """Rows of an embedding of the source's own; the target then has the other alone."""
    context: int = 1024
    """Longest sentence, in tokens: rows of learned positions, and the most that is translated at once."""
    layers: int = 6
    """Blocks of the encoder, and of the decoder unless that has its own number."""
    decoder_layers: int | None = None
    """Blocks of the decoder; default: as many as the encoder."""
    width: int = 512
    """Width of the residual stream."""
    heads: int = 8
    """Query heads."""
    kv_heads: int | None = None
    """Key/value heads (fewer than heads: grouped-query attention; 1: multi-query); default: heads."""
    head_dim: int | None = None
    """Channels of a head; default: width / heads."""
    attention: Attention = dataclasses.field(default_factory=Softmax)
    """How source tokens read one another, and target tokens unless these have an attention of their own."""
    decoder_attention: Attention | None = None
    """How target tokens read one another; default: attention."""
    cross_attention: Single | None = None
    """How target tokens read the source; default: softmax, its scores scaled as the decoder's are."""
    feed_forward_width: int | None = None
    """Hidden width of the feed-forward network; default: 4 * width."""
    feed_forward: FeedForwardName = "relu"
    """Activation of the feed-forward network."""
    positions: Positions | None = dataclasses.field(default_factory=Sinusoidal)
    """Positional encoding."""
    norm: Literal["layer", "rms"] = "layer"
    """Normalisation."""
    norm_epsilon: float = 1e-5
    """Added to the variance in every normalisation."""
    placement: Literal["pre", "post"] = "post"
    """"post": norm(x + f(x)), as published; "pre": x + f(norm(x)), with a norm after each stack."""
    bias: bool = True
    """Biases in linear layers and LayerNorm."""
    tied_head: bool = True
    """Use the embedding as the output projection too (Press & Wolf, 2017)."""
    head_bias: bool = False
    """A bias on the logits (Marian)."""
    embedding_scale: Literal["input", "output", "none"] = "input"
    """Where the table is brought to scale: embeddings times width^1/2 (Vaswani et al., 2017, section 3.4),
    what the head reads times width^-1/2 (T5), or neither."""
    dropout: float = 0.1
    """Dropout rate on embeddings and sub-layer outputs."""
    attention_dropout: float = 0.0
    """Dropout rate on attention weights, of which the paper has none (section 5.4)."""
    depth: Literal["scan", "unroll"] = "scan"
    """Loop over layers (fast to compile) or unroll them (faster for few layers); same parameters."""
    remat: Literal["none", "block", "dots"] = "none"
    """What the backward pass recomputes: nothing, whole blocks, or all but matmul outputs."""
    engine: EngineName = "auto"
    """Attention engine; one asked for by name refuses what it cannot serve."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters, softmax and loss stay float32."""

    @property
    def decoder_depth(self) -> int:
        """Blocks of the decoder."""
        return self.layers if self.decoder_layers is None else self.decoder_layers

    @property
    def target_attention(self) -> Attention:
        """How target tokens read one another."""
        return self.attention if self.decoder_attention is None else self.decoder_attention

    @property
    def tells(self) -> bool:
        """Whether cross-attention has weights that it can tell."""
        return self.cross_attention is None or type(self.cross_attention) is Softmax

    def build(self) -> TransformerModule:
        """Returns the Flax module."""
        return TransformerModule(self)

    def empty_cache(self, batch: int, slots: int) -> Cache:
        """Returns the decoder's empty decoding state for ``batch`` rows of at most ``slots`` tokens."""
        return empty_cache(self.specs("decoder"), self.decoder_depth, batch, slots, jnp.dtype(self.dtype))

    def decoder(self, layer: int | None = None) -> TransformerDecoder:
        """Returns the model as decoding drives it.

        Args:
          layer: the decoder's layer whose cross-attention it tells, from 0; from the end if negative, the
            first where there are too few. None: none, which is faster.

        Raises:
          UserError: a layer is to be told, and its cross-attention has no weights.
        """
        if layer is not None and not self.tells:
            raise UserError(
                f"model.cross_attention {type(self.cross_attention).__name__} has no weights over the source "
                "that could be told; only softmax has"
            )
        if layer is not None and layer < 0:
            layer = max(layer + self.decoder_depth, 0)
        return TransformerDecoder(self, layer)

    def specs(self, side: Literal["encoder", "decoder"], *, tells: bool = False) -> tuple[BlockSpec, ...]:
        """Returns the repeating group of blocks of the encoder or the decoder.

        Args:
          side: which of them.
          tells: whether cross-attention keeps its weights in the decoding state.
        """
        attention = AttentionSpec(
            geometry=self.geometry,
            causal=side == "decoder",
            bias=self.bias,
            dropout=self.dropout,
            weight_dropout=self.attention_dropout,
            engine=self.engine,
            norm_epsilon=self.norm_epsilon,
            # Glorot & Bengio (2010), as the authors' own code had it.
            stddev=self.width**-0.5,
            output_stddev=math.sqrt(2.0 / (self.width + self.hidden)),
            tells=tells,
        )
        block = BlockSpec(
            attention, self.hidden, self.feed_forward, self.norm, self.bias, self.norm_epsilon, self.placement
        )
        if side == "encoder":
            return with_pattern(block, self.attention, self.positions)
        return tuple(
            dataclasses.replace(own, cross_attention=self._cross_attention(own.attention.mechanism))
            for own in with_pattern(block, self.target_attention, self.positions)
        )

    def _cross_attention(self, own: Mechanism) -> Mechanism:
        """Returns the cross-attention of a layer whose self-attention is ``own``."""
        if self.cross_attention is not None:
            return self.cross_attention
        return Softmax(scale=own.scale if isinstance(own, Softmax) else None)

    def training_flops(self, shapes: Mapping[str, tuple[int, ...]], *, visible: bool) -> float:
        """Returns the FLOPs of a training step on a batch with arrays of these shapes.

        As PaLM's appendix B counts: 6 per matrix weight and token, and three times what attention counts
        beyond its weights; recomputation (remat) and all that is no matrix product is left out.

        Args:
          shapes: of ``source`` and ``tokens``, [batch, length].
          visible: count only the keys that a query may see, not all.
        """
        (rows, source), (_, target) = shapes["source"], shapes["tokens"]
        encoder, decoder = self.specs("encoder"), self.specs("decoder")
        weights = source * stack_matmul_parameters(encoder, self.layers)
        cross = self._cross_attention(Softmax())
        # Keys and values of the memory are made of source tokens, the rest of a decoder of target tokens.
        of_memory = self.decoder_depth * cross.memory_parameters(self.geometry)
        weights += source * of_memory + target * (self.width * self.vocabulary - of_memory)
        weights += target * stack_matmul_parameters(decoder, self.decoder_depth)
        beyond = source * stack_flops_per_token(encoder, self.layers, source, visible=visible)
        beyond += target * stack_flops_per_token(decoder, self.decoder_depth, target, visible=visible)
        beyond += self.decoder_depth * cross.cross_flops(self.geometry, target, source)
        return rows * (6.0 * weights + 3.0 * beyond)

    def problems(self) -> Iterator[str]:
        """Yields what does not fit together, each as one clear sentence."""
        yield from attention_problems(self, self.attention, self.layers, causal=False)
        yield from attention_problems(
            self, self.target_attention, self.decoder_depth, causal=True, field="model.decoder_attention"
        )
        if self.cross_attention is not None:
            yield from named(self.cross_attention.cross_problems(self.geometry), "model.cross_attention")
        cross = self._cross_attention(Softmax())
        yield from engine_problems(self.engine, self.attention, self.target_attention, cross)


class _Input(nn.Module):
    """Token embeddings with positions, dropped out: what a stack reads."""

    model: Transformer

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        place: Tokens | None,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "batch length width"]:
        if self.model.embedding_scale == "input":  # the table is small, as an output projection must be
            x = x * jnp.asarray(math.sqrt(self.model.width), x.dtype)
        positions = positions_of(place, x.shape[1])
        x = with_positions(x, positions, self.model.positions, self.model.context, stddev=1.0)
        return placed(dropout(x, self.model.dropout, key))


class TransformerModule(EncoderDecoder):
    """The network a ``Transformer`` describes."""

    model: Transformer
    tells: bool = False
    """Whether cross-attention keeps its weights in the decoding state."""

    def setup(self) -> None:
        """Names the parts."""
        model = self.model
        self.token_embedding = Embedding(model.vocabulary, model.width, model.width**-0.5)
        if model.source_vocabulary is not None:
            self.source_embedding = Embedding(model.source_vocabulary, model.width, model.width**-0.5)
        self.encoder_input, self.decoder_input = _Input(model), _Input(model)
        self.encoder = Stack(model.specs("encoder"), model.layers, model.depth, model.remat)
        decoder = model.specs("decoder", tells=self.tells)
        self.decoder = Stack(decoder, model.decoder_depth, model.depth, model.remat)
        if model.placement == "pre":
            self.encoder_norm = Norm(model.norm, model.bias, model.norm_epsilon)
            self.decoder_norm = Norm(model.norm, model.bias, model.norm_epsilon)
        if not model.tied_head:
            self.head = Linear((model.width,), (model.vocabulary,), False, model.width**-0.5)
        if model.head_bias:
            self.head_bias = self.param("head_bias", nn.initializers.zeros, (model.vocabulary,), jnp.float32)

    def encode(
        self,
        source: Int[Array, "batch source_length"],
        place: Tokens | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Memory:
        """Returns what the decoder reads of the source; arguments as for the call."""
        input_key, stack_key = (None, None) if key is None else jax.random.split(key)
        shared = self.model.source_vocabulary is None
        table = self.token_embedding if shared else self.source_embedding
        x = table(source, jnp.dtype(self.model.dtype))
        x, _ = self.encoder(self.encoder_input(x, place, input_key), Context(place), None, stack_key)
        return placed(self.encoder_norm(x) if self.model.placement == "pre" else x), place

    def decode(
        self,
        tokens: Int[Array, "batch length"],
        memory: Memory,
        place: Tokens | None = None,
        *,
        cache: Cache | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length vocabulary"], Cache | None]:
        """Returns logits and, when a cache is given, the cache with these tokens in it.

        Args:
          tokens: target tokens.
          memory: what ``encode`` returned.
          place: positions and segments of the tokens.
          cache: decoding state of the tokens before these.
          key: key of the dropout; None: no dropout.
        """
        input_key, stack_key = (None, None) if key is None else jax.random.split(key)
        x = self.token_embedding(tokens, jnp.dtype(self.model.dtype))
        x = self.decoder_input(x, place, input_key)
        layers, slots = None, None
        if cache is not None:
            layers, slots = cache[0], cache[1].write(positions_of(place, tokens.shape[1]))
        x, layers = self.decoder(x, Context(place, *memory, slots), layers, stack_key)
        x = placed(self.decoder_norm(x) if self.model.placement == "pre" else x)
        if self.model.embedding_scale == "output":
            x = x * jnp.asarray(self.model.width**-0.5, x.dtype)
        tied = self.model.tied_head
        logits = self.token_embedding.attend(x) if tied else self.head(x).astype(jnp.float32)
        if self.model.head_bias:
            logits = logits + self.head_bias[None, None]
        return placed(logits), None if layers is None or slots is None else (layers, slots)


@dataclasses.dataclass(frozen=True)
class TransformerDecoder(ModelDecoder):
    """A Transformer as decoding drives it (see `research.inference.beam.Decoder`)."""

    model: Transformer
    layer: int | None = None
    """The layer whose cross-attention is told; None: none."""

    def module(self) -> TransformerModule:
        """Returns the network as decoding needs it."""
        return TransformerModule(self.model, self.layer is not None)

    def empty_cache(self, batch: int, slots: int) -> Cache:
        """Returns the decoding state before the first token."""
        return self.model.empty_cache(batch, slots)

    def take_rows(self, cache: Cache, rows: Int[Array, " rows"]) -> Cache:
        """Returns the state of the given rows; what belongs to the memories stays where it is.

        The first time there may be more rows than before. After it they stay among those of their source,
        and keys and values where they are: the slots know which are whose.
        """
        layers, slots = cache
        first = slots.lineage is None
        moved = slots.of_rows(rows)
        if first:
            moved = moved.in_groups(len(rows) // len(slots.positions))
        specs = self.model.specs("decoder")

        def of_rows(spec: BlockSpec, layer: Any, axis: int) -> Any:
            if isinstance(layer, Apart):
                return Apart(tuple(of_rows(spec, own, 0) for own in layer.groups))
            own, of_memory = layer
            if first or not reads_lineages(spec.attention.mechanism):
                own = jax.tree.map(lambda x: jnp.take(x, rows, axis=axis), own)
            if isinstance(of_memory, MemoryRead):  # keys and values are the memories', weights the rows'
                weights = jnp.take(of_memory.weights, rows, axis=axis)
                of_memory = dataclasses.replace(of_memory, weights=weights)
            return own, of_memory

        return tuple(of_rows(spec, layer, 1) for spec, layer in zip(specs, layers, strict=True)), moved

    def apart(self, params: Any, cache: Cache) -> tuple[Any, Cache]:
        """Returns both with the decoder's layers apart, which CPUs are twice as fast with."""
        return {**params, "decoder": parameters_apart(params["decoder"])}, cache_apart(cache)

    def attention(self, cache: Cache) -> Float[Array, "rows source_length"] | None:
        """Returns attention weights of the last token, means over the heads of ``layer``, if there is one."""
        if self.layer is None:
            return None
        group, block = divmod(self.layer, len(cache[0]))
        layers = cache[0][block]
        read = layers.groups[group][1] if isinstance(layers, Apart) else layers[1]
        assert isinstance(read, MemoryRead)
        weights: Float[Array, "rows source_length"] = (
            read.weights if isinstance(layers, Apart) else read.weights[group]
        )[:, -1]
        return weights
