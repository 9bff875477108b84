"""What decoding costs a model: bytes of state, and seconds for a token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from research.attention.masks import Tokens
from research.models.gpt import GPT
from research.modules.block import cache_apart, parameters_apart

_STEPS = 32
"""Tokens decoded for one timing."""
_REPEATS = 5
"""Timings, of which the least counts: others on the machine only ever add to it."""


def state_bytes(model: Any, contexts: Sequence[int]) -> dict[str, int]:
    """Returns the bytes of the decoding state of one sequence, all layers, by its length (as text, for JSON).

    It is what the layers' mechanisms declare (`research.attention.mechanisms.Mechanism.state_bytes`); models
    that do not decode have none.
    """
    if not isinstance(model, GPT):
        return {}
    specs, dtype = model.specs(), jnp.dtype(model.dtype)
    group = {
        length: sum(
            spec.attention.mechanism.state_bytes(spec.attention.geometry, length, dtype) for spec in specs
        )
        for length in contexts
    }
    return {str(length): model.layers // len(specs) * count for length, count in group.items()}


def decode_seconds(model: Any, params: Any, contexts: Sequence[int]) -> dict[str, float]:
    """Returns the seconds that one more token of one sequence takes, by the room that its cache has.

    Tokens are decoded one by one inside one compiled loop, on a CPU with the layers apart, as sampling does
    it. Arrays have the size of the whole context from the first token on, so that its time is that of the
    last.

    Args:
      model: the description; one that does not decode gives nothing.
      params: its parameters.
      contexts: lengths.
    """
    if not isinstance(model, GPT):
        return {}
    apply = model.build().apply

    def go_on(params: Any, cache: Any) -> Array:
        def step(position: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
            token, cache = carry
            logits, cache = apply({"params": params}, token, Tokens(position[None, None]), cache=cache)
            return logits[:, -1:].argmax(-1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, _STEPS, step, (jnp.zeros((1, 1), jnp.int32), cache))[0]

    def apart(params: Any, cache: Any) -> Array:
        return go_on(parameters_apart(params), cache_apart(cache))

    def decode(params: Any, cache: Any) -> Array:
        return jax.lax.platform_dependent(params, cache, cpu=apart, default=go_on)

    seconds = {}
    for length in contexts:
        # A cache that the loop may overwrite would save a copy; the copy is once for all steps.
        cache = model.empty_cache(1, max(length, _STEPS))
        compiled = jax.jit(decode).lower(params, cache).compile()
        timings = []
        for _ in range(_REPEATS + 1):
            start = time.perf_counter()
            jax.block_until_ready(compiled(params, cache))
            timings.append(time.perf_counter() - start)
        seconds[str(length)] = min(timings[1:]) / _STEPS
    return seconds
