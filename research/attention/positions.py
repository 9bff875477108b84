"""Positional encodings as pure functions of explicit positions."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Learned:
    """A learned vector per position, added to the token's embedding."""


@dataclasses.dataclass(frozen=True)
class Sinusoidal:
    """Fixed sinusoids, added to the token's embedding."""


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Queries and keys are turned by their positions (Su et al., 2021)."""

    base: float = 10000.0
    """Base of the frequencies."""


Positions = Learned | Sinusoidal | Rotary
"""Positional encodings; None is none at all (NoPE; Kazemnejad et al., 2023)."""


def sinusoidal(positions: Int[Array, "batch length"], width: int) -> Float[Array, "batch length width"]:
    """Returns fixed sinusoidal encodings, float32 (Vaswani et al., 2017, section 3.5).

    Channel 2i is sin(p / 10000^(2i/width)), channel 2i+1 the cosine of the same angle.

    Raises:
      ValueError: ``width`` is odd.
    """
    if width % 2:
        raise ValueError(f"sinusoidal positions need an even width, not {width}")
    frequencies = 10000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None]
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, width)


def learned(
    positions: Int[Array, "batch length"], table: Float[Array, "context width"]
) -> Float[Array, "batch length width"]:
    """Returns rows of a learned table (Gehring et al., 2017); positions are clipped to the table."""
    return jnp.take(table, positions, axis=0, mode="clip")


def rotary(
    x: Float[Array, "batch length heads head_dim"],
    positions: Int[Array, "#batch length"],
    base: float = 10000.0,
) -> Float[Array, "batch length heads head_dim"]:
    """Returns x rotated by its positions, dtype of x (RoPE; Su et al., 2021), in the half layout.

    Channel i is paired with channel i + head_dim/2 (GPT-NeoX, Llama), and the pair turned by
    p / base^(2i/head_dim).

    Raises:
      ValueError: ``head_dim`` is odd.
    """
    head_dim = x.shape[-1]
    if head_dim % 2:
        raise ValueError(f"rotary positions need an even head width, not {head_dim}")
    frequencies = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None]
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
