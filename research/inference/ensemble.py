"""Several models that translate as one: the mean of their probabilities, token by token."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.attention.masks import Tokens
from research.inference.beam import Decoder


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Models with one vocabulary as a search sees them (Sutskever et al., 2014, section 3.6).

    Parameters, memories and decoding states are tuples, one for each member.
    """

    members: tuple[Decoder, ...]

    def encode(self, params: Any, source: Int[Array, "batch source_length"], place: Tokens) -> Any:
        """Returns the members' memories of the sources."""
        return tuple(m.encode(p, source, place) for m, p in zip(self.members, params, strict=True))

    def empty_cache(self, batch: int, slots: int) -> Any:
        """Returns the members' states before the first token."""
        return tuple(member.empty_cache(batch, slots) for member in self.members)

    def step(
        self, params: Any, tokens: Int[Array, "rows 1"], memory: Any, place: Tokens, cache: Any
    ) -> tuple[Float[Array, "rows vocabulary"], Any]:
        """Returns the logarithm of the members' mean probability of the next token, and their states."""
        parts = zip(self.members, params, memory, cache, strict=True)
        logits, caches = zip(
            *(m.step(p, tokens, own, place, state) for m, p, own, state in parts), strict=True
        )
        logs = jnp.stack([jax.nn.log_softmax(x.astype(jnp.float32), axis=-1) for x in logits])
        return jax.nn.logsumexp(logs, axis=0) - math.log(len(self.members)), caches

    def apart(self, params: Any, cache: Any) -> tuple[Any, Any]:
        """Returns the members' parameters and states as CPUs read them fastest."""
        parts = zip(self.members, params, cache, strict=True)
        params, cache = zip(*(member.apart(*part) for member, *part in parts), strict=True)
        return params, cache

    def take_rows(self, cache: Any, rows: Int[Array, " rows"]) -> Any:
        """Returns the states of the given rows."""
        return tuple(m.take_rows(state, rows) for m, state in zip(self.members, cache, strict=True))

    def attention(self, cache: Any) -> Float[Array, "rows source_length"] | None:
        """Returns the mean of the members' attention weights, None where one of them tells none."""
        told = [m.attention(state) for m, state in zip(self.members, cache, strict=True)]
        known = [weights for weights in told if weights is not None]
        return sum(known[1:], known[0]) / len(known) if len(known) == len(told) else None
