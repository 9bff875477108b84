"""Positional encodings: descriptions of them, and pure functions of explicit positions."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Learned:
    """A learned vector per position, added to the token's embedding."""

    offset: int = 0
    """Rows of the table before that of the first position (RoBERTa's has 2)."""


@dataclasses.dataclass(frozen=True)
class Sinusoidal:
    """Fixed sinusoids, added to the token's embedding."""

    layout: Literal["interleaved", "half"] = "interleaved"
    """Sines and cosines by turns (the paper), or all sines before all cosines (tensor2tensor, Marian)."""
    amplitude: float | None = None
    """Of the sinusoids; default: what embeddings begin with, 1 in a Transformer, which scales them (Vaswani
    et al., 2017, section 3.4), and 0.02 in others. Beside larger sinusoids tokens are hardly told apart."""


@dataclasses.dataclass(frozen=True)
class Interpolation:
    """Positions divided by a factor, to fit a longer text into the original context (Chen et al., 2023)."""

    factor: float = 4.0
    """How many times longer than the original context the text may be."""


@dataclasses.dataclass(frozen=True)
class NTK:
    """A larger base: the fastest pairs turn as before, the slowest ``factor`` times slower (bloc97, 2023)."""

    factor: float = 4.0
    """How many times longer than the original context the text may be."""


@dataclasses.dataclass(frozen=True)
class YaRN:
    """Slow pairs interpolated, fast ones left, and colder attention (Peng et al., 2023, section 3).

    Between the two the blend is linear in the pair's index, from a whole index to a whole index, as in the
    authors' code; the paper's is linear in the number of turns.
    """

    factor: float = 4.0
    """How many times longer than the original context the text may be."""
    context: int = 1024
    """The original context, in tokens."""
    fast: float = 32.0
    """Pairs that turn at least this often within the original context stay as they are."""
    slow: float = 1.0
    """Pairs that turn at most this often are interpolated in full."""


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Queries and keys are turned by their positions (RoPE; Su et al., 2021)."""

    base: float = 10000.0
    """Base of the frequencies."""
    layout: Literal["half", "interleaved"] = "half"
    """Channels of a pair: i and i + head_dim/2 (GPT-NeoX, Llama), or 2i and 2i + 1 (the paper, GPT-J)."""
    scaling: Interpolation | NTK | YaRN | None = None
    """How a model that was trained on shorter texts reads longer ones."""
    local_base: float | None = None
    """Base in layers that see a window only (ModernBERT, Gemma 3); default: base."""

    @property
    def temperature(self) -> float:
        """Factor on the scores: for YaRN (0.1 ln(factor) + 1)^2 (eq. 22 and below), else 1."""
        if not isinstance(self.scaling, YaRN):
            return 1.0
        return (0.1 * math.log(max(self.scaling.factor, 1.0)) + 1.0) ** 2


@dataclasses.dataclass(frozen=True)
class Alibi:
    """A penalty on the score that grows with the distance, at a fixed rate per head (Press et al., 2022).

    In an encoder it is symmetric.
    """


@dataclasses.dataclass(frozen=True)
class RelativeBias:
    """A learned value per head and bucket of distances, added to the score (T5; Raffel et al., 2020).

    T5 itself has one table for all layers of a stack, and does not scale scores (``Softmax.scale``).
    """

    buckets: int = 32
    """Buckets of distances; in an encoder, half of them for each direction."""
    max_distance: int = 128
    """Distance from which on all fall into one bucket."""
    shared: bool = False
    """One table for all layers of a stack, not one for each."""


Positions = Learned | Sinusoidal | Rotary | Alibi | RelativeBias
"""Positional encodings; None is none at all (NoPE; Kazemnejad et al., 2023)."""


def sinusoidal(
    positions: Int[Array, "batch length"], width: int, encoding: Sinusoidal = Sinusoidal()
) -> Float[Array, "batch length width"]:
    """Returns fixed sinusoidal encodings, float32 (Vaswani et al., 2017, section 3.5).

    Channel 2i is sin(p / 10000^(2i/width)), channel 2i+1 the cosine of the same angle; in the layout "half"
    these are channels i and width/2 + i.

    Raises:
      ValueError: ``width`` is odd.
    """
    if width % 2:
        raise ValueError(f"sinusoidal positions need an even width, not {width}")
    frequencies = 10000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None]
    axis = -1 if encoding.layout == "interleaved" else -2
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=axis).reshape(*positions.shape, width)


def learned(
    positions: Int[Array, "batch length"], table: Float[Array, "context width"]
) -> Float[Array, "batch length width"]:
    """Returns rows of a learned table (Gehring et al., 2017); positions are clipped to the table."""
    return jnp.take(table, positions, axis=0, mode="clip")


def rotary(
    x: Float[Array, "batch length heads head_dim"],
    positions: Int[Array, "#batch length"],
    encoding: Rotary = Rotary(),
) -> Float[Array, "batch length heads head_dim"]:
    """Returns x rotated by its positions, dtype of x (Su et al., 2021, eq. 34).

    Raises:
      ValueError: ``head_dim`` is odd.
    """
    head_dim = x.shape[-1]
    frequencies = jnp.asarray(rotary_frequencies(encoding, head_dim))
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None]
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    wide = x.astype(jnp.float32)
    if encoding.layout == "half":
        first, second = jnp.split(wide, 2, axis=-1)
        turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    else:
        pairs = wide.reshape(*x.shape[:-1], head_dim // 2, 2)
        first, second = pairs[..., 0], pairs[..., 1]
        turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def rotary_frequencies(encoding: Rotary, head_dim: int) -> Float[np.ndarray, " pairs"]:
    """Returns the radians per position of each pair of channels, base^(-2i/head_dim) scaled, float32.

    Raises:
      ValueError: ``head_dim`` is odd.
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions need an even head width, not {head_dim}")
    base, scaling = encoding.base, encoding.scaling
    if isinstance(scaling, NTK) and head_dim > 2:
        base *= scaling.factor ** (head_dim / (head_dim - 2))
    frequencies = base ** (-np.arange(0, head_dim, 2) / head_dim)
    if isinstance(scaling, Interpolation):
        frequencies = frequencies / scaling.factor
    elif isinstance(scaling, YaRN):

        def pair(turns: float) -> float:
            """Returns the index of the pair that turns so often within the original context."""
            return head_dim * math.log(scaling.context / (turns * 2 * math.pi)) / (2 * math.log(base))

        low = max(math.floor(pair(scaling.fast)), 0)
        high = min(math.ceil(pair(scaling.slow)), head_dim - 1)
        ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
        frequencies = frequencies * (1 - ramp) + frequencies / scaling.factor * ramp
    return frequencies.astype(np.float32)
