"""Sampling from a causal language model with a key/value cache, jitted once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from research.attention.masks import ABSENT, Tokens
from research.errors import UserError
from research.models.gpt import GPT
from research.modules.block import cache_apart, parameters_apart

Cache = Any
"""Decoding state of a model, a pytree."""
Apply = Callable[..., tuple[Float[Array, "batch length vocabulary"], Cache]]
Generate = Callable[
    [Any, Int[Array, "batch prompt"], Int[Array, " batch"], Key[Array, ""]], Int[Array, "batch tokens"]
]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How the next token is chosen: filters in the order of the fields, each on what the one before left."""

    temperature: float = 1.0
    """Divides the logits; 0: always the likeliest token."""
    top_k: int | None = None
    """Keep this many of the likeliest tokens."""
    top_p: float | None = None
    """Keep the likeliest tokens that together reach this probability (Holtzman et al., 2020)."""
    min_p: float | None = None
    """Keep tokens at least this likely, relative to the likeliest (Nguyen et al., 2024)."""

    def __post_init__(self) -> None:
        """Raises UserError where a value makes no sense."""
        if self.temperature < 0:
            raise UserError(f"temperature {self.temperature:g}: 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k {self.top_k}: 1 or more")
        for name, value in (("top-p", self.top_p), ("min-p", self.min_p)):
            if value is not None and not 0 < value <= 1:
                raise UserError(f"{name} {value:g}: above 0 and at most 1")


def filtered(logits: Float[Array, "batch vocabulary"], how: Decoding) -> Float[Array, "batch vocabulary"]:
    """Returns logits / temperature with -inf for every token that ``how`` leaves out."""
    logits = logits / how.temperature
    if how.top_k is not None and how.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, how.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if how.top_p is not None:
        ordered = -jnp.sort(-logits, axis=-1)
        chances = jax.nn.softmax(ordered, axis=-1)
        needed = jnp.cumsum(chances, axis=-1) - chances < how.top_p  # the first is always needed
        least = jnp.where(needed, ordered, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if how.min_p is not None:
        least = logits.max(-1, keepdims=True) + jnp.log(how.min_p)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def choose(
    logits: Float[Array, "batch vocabulary"], how: Decoding, key: Key[Array, ""]
) -> Int[Array, " batch"]:
    """Returns one token per row."""
    if how.temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    return jax.random.categorical(key, filtered(logits, how), axis=-1).astype(jnp.int32)


def sampler(
    apply: Apply,
    empty_cache: Callable[[int, int], Cache],
    *,
    tokens: int,
    how: Decoding,
    stop: tuple[int, ...],
) -> Generate:
    """Returns the jitted function that continues a batch of prompts by up to ``tokens`` tokens.

    Args:
      apply: (variables, tokens, place, cache=) -> (logits, cache).
      empty_cache: (batch, slots) -> cache.
      tokens: most tokens to generate.
      how: how the next token is chosen.
      stop: tokens after which a row ends; what follows in that row is the first of them.

    The function takes parameters, right-padded prompts, their lengths (at least 1) and a key.
    """

    def ended(token: Int[Array, " batch"]) -> Bool[Array, " batch"]:
        return functools.reduce(jnp.logical_or, [token == end for end in stop], jnp.zeros(token.shape, bool))

    def go_on(
        params: Any,
        cache: Cache,
        first: Int[Array, " batch"],
        lengths: Int[Array, " batch"],
        key: Key[Array, ""],
    ) -> Int[Array, "batch tokens"]:
        """Returns the tokens from the first on, one step for each."""

        def unfinished(carry: tuple[Any, ...]) -> Bool[Array, ""]:
            count, _, done, *_ = carry
            return (count < tokens) & ~done.all()

        def extend(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            count, token, done, cache, out = carry
            # Tied to the step, or XLA would widen 8-bit kernels before the loop and read float32 in it.
            token, weights = jax.lax.optimization_barrier((token, params))
            place = Tokens((lengths + count - 1)[:, None])
            logits, cache = apply({"params": weights}, token[:, None], place, cache=cache)
            chosen = choose(logits[:, 0], how, jax.random.fold_in(key, count))
            token = jnp.where(done, stop[0] if stop else 0, chosen)
            out = jax.lax.dynamic_update_slice(out, token[:, None], (0, count))
            return count + 1, token, done | ended(token), cache, out

        out = jnp.full((len(first), tokens), stop[0] if stop else 0, jnp.int32).at[:, 0].set(first)
        carry = (jnp.ones((), jnp.int32), first, ended(first), cache, out)
        return jax.lax.while_loop(unfinished, extend, carry)[-1]

    def apart(params: Any, cache: Cache, *rest: Array) -> Int[Array, "batch tokens"]:
        return go_on(parameters_apart(params), cache_apart(cache), *rest)

    def generate(
        params: Any, prompts: Int[Array, "batch prompt"], lengths: Int[Array, " batch"], key: Key[Array, ""]
    ) -> Int[Array, "batch tokens"]:
        batch, width = prompts.shape
        index = jnp.arange(width, dtype=jnp.int32)[None]
        # Padding is put where no query sees it; rows then differ in their positions, not in their slots.
        place = Tokens(jnp.where(index < lengths[:, None], index, ABSENT))
        logits, cache = apply({"params": params}, prompts, place, cache=empty_cache(batch, width + tokens))
        last = jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0]
        first = choose(last, how, jax.random.fold_in(key, 0))
        return jax.lax.platform_dependent(params, cache, first, lengths, key, cpu=apart, default=go_on)

    return jax.jit(generate)


@functools.lru_cache(maxsize=32)
def _sampler_of(model: GPT, tokens: int, how: Decoding, stop: tuple[int, ...]) -> Generate:
    """Returns the sampler of a description, the same one for equal arguments: it compiles once per shapes."""
    return sampler(model.build().apply, model.empty_cache, tokens=tokens, how=how, stop=stop)


def sample(
    model: GPT,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    how: Decoding | None = None,
    stop: tuple[int, ...] = (),
    seed: int = 0,
) -> list[list[int]]:
    """Returns the continuation of each prompt, without the stop token that ended it.

    Args:
      model: the description.
      params: its parameters.
      prompts: token ids, at least one in each prompt; longer ones than the context lose their beginning.
      tokens: most tokens to generate for each prompt.
      how: how the next token is chosen; default: plain sampling.
      stop: tokens that end a continuation.
      seed: the continuations are a function of (seed, prompts, how).

    Raises:
      UserError: a prompt is empty, or ``tokens`` leaves no room for a prompt.
    """
    context = model.context
    if not all(prompts):
        raise UserError("a prompt must have at least one token")
    if not 1 <= tokens < context:
        raise UserError(
            f"{tokens} tokens to generate: at least 1, and fewer than the model's context of {context}"
        )
    kept = [list(prompt)[-(context - tokens) :] for prompt in prompts]
    lengths = np.array([len(prompt) for prompt in kept], np.int32)
    # Widths in powers of two, so that prompts of any length compile few programs.
    width = min(1 << (int(lengths.max()) - 1).bit_length(), context - tokens)
    padded = np.zeros((len(kept), width), np.int32)
    for row, prompt in zip(padded, kept, strict=True):
        row[: len(prompt)] = prompt
    generate = _sampler_of(model, tokens, how or Decoding(), tuple(stop))
    rows = np.asarray(generate(params, jnp.asarray(padded), jnp.asarray(lengths), jax.random.key(seed)))
    ends = [next((i for i, token in enumerate(row) if token in stop), len(row)) for row in rows]
    return [row[:end].tolist() for row, end in zip(rows, ends, strict=True)]
