"""Beam search for encoder-decoder models: batched, cached, jitted once per shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from research.attention.masks import Tokens
from research.errors import UserError
from research.inference.largest import largest

DEAD = -1e30
"""Log-probability of a hypothesis that is none; finite, so that sums of two stay ordered."""


@dataclasses.dataclass(frozen=True)
class Beam:
    """How hypotheses are kept and compared."""

    width: int = 5
    """Hypotheses kept at each step, and ended ones kept at the end; 1: greedy."""
    length_penalty: float = 1.0
    """alpha of the score log P / ((5 + length) / 6)^alpha (Wu et al., 2016, eq. 14); 0: log P."""
    coverage_penalty: float = 0.0
    """beta of beta * sum over source tokens of log min(attention received, 1), added to it (eq. 15)."""

    def __post_init__(self) -> None:
        """Raises UserError where a value makes no sense."""
        if self.width < 1:
            raise UserError(f"a beam of {self.width}: 1 or more")
        for name, value in (("length", self.length_penalty), ("coverage", self.coverage_penalty)):
            if value < 0:
                raise UserError(f"{name} penalty {value:g}: 0 or more")


@runtime_checkable
class Decoder(Protocol):
    """An encoder-decoder model as the search sees it; ``params`` are its parameters."""

    def encode(self, params: Any, source: Int[Array, "batch source_length"], place: Tokens) -> Any:
        """Returns the memory of the sources."""

    def empty_cache(self, batch: int, slots: int) -> Any:
        """Returns the decoding state before the first token."""

    def step(
        self, params: Any, tokens: Int[Array, "rows 1"], memory: Any, place: Tokens, cache: Any
    ) -> tuple[Float[Array, "rows vocabulary"], Any]:
        """Returns the logits of the next token and the state; successive rows share a memory."""

    def apart(self, params: Any, cache: Any) -> tuple[Any, Any]:
        """Returns parameters and state in the form that a loop over tokens on a CPU reads fastest."""

    def take_rows(self, cache: Any, rows: Int[Array, " rows"]) -> Any:
        """Returns the state of the given rows, each of which takes the place of one of the same source."""

    def attention(self, cache: Any) -> Float[Array, "rows source_length"] | None:
        """Returns the attention weights of the last step, or None if the model does not tell them."""


class Hypotheses(NamedTuple):
    """Translations of each source, the best first; those that are none have a score of DEAD."""

    tokens: Int[Array, "batch beam length"]
    """Target tokens with the end-of-text token, which also fills what follows."""
    scores: Float[Array, "batch beam"]
    """What they are ordered by."""
    log_probabilities: Float[Array, "batch beam"]
    """Natural log-probability of the tokens, that of the end of text included."""


class _Search(NamedTuple):
    """State of a search. Arrays are [batch, beam, …]; rows of the cache are batch * beam."""

    length: Int[Array, ""]
    """Tokens of every hypothesis that goes on."""
    tokens: Int[Array, "batch beam length"]
    totals: Float[Array, "batch beam"]
    coverage: Float[Array, "batch beam source_length"]
    cache: Any
    ended: Hypotheses
    done: Bool[Array, " batch"]
    """Sentences of which nothing changes any more."""


def beam_search(
    decoder: Decoder, beam: Beam, *, slots: int, end: int, start: int | None = None
) -> Callable[
    [Any, Int[Array, "batch source_length"], Int[Array, " batch"], Int[Array, " batch"]], Hypotheses
]:
    """Returns the jitted search: parameters, right-padded sources, their lengths, limits -> hypotheses.

    At every step each hypothesis is extended by every token. Of the best ``beam.width`` extensions those that
    end the text are set aside with their score; the best ``beam.width`` of the others go on. A sentence is
    done when as many hypotheses have ended as the beam is wide, and none that goes on has a better score by
    now (without the coverage penalty, which adds nothing) than the worst of them. (To stop at that number
    alone would let short ones, ended early with little probability, crowd out the right one.) At its limit, a
    hypothesis can only end. What another row of the batch does changes nothing.

    Args:
      decoder: the model.
      beam: how hypotheses are kept and compared.
      slots: most target tokens of any row, the end of text included.
      end: the token that ends every target.
      start: the token that begins every target, and never occurs in it; None: the one that ends it.

    The limits, at most ``slots``, are the most target tokens of each row.
    """
    width = beam.width
    begin = end if start is None else start

    def normalised(
        totals: Float[Array, "batch hypotheses"], count: Int[Array, ""]
    ) -> Float[Array, "batch hypotheses"]:
        return totals / jnp.power((5.0 + count.astype(jnp.float32)) / 6.0, beam.length_penalty)

    def search(
        params: Any,
        source: Int[Array, "batch source_length"],
        lengths: Int[Array, " batch"],
        limits: Int[Array, " batch"],
    ) -> Hypotheses:
        batch = source.shape[0]
        memory = decoder.encode(params, source, Tokens.of_lengths(lengths, source.shape[1]))
        real = jnp.arange(source.shape[1], dtype=jnp.int32)[None] < lengths[:, None]

        def advance(params: Any, state: _Search, tokens: Int[Array, "rows 1"]) -> _Search:
            place = Tokens(jnp.broadcast_to(state.length, tokens.shape))
            logits, cache = decoder.step(params, tokens, memory, place, state.cache)
            attention = decoder.attention(cache)
            if beam.coverage_penalty and attention is None:
                raise UserError(
                    "a coverage penalty needs a model that tells its attention; this one does not"
                )
            if width > logits.shape[-1]:
                raise UserError(
                    f"a beam of {width} is wider than the vocabulary of {logits.shape[-1]} tokens"
                )
            # The first step has one row per source: every hypothesis is still the same.
            hypotheses = logits.shape[0] // batch
            last = jnp.repeat(state.length + 1 >= limits, hypotheses)
            logs, words = _extensions(logits, 2 * width, last, begin, end)
            totals = state.totals[:, :hypotheses, None] + logs.reshape(batch, hypotheses, -1)
            totals = totals.reshape(batch, -1)
            best, index = jax.lax.top_k(totals, min(2 * width, totals.shape[1]))
            token = jnp.take_along_axis(words.reshape(batch, -1), index, axis=1)
            parent = index.astype(jnp.int32) // words.shape[-1]
            rows = (jnp.arange(batch, dtype=jnp.int32)[:, None] * hypotheses + parent).reshape(-1)
            grown = _rows(state.tokens, parent).at[:, :, state.length].set(token, mode="drop")
            coverage = _rows(state.coverage, parent)
            if attention is not None:
                coverage = coverage + attention[rows].reshape(coverage.shape)
            ends = (token == end) & (best > DEAD / 2)
            # Only among the best `width` extensions; and a sentence that is done stays as it is.
            accepted = ends & (jnp.arange(ends.shape[1]) < width)[None] & ~state.done[:, None]
            ended = _set_aside(state.ended, grown, best, coverage, accepted, state.length + 1)
            # Stable: of those that go on, the best come first.
            onward = ends.argsort(axis=1, stable=True)[:, :width].astype(jnp.int32)
            over = jnp.take_along_axis(ends, onward, axis=1)
            chosen = rows.reshape(batch, -1)
            alive = jnp.where(over, DEAD, jnp.take_along_axis(best, onward, axis=1))
            full = (ended.scores > DEAD / 2).all(axis=1)
            beaten = normalised(alive, state.length + 1).max(axis=1) <= ended.scores.min(axis=1)
            return _Search(
                length=state.length + 1,
                tokens=_rows(grown, onward),
                totals=alive,
                coverage=_rows(coverage, onward),
                cache=decoder.take_rows(cache, jnp.take_along_axis(chosen, onward, axis=1).reshape(-1)),
                ended=ended,
                done=state.done | (full & beaten) | (state.length + 1 >= limits),
            )

        def _set_aside(
            before: Hypotheses,
            tokens: Int[Array, "batch candidates length"],
            totals: Float[Array, "batch candidates"],
            coverage: Float[Array, "batch candidates source_length"],
            accepted: Bool[Array, "batch candidates"],
            count: Int[Array, ""],
        ) -> Hypotheses:
            """Returns the best of the hypotheses that had ended and those that now do."""
            scores = normalised(totals, count)
            if beam.coverage_penalty:
                received = jnp.where(real[:, None], jnp.clip(coverage, 1e-9, 1.0), 1.0)
                scores = scores + beam.coverage_penalty * jnp.log(received).sum(-1)
            new = Hypotheses(tokens, jnp.where(accepted, scores, DEAD), jnp.where(accepted, totals, DEAD))
            both = Hypotheses(*(jnp.concatenate(pair, axis=1) for pair in zip(before, new, strict=True)))
            _, best = jax.lax.top_k(both.scores, width)
            return Hypotheses(
                _rows(both.tokens, best.astype(jnp.int32)),
                *(jnp.take_along_axis(x, best, axis=1) for x in (both.scores, both.log_probabilities)),
            )

        def going_on(state: _Search) -> Bool[Array, ""]:
            return (state.length < slots) & ~state.done.all()

        none = jnp.full((batch, width), DEAD, jnp.float32)
        nothing = jnp.full((batch, width, slots), end, jnp.int32)
        initial = _Search(
            length=jnp.zeros((), jnp.int32),
            tokens=nothing[:, :1],
            totals=jnp.zeros((batch, 1), jnp.float32),
            coverage=jnp.zeros((batch, 1, source.shape[1]), jnp.float32),
            cache=decoder.empty_cache(batch, slots),
            ended=Hypotheses(nothing, none, none),
            done=jnp.zeros((batch,), bool),
        )
        first = advance(params, initial, jnp.full((batch, 1), begin, jnp.int32))

        def go_on(params: Any, first: _Search) -> Hypotheses:
            def extend(state: _Search) -> _Search:
                tokens = jax.lax.dynamic_index_in_dim(state.tokens, state.length - 1, axis=2)
                return advance(params, state, tokens.reshape(-1, 1))

            return jax.lax.while_loop(going_on, extend, first).ended

        def apart(params: Any, first: _Search) -> Hypotheses:
            params, cache = decoder.apart(params, first.cache)
            return go_on(params, first._replace(cache=cache))

        return jax.lax.platform_dependent(params, first, cpu=apart, default=go_on)

    return jax.jit(search)


def forced_decoding(decoder: Decoder) -> Callable[[Any, Array, Array, Array, Array], Float[Array, " batch"]]:
    """Returns the jitted scoring of given targets, with the same steps and caches as a search.

    The function takes parameters, right-padded sources [batch, source_length], their lengths, right-padded
    targets [batch, length] with the tokens that begin and end them, and their lengths; it returns the
    natural log-probability of each target after its first token.
    """

    def score(
        params: Any,
        source: Int[Array, "batch source_length"],
        lengths: Int[Array, " batch"],
        targets: Int[Array, "batch length"],
        target_lengths: Int[Array, " batch"],
    ) -> Float[Array, " batch"]:
        batch, length = targets.shape
        memory = decoder.encode(params, source, Tokens.of_lengths(lengths, source.shape[1]))

        def advance(cache: Any, index: Int[Array, ""]) -> tuple[Any, Float[Array, " batch"]]:
            now, then = (jax.lax.dynamic_index_in_dim(targets, index + i, axis=1) for i in (0, 1))
            place = Tokens(jnp.broadcast_to(index, now.shape))
            logits, cache = decoder.step(params, now, memory, place, cache)
            logs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
            chosen = jnp.take_along_axis(logs, then, axis=1)[:, 0]
            return cache, jnp.where(index + 1 < target_lengths, chosen, 0.0)

        # The first step on its own: the cache before it has another structure.
        cache, first = advance(decoder.empty_cache(batch, length), jnp.zeros((), jnp.int32))
        _, others = jax.lax.scan(advance, cache, jnp.arange(1, length - 1, dtype=jnp.int32))
        return first + others.sum(0)

    return jax.jit(score)


def _extensions(
    logits: Float[Array, "rows vocabulary"],
    count: int,
    last: Bool[Array, " rows"],
    begin: int,
    end: int,
) -> tuple[Float[Array, "rows count"], Int[Array, "rows count"]]:
    """Returns the log-probabilities of the likeliest next tokens, best first, and the tokens.

    They are ``count`` (if there are as many), one more if ``begin``, of which the log-probability is DEAD, is
    not ``end``. In ``last`` rows nothing but ``end`` is possible.
    """
    logits = logits.astype(jnp.float32)
    partition = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    best, tokens = largest(logits, min(count + (begin != end), logits.shape[-1]))
    first = jnp.arange(tokens.shape[1])[None] == 0
    best = jnp.where(last[:, None], jnp.where(first, logits[:, end, None], jnp.inf), best) - partition
    tokens = jnp.where(last[:, None], end, tokens)
    impossible = (last[:, None] & ~first) | ((tokens == begin) & (begin != end))
    return jnp.where(impossible, DEAD, best), tokens


def _rows(
    x: Float[Array, "batch from *rest"] | Int[Array, "batch from *rest"], index: Int[Array, "batch to"]
) -> Float[Array, "batch to *rest"] | Int[Array, "batch to *rest"]:
    """Returns x[b, index[b]] for every b."""
    return jax.vmap(lambda rows, chosen: rows[chosen])(x, index)
