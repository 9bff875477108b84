"""Translations drawn at random from an encoder-decoder model, token by token."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt

from research.attention.masks import Tokens
from research.inference.beam import Decoder, Hypotheses
from research.inference.sampling import Decoding, choose


@dataclasses.dataclass(frozen=True)
class Draws:
    """One translation of each line, drawn at random, instead of a search for the best."""

    decoding: Decoding
    """How the next token is chosen."""
    seed: int = 0
    """Of the draws, together with the number of the line."""


def random_search(
    decoder: Decoder, draws: Draws, *, slots: int, end: int, start: int | None = None
) -> Callable[[Any, Array, Array, Array, Array], Hypotheses]:
    """Returns the jitted function that draws one translation of each source.

    It takes parameters, right-padded sources [batch, source_length], their lengths, limits, and the number
    of each row's line, so that what one row is given does not depend on the others. Hypotheses are one to a
    row; their scores are their log-probabilities under the model, whatever ``draws`` leaves out.

    Args:
      decoder: the model.
      draws: how the next token is chosen, and the seed.
      slots: most target tokens of any row, the end of text included.
      end: the token that ends every target.
      start: the token that begins every target, and is never drawn; None: the one that ends it.
    """
    begin = end if start is None else start

    def draw(
        params: Any,
        source: Int[Array, "batch source_length"],
        lengths: Int[Array, " batch"],
        limits: Int[Array, " batch"],
        numbers: UInt[Array, " batch"],
        key: Key[Array, ""],  # an argument, so that programs of all seeds are one
    ) -> Hypotheses:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        memory = decoder.encode(params, source, Tokens.of_lengths(lengths, source.shape[1]))

        def one(logits: Float[Array, " vocabulary"], key: Key[Array, ""]) -> Int[Array, ""]:
            return choose(logits[None], draws.decoding, key)[0]

        def advance(params: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
            count, last, done, totals, cache, tokens = state
            place = Tokens(jnp.broadcast_to(count, (len(last), 1)))
            logits, cache = decoder.step(params, last[:, None], memory, place, cache)
            logits = logits.astype(jnp.float32)
            if begin != end:
                logits = logits.at[:, begin].set(-jnp.inf)
            chosen = jax.vmap(one)(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, count))
            chosen = jnp.where(done | (count + 1 >= limits), end, chosen)
            logs = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[:, None], axis=1)[:, 0]
            totals = totals + jnp.where(done, 0.0, logs)
            tokens = tokens.at[:, count].set(chosen)
            return count + 1, chosen, done | (chosen == end), totals, cache, tokens

        batch = len(source)
        first = advance(params, (
            jnp.zeros((), jnp.int32), jnp.full((batch,), begin, jnp.int32), jnp.zeros((batch,), bool),
            jnp.zeros((batch,)), decoder.empty_cache(batch, slots), jnp.full((batch, slots), end, jnp.int32),
        ))  # fmt: skip

        def go_on(params: Any, first: tuple[Any, ...]) -> Hypotheses:
            *_, totals, _, tokens = jax.lax.while_loop(
                lambda state: (state[0] < slots) & ~state[2].all(), functools.partial(advance, params), first
            )
            return Hypotheses(tokens[:, None], totals[:, None], totals[:, None])

        def apart(params: Any, first: tuple[Any, ...]) -> Hypotheses:
            *before, cache, tokens = first
            params, cache = decoder.apart(params, cache)
            return go_on(params, (*before, cache, tokens))

        return jax.lax.platform_dependent(params, first, cpu=apart, default=go_on)

    return functools.partial(jax.jit(draw), key=jax.random.key(draws.seed))
