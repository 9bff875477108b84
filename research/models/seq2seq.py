"""The LSTM encoder-decoder, with a thought vector alone (2014) or with attention (2015)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Key

from research.attention import alignment_scores
from research.attention.devices import BATCH_AXES
from research.attention.dropout import dropout, keep
from research.attention.masks import Tokens, positions_of
from research.attention.softmax import masked_softmax
from research.models.encoder_decoder import EncoderDecoder, ModelDecoder
from research.modules.embedding import Embedding
from research.modules.linear import Linear, linear
from research.modules.lstm import LSTM, CellState, LSTMWeights, lstm_cell
from research.modules.placement import rows_apart


@dataclasses.dataclass(frozen=True)
class Alignment:
    """How a decoder state attends to the source (Bahdanau et al., 2015; Luong et al., 2015)."""

    score: Literal["additive", "dot", "general", "concat"] = "additive"
    """"additive": v . tanh(W s + U h + b) (Bahdanau); "dot", "general", "concat" (Luong)."""
    locality: Literal["global", "monotonic", "predictive"] = "global"
    """"global": the whole source; "monotonic": around the target's own position (Luong's local-m);
    "predictive": around a predicted position, with a Gaussian (local-p)."""
    window: int = 10
    """Source tokens on either side of the centre that local attention sees."""
    coverage: bool = False
    """Tell the additive score how much attention each source token has received (Tu et al., 2016)."""


@dataclasses.dataclass(frozen=True)
class Seq2Seq:
    """An LSTM encoder-decoder; the decoder is Luong's: attention reads with the state after the token."""

    vocabulary: int = 10000
    """Rows of the embedding, which source and target share."""
    source_vocabulary: int | None = None
    """Rows of an embedding of the source's own; the target then has the other alone."""
    context: int = 1024
    """Longest sentence, in tokens, that is translated."""
    layers: int = 2
    """Layers of the encoder, and of the decoder."""
    width: int = 256
    """Width of embeddings, states and memory; a bidirectional encoder has half in each direction."""
    bidirectional: bool = True
    """Read the source both ways (Schuster & Paliwal, 1997)."""
    reverse_source: bool = False
    """Read the source backwards (Sutskever et al., 2014, section 3.3); attention keeps its own order."""
    attention: Alignment | None = dataclasses.field(default_factory=Alignment)
    """How the decoder attends to the source; None: all it knows is the encoder's last state."""
    input_feeding: bool = True
    """Give the decoder what it read and said at the step before (Luong et al., 2015, section 3.3)."""
    tied_head: bool = True
    """Use the embedding as the output projection too (Press & Wolf, 2017)."""
    dropout: float = 0.3
    """Dropout rate on embeddings, between layers and before the output projection."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters, attention weights and loss stay float32."""

    def build(self) -> Seq2SeqModule:
        """Returns the Flax module."""
        return Seq2SeqModule(self)

    def decoder(self, layer: int | None = None) -> Seq2SeqDecoder:
        """Returns the model as decoding drives it; it has one layer of attention and always tells it."""
        del layer
        return Seq2SeqDecoder(self)

    def training_flops(self, shapes: Mapping[str, tuple[int, ...]], *, visible: bool) -> float:
        """Returns the FLOPs of a training step on a batch with arrays of these shapes.

        6 per matrix weight and token, and three times what attention counts beyond its weights.

        Args:
          shapes: of ``source`` and ``tokens``, [batch, length].
          visible: plays no part: every step sees the whole source.
        """
        del visible
        (rows, source), (_, target) = shapes["source"], shapes["tokens"]
        square = self.width**2
        encoder = self.layers * (6 if self.bidirectional else 8) * square
        decoder = (self.layers * 8 + (4 if self.input_feeding else 0)) * square + self.width * self.vocabulary
        beyond = 0.0
        if self.attention is not None:
            decoder += 3 * square
            encoder += square
            beyond = target * 4.0 * self.width * source
        return rows * (6.0 * (source * encoder + target * decoder) + 3.0 * beyond)

    def problems(self) -> Iterator[str]:
        """Yields what does not fit together, each as one clear sentence."""
        if self.bidirectional and self.width % 2:
            yield f"model.width {self.width} is odd; a bidirectional encoder has half in each direction"
        if self.attention is not None and self.attention.coverage and self.attention.score != "additive":
            yield f"model.attention.coverage is for the score 'additive', not for {self.attention.score!r}"


