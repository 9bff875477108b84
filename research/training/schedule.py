"""Learning-rate schedules."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine down to final * peak (Loshchilov & Hutter, 2017)."""

    warmup: int = 100
    """Steps of linear warm-up from 0."""
    final: float = 0.1
    """Last rate, as a share of the peak."""

    def build(self, steps: int) -> optax.Schedule:
        """Returns the schedule: step -> share of the peak learning rate."""
        return optax.warmup_cosine_decay_schedule(
            0.0, 1.0, self.warmup, max(steps, self.warmup + 1), self.final
        )


@dataclasses.dataclass(frozen=True)
class Linear:
    """Linear warm-up, then a straight line down to final * peak."""

    warmup: int = 100
    """Steps of linear warm-up from 0."""
    final: float = 0.0
    """Last rate, as a share of the peak."""

    def build(self, steps: int) -> optax.Schedule:
        """Returns the schedule: step -> share of the peak learning rate."""
        decay = optax.linear_schedule(1.0, self.final, max(steps - self.warmup, 1))
        return optax.join_schedules([optax.linear_schedule(0.0, 1.0, self.warmup), decay], [self.warmup])


@dataclasses.dataclass(frozen=True)
class WarmupStableDecay:
    """Warm-up, constant, then a linear decay over the last part (Hu et al., 2024, "WSD")."""

    warmup: int = 100
    """Steps of linear warm-up from 0."""
    decay: float = 0.2
    """Share of the steps spent in the final decay."""
    final: float = 0.0
    """Last rate, as a share of the peak."""

    def build(self, steps: int) -> optax.Schedule:
        """Returns the schedule: step -> share of the peak learning rate."""
        start = max(steps - round(steps * self.decay), self.warmup)
        parts = [
            optax.linear_schedule(0.0, 1.0, self.warmup),
            optax.constant_schedule(1.0),
            optax.linear_schedule(1.0, self.final, max(steps - start, 1)),
        ]
        return optax.join_schedules(parts, [self.warmup, start])


@dataclasses.dataclass(frozen=True)
class ReciprocalSqrt:
    """Linear warm-up, then peak * sqrt(warmup / step) (Vaswani et al., 2017, section 5.3)."""

    warmup: int = 100
    """Steps of linear warm-up from 0."""

    def build(self, steps: int) -> optax.Schedule:
        """Returns the schedule: step -> share of the peak learning rate; ``steps`` plays no part."""
        del steps
        warmup = max(self.warmup, 1)

        def schedule(step: ArrayLike) -> Array:
            count = jnp.asarray(step, jnp.float32) + 1.0
            return jnp.minimum(count / warmup, jnp.sqrt(warmup / count))

        return schedule


Schedule = Cosine | Linear | WarmupStableDecay | ReciprocalSqrt
