"""RWKV-7: a matrix state with vector decay, from which one key removes and to which another writes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.attention.features import unit
from research.attention.mechanisms import Geometry, Mechanism
from research.attention.positions import Alibi, Positions, RelativeBias, Rotary
from research.attention.recurrent import CHUNK, Removal
from research.attention.recurrent_mechanisms import RecurrentState


@dataclasses.dataclass(frozen=True)
class RWKV7(Mechanism):
    """RWKV-7 "Goose", the generalised delta rule (Peng et al., 2025, arXiv 2503.14456, section 4).

        S <- diag(w) S - (a * n) (S^T n)^T + k v^T,  o = S^T r

    with decay w = exp(-e^(-1/2) sigmoid(.)), removal key n of unit length, learning rate a, and written key k
    = k' (1 + alpha (a - 1)): each a vector per head and token. Every projection reads its own mixture of the
    token and the one before it; those of w, a and the gate have low rank. What a head reads is normalised
    (LayerNorm per head), gets the bonus (r . rho k) v, and is gated. Departures: values get no part of the
    first layer's (a layer here reads its own input alone), and all layers begin with the same parameters, the
    paper's of its first but for the decays (see ``modules.rwkv``). It replaces the paper's time mixing; the
    feed-forward network is the model's. In an encoder the recurrence runs both ways and the two are added;
    the mixture looks back there too.

    The state is heads * head_dim^2 float32 numbers and the last input.
    """

    rank: int | None = None
    """Channels through which decay and learning rate are projected, and half of those of the gate; default:
    2.5 sqrt(width), in multiples of 32 (the authors')."""

    def ranks(self, geometry: Geometry) -> tuple[int, int]:
        """Returns the channels through which decay and rate are projected, and those of the gate."""
        if self.rank is not None:
            return self.rank, 2 * self.rank
        low, gate = (max(round(n * math.sqrt(geometry.width) / 32), 1) * 32 for n in (2.5, 5.0))
        return low, gate

    def problems(self, geometry: Geometry, positions: Positions | None, *, causal: bool) -> Iterator[str]:
        """Yields grouped heads, and positions that act on queries and keys."""
        yield from super().problems(geometry, positions, causal=causal)
        if geometry.kv_heads != geometry.heads:
            yield (
                f"RWKV7 has a state per head: model.kv_heads must be model.heads ({geometry.heads}), not "
                f"{geometry.kv_heads}"
            )
        if isinstance(positions, Alibi | RelativeBias | Rotary):
            yield (
                "RWKV7 reads the order from its decays, and has no scores or keys for model.positions to act "
                "on; choose 'none', 'learned' or 'sinusoidal'"
            )

    def matmul_parameters(self, geometry: Geometry) -> int:
        """Returns the weights of the four projections, and of those of low rank."""
        inner, (low, gate) = geometry.heads * geometry.head_dim, self.ranks(geometry)
        return 4 * geometry.width * inner + (2 * low + gate) * (geometry.width + inner)

    def flops_per_token(self, geometry: Geometry, length: int, *, causal: bool, visible: bool) -> float:
        """Returns the FLOPs of the matrix products of the chunked recurrence; independent of ``visible``.

        With f channels and chunks of C tokens, per head: 2 C f for each of four tables of scores, as much for
        what two of them read; the inverse of a triangle (C^2), a solution 2 f wide and what it takes from
        output and state; 4 f^2 for writing and reading the state, and 2 f^3 / C for a transition.
        """
        del visible
        f, chunk = geometry.head_dim, min(CHUNK, length)
        flops = 8.0 * chunk * f + 4.0 * chunk * f + chunk**2
        flops += 2 * (4.0 * chunk * f) + 4.0 * f * f + 4.0 * f * f + 2.0 * f**3 / chunk
        return geometry.heads * flops * (1 if causal else 2)

    def state(self, geometry: Geometry, batch: int, slots: int, dtype: jnp.dtype) -> RecurrentState:
        """Returns the state matrix, and the last input."""
        del slots
        memory = jnp.zeros((batch, geometry.heads, geometry.head_dim, geometry.head_dim), jnp.float32)
        return RecurrentState(memory, jnp.zeros((batch, 1, geometry.width), dtype))


def slow_decay(logits: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns log w = -e^(-1/2) sigmoid(logits), float32: decays above 0.545 (Peng et al., 2025, eq. 12)."""
    return -math.exp(-0.5) * jax.nn.sigmoid(logits.astype(jnp.float32))


def replacement(
    k: Float[Array, "batch length heads head_dim"],
    rate: Float[Array, "batch length heads head_dim"],
    log_decay: Float[Array, "batch length heads head_dim"],
    removal_scale: Float[Array, "heads head_dim"],
    rate_scale: Float[Array, "heads head_dim"],
) -> tuple[Float[Array, "batch length heads head_dim"], Removal]:
    """Returns the key to write and the removal, dtype of k (Peng et al., 2025, eq. 6, 7 and 15).

    The paper removes n^T S from what it decays afterwards; ``recurrent`` removes from the decayed state,
    where n / w reads the same. w is at least 0.545, so nothing overflows.
    """
    wide, rate = k.astype(jnp.float32), rate.astype(jnp.float32)
    removed = unit(wide * removal_scale[None, None], 1e-12)
    written = wide * (1.0 + rate_scale[None, None] * (rate - 1.0))
    of_decayed = (removed * jnp.exp(-log_decay)).astype(k.dtype)
    return written.astype(k.dtype), (of_decayed, (removed * rate).astype(k.dtype))