class SourceMemory(NamedTuple):
    """What the decoder knows of the source."""

    state: CellState
    """Last states of the encoder's layers, [layers, batch, width]."""
    values: Float[Array, "batch source_length width"]
    """States of the encoder's last layer, in the order of the source's tokens."""
    keys: Float[Array, "batch source_length width"]
    """What scores are computed with: the values, projected if the score asks for it."""
    present: Bool[Array, "batch source_length"]


class DecoderState(NamedTuple):
    """State of the decoder; rows that share a source are successive."""

    cells: CellState
    """[layers, rows, width]."""
    fed: Float[Array, "rows width"]
    """What the step before put out."""
    coverage: Float[Array, "rows source_length"]
    """Attention each source token has received, in all steps."""
    weights: Float[Array, "rows source_length"]
    """Attention weights of the last step."""


class DecoderWeights(NamedTuple):
    """Parameters of a decoder step; None where the description does not call for them."""

    cells: tuple[tuple[Array, Array, Array], ...]
    """Kernel, recurrent kernel and bias of each layer."""
    combine: Float[Array, "both width"] | None = None
    query: Float[Array, "width width"] | None = None
    query_bias: Float[Array, " width"] | None = None
    vector: Float[Array, " width"] | None = None
    coverage_vector: Float[Array, " width"] | None = None
    position: Float[Array, "width width"] | None = None
    position_vector: Float[Array, " width"] | None = None


class Seq2SeqModule(EncoderDecoder):
    """The network a ``Seq2Seq`` describes."""

    model: Seq2Seq

    def setup(self) -> None:
        """Names the parts."""
        model, width = self.model, self.model.width
        self.token_embedding = Embedding(model.vocabulary, width, width**-0.5)
        if model.source_vocabulary is not None:
            self.source_embedding = Embedding(model.source_vocabulary, width, width**-0.5)
        self.encoder = LSTM(width, model.layers, model.bidirectional, model.dropout)
        inputs = [width * (2 if model.input_feeding else 1), *[width] * (model.layers - 1)]
        self.cells = [LSTMWeights(n, width) for n in inputs]
        if model.attention is not None:
            self.attentional = Linear((2 * width,), (width,), False, (2 * width) ** -0.5)
            how = model.attention
            if how.score != "dot":
                self.state_projection = Linear((width,), (width,), how.score == "additive", width**-0.5)
            if how.score in ("additive", "concat"):
                self.source_projection = Linear((width,), (width,), False, width**-0.5)
                self.score_vector = self._vector("score_vector")
            if how.coverage:
                self.coverage_vector = self._vector("coverage_vector")
            if how.locality == "predictive":
                self.position_projection = Linear((width,), (width,), False, width**-0.5)
                self.position_vector = self._vector("position_vector")
        if not model.tied_head:
            self.head = Linear((width,), (model.vocabulary,), False, width**-0.5)

    def _vector(self, name: str) -> Array:
        width = self.model.width
        return self.param(name, nn.initializers.normal(width**-0.5), (width,), jnp.float32)

    def encode(
        self,
        source: Int[Array, "batch source_length"],
        place: Tokens | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> SourceMemory:
        """Returns what the decoder knows of the source; arguments as for the call."""
        present = jnp.ones(source.shape, bool)
        if place is not None and place.segments is not None:
            present = jnp.broadcast_to(place.segments != 0, source.shape)
        order = _backwards(present) if self.model.reverse_source else None
        if order is not None:
            source = jnp.take_along_axis(source, order, axis=1)
        input_key, stack_key = (None, None) if key is None else jax.random.split(key)
        table = self.token_embedding if self.model.source_vocabulary is None else self.source_embedding
        x = dropout(self._embed(source, table), self.model.dropout, input_key)
        values, state = self.encoder(x, present, stack_key)
        if order is not None:  # what attention reads is in the source's own order
            values = jnp.take_along_axis(values, order[..., None], axis=1)
        how = self.model.attention
        keys = (
            self.source_projection(values)
            if how is not None and how.score in ("additive", "concat")
            else values
        )
        return SourceMemory(state, values, keys, present)

    def decode(
        self,
        tokens: Int[Array, "rows length"],
        memory: SourceMemory,
        place: Tokens | None = None,
        *,
        cache: DecoderState | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "rows length vocabulary"], DecoderState]:
        """Returns logits and the state after the tokens.

        Args:
          tokens: target tokens; their rows may be a multiple of the memory's, which successive ones share.
          memory: what ``encode`` returned.
          place: positions of the tokens; None: 0, 1, 2 …
          cache: the state before; None: the beginning.
          key: key of the dropout; None: no dropout.
        """
        model = self.model
        input_key, layer_key, output_key = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
        positions = positions_of(place, tokens.shape[1])
        positions = jnp.broadcast_to(positions, tokens.shape)
        x = dropout(self._embed(tokens, self.token_embedding), model.dropout, input_key)
        dtype = x.dtype
        weights = jax.tree.map(lambda x: x.astype(dtype), self._weights())
        kernel, _, bias = weights.cells[0]
        # The products of the embeddings, for all steps at once; what is fed has the kernel's other half.
        projected = linear(x, kernel[: model.width], bias)
        state = self._begin(memory, tokens.shape[0]) if cache is None else cache
        inner = None
        if layer_key is not None and model.layers > 1:
            inner = keep(layer_key, model.dropout, (*tokens.T.shape, model.layers - 1, model.width))
        rows, by_time = P(BATCH_AXES), P(None, BATCH_AXES)
        of_memory, of_state = (kind._make([by_time, *[rows] * 3]) for kind in (SourceMemory, DecoderState))
        run = rows_apart(
            functools.partial(_decoded, model), (P(), of_memory, of_state, by_time), (of_state, by_time)
        )
        state, out = run(weights, memory, state, (projected.swapaxes(0, 1), positions.T, inner))
        out = dropout(out.swapaxes(0, 1), model.dropout, output_key)
        logits = self.token_embedding.attend(out) if model.tied_head else self.head(out).astype(jnp.float32)
        return logits, state

    def _embed(
        self, tokens: Int[Array, "batch length"], table: Embedding
    ) -> Float[Array, "batch length width"]:
        x = table(tokens, jnp.dtype(self.model.dtype))
        return x * jnp.asarray(self.model.width**0.5, x.dtype)

    def _begin(self, memory: SourceMemory, rows: int) -> DecoderState:
        """Returns the state before the first token: the encoder's last, the thought vector."""
        cells = CellState(*(jnp.repeat(x, rows // x.shape[1], axis=1) for x in memory.state))
        nothing = jnp.zeros((rows, memory.values.shape[1]), jnp.float32)
        return DecoderState(cells, jnp.zeros_like(cells.hidden[0]), nothing, nothing)

    def _weights(self) -> DecoderWeights:
        """Returns the parameters that a step needs, out of the modules: a loop must not call modules."""
        how, cells = self.model.attention, tuple(cell() for cell in self.cells)
        if how is None:
            return DecoderWeights(cells)
        query, bias = self.state_projection.weights() if how.score != "dot" else (None, None)
        return DecoderWeights(
            cells,
            combine=self.attentional.weights()[0],
            query=query,
            query_bias=bias,
            vector=self.score_vector if how.score in ("additive", "concat") else None,
            coverage_vector=self.coverage_vector if how.coverage else None,
            position=self.position_projection.weights()[0] if how.locality == "predictive" else None,
            position_vector=self.position_vector if how.locality == "predictive" else None,
        )


def _backwards(present: Bool[Array, "batch source_length"]) -> Int[Array, "batch source_length"]:
    """Returns the place of each token in the source read backwards; padding, after it, stays where it is."""
    place = jnp.arange(present.shape[1], dtype=jnp.int32)[None]
    last = present.sum(1, keepdims=True, dtype=jnp.int32) - 1
    return jnp.where(place > last, place, last - place)


def _decoded(
    model: Seq2Seq, weights: DecoderWeights, memory: SourceMemory, state: DecoderState, tokens: Any
) -> tuple[DecoderState, Float[Array, "length rows width"]]:
    """Returns the state after all tokens, and what each put out; ``tokens`` as of ``decoder_step``."""

    def step(state: DecoderState, token: Any) -> tuple[DecoderState, Array]:
        state = decoder_step(model, weights, memory, state, *token)
        return state, state.fed

    return jax.lax.scan(step, state, tokens)


def decoder_step(
    model: Seq2Seq,
    weights: DecoderWeights,
    memory: SourceMemory,
    state: DecoderState,
    projected: Float[Array, "rows gates"],
    positions: Int[Array, " rows"],
    kept: Bool[Array, "rows between width"] | None,
) -> DecoderState:
    """Returns the state after one token.

    Args:
      model: the description.
      weights: its parameters, in the dtype of the computation.
      memory: what the encoder made of the sources.
      state: the state before.
      projected: product of the token's embedding with the first layer's kernel, and its bias.
      positions: position of the token.
      kept: what dropout between layers leaves; None: all.
    """
    hidden: list[Array] = []
    cells: list[Array] = []
    for layer, (kernel, recurrent, bias) in enumerate(weights.cells):
        if layer:
            below = hidden[-1]
            if kept is not None:
                below = jnp.where(kept[:, layer - 1], below / (1.0 - model.dropout), 0.0)
            gates = linear(below, kernel, bias)
        elif model.input_feeding:
            gates = projected + state.fed @ kernel[model.width :]
        else:
            gates = projected
        output, cell = lstm_cell(gates + state.cells.hidden[layer] @ recurrent, state.cells.memory[layer])
        hidden.append(output)
        cells.append(cell)
    after = state._replace(cells=CellState(jnp.stack(hidden), jnp.stack(cells)), fed=hidden[-1])
    if model.attention is None or weights.combine is None:
        return after
    aligned = align(model.attention, weights, hidden[-1], memory, state.coverage, positions)
    context = alignment_scores.read(aligned, memory.values, memory.present)
    both = jnp.concatenate([context.reshape(hidden[-1].shape), hidden[-1]], axis=-1)
    flat = aligned.reshape(state.weights.shape)
    # The attentional vector (Luong et al., 2015, eq. 5).
    spoken = jnp.tanh(linear(both, weights.combine, None))
    return after._replace(fed=spoken, coverage=state.coverage + flat, weights=flat)


def align(
    how: Alignment,
    weights: DecoderWeights,
    hidden: Float[Array, "rows width"],
    memory: SourceMemory,
    coverage: Float[Array, "rows source_length"],
    positions: Int[Array, " rows"],
) -> Float[Array, "batch shared source_length"]:
    """Returns the attention weights of decoder states on their memory; several may share one."""
    batch, length = memory.present.shape
    query = hidden.reshape(batch, -1, hidden.shape[-1])
    asked = query if weights.query is None else linear(query, weights.query, weights.query_bias)
    if weights.vector is None:  # "general" is "dot" with a projected query
        scores = alignment_scores.dot(asked, memory.keys)
    else:
        received = coverage.reshape(batch, -1, length) if how.coverage else None
        scores = alignment_scores.additive(
            asked, memory.keys, weights.vector, received, weights.coverage_vector
        )
    allowed = memory.present[:, None]
    if how.locality == "global":
        return masked_softmax(scores, allowed)
    places = jnp.arange(length, dtype=jnp.int32)[None]
    lengths = memory.present.sum(1, dtype=jnp.int32)
    if weights.position is None or weights.position_vector is None:
        last = (lengths - 1)[:, None].astype(jnp.float32)
        centre = jnp.minimum(positions.reshape(batch, -1).astype(jnp.float32), last)
        return masked_softmax(scores, allowed & alignment_scores.near(centre, places, how.window))
    centre = alignment_scores.predicted_position(query, weights.position, weights.position_vector, lengths)
    near = alignment_scores.near(centre, places, how.window)
    return masked_softmax(scores, allowed & near) * alignment_scores.gaussian(centre, places, how.window)


@dataclasses.dataclass(frozen=True)
class Seq2SeqDecoder(ModelDecoder):
    """A Seq2Seq as decoding drives it (see `research.inference.beam.Decoder`)."""

    model: Seq2Seq

    def empty_cache(self, batch: int, slots: int) -> None:
        """Returns None: a decoder begins with what the encoder ended with."""
        del batch, slots

    def take_rows(self, cache: DecoderState, rows: Int[Array, " rows"]) -> DecoderState:
        """Returns the state of the given rows."""
        cells = CellState(*(x[:, rows] for x in cache.cells))
        return DecoderState(cells, *(x[rows] for x in cache[1:]))

    def attention(self, cache: DecoderState) -> Float[Array, "rows source_length"] | None:
        """Returns the attention weights of the last step, or None without attention."""
        return None if self.model.attention is None else cache.weights
