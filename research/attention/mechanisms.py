"""Attention mechanisms as descriptions: what one is, what it admits, what it costs, and its decoding state.

A mechanism is a frozen dataclass. `research.modules.mixers` has the module that computes it, and
`research.attention.catalogue` lists every one that a model can be given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from research.attention.cache import ForgettingState, KeyValues, Latents, RecentKeyValues
from research.attention.masks import Everything, Mask, Window
from research.attention.positions import Positions


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes of an attention layer."""

    width: int
    """Width of the residual stream."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key/value heads; divides heads."""
    head_dim: int
    """Channels of a head."""
    context: int
    """Longest sequence, in tokens."""


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """How tokens of a sequence read one another; subclasses say."""

    decoder: ClassVar[bool] = True
    """Whether it can be causal, and decode a token at a time."""
    encoder: ClassVar[bool] = True
    """Whether a token can read those on both sides."""
    cross: ClassVar[bool] = False
    """Whether it can read a memory, in place of the sequence's own tokens."""
    packed: ClassVar[bool] = True
    """Whether a row may hold several documents, each read on its own."""
    engines: ClassVar[bool] = False
    """Whether engines of softmax attention (`research.attention.engines`) compute it, or a part of it."""

    def problems(self, geometry: Geometry, positions: Positions | None, *, causal: bool) -> Iterator[str]:
        """Yields what keeps a layer of this geometry from using the mechanism, each as one clear sentence.

        Args:
          geometry: sizes of the layer.
          positions: the model's positional encoding.
          causal: whether a token may see only those before it (a decoder) or all (an encoder).
        """
        del geometry, positions, causal
        yield from ()

    def cross_problems(self, geometry: Geometry) -> Iterator[str]:
        """Yields what keeps a layer of this geometry from reading a memory, each as one clear sentence."""
        if self.cross:
            yield from self.problems(geometry, None, causal=False)
        else:
            yield (
                f"model.attention: {type(self).__name__} reads the tokens of its own sequence, not a memory; "
                "choose 'softmax', 'differential', 'linear-transformer', 'performer' or 'based'"
            )

    def matmul_parameters(self, geometry: Geometry) -> int:
        """Returns the weights in matrix products of one layer: projections, no biases, no norms."""
        raise NotImplementedError

    def memory_parameters(self, geometry: Geometry) -> int:
        """Returns those of them that a memory's tokens are multiplied with: keys' and values'."""
        raise NotImplementedError

    def flops_per_token(self, geometry: Geometry, length: int, *, causal: bool, visible: bool) -> float:
        """Returns the forward FLOPs of one token in one layer, beyond the 2 of each projection weight.

        Args:
          geometry: sizes of the layer.
          length: tokens in a sequence.
          causal: whether a token sees only those before it.
          visible: count only the pairs that the mask admits (the mean over tokens); False: every pair, as if
            nothing were masked. A mechanism whose work does not depend on a mask ignores it.
        """
        raise NotImplementedError

    def cross_flops(self, geometry: Geometry, length: int, memory: int) -> float:
        """Returns the forward FLOPs, beyond its weights, of one layer in which tokens read a memory.

        Args:
          geometry: sizes of the layer.
          length: tokens that read.
          memory: tokens of the memory.
        """
        raise NotImplementedError

    def state(self, geometry: Geometry, batch: int, slots: int, dtype: jnp.dtype) -> Any:
        """Returns the empty decoding state of one layer: a pytree of arrays.

        Args:
          geometry: sizes of the layer.
          batch: rows.
          slots: tokens that the cache must hold, prompt included.
          dtype: of what is kept at the precision of the computation.
        """
        raise NotImplementedError

    def state_bytes(self, geometry: Geometry, length: int, dtype: jnp.dtype) -> int:
        """Returns the bytes of one layer's decoding state for one sequence of ``length`` tokens."""
        shapes = jax.eval_shape(lambda: jax.tree.leaves(self.state(geometry, 1, length, dtype)))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)

    def layers(self) -> tuple[tuple[Mechanism, bool], ...]:
        """Returns the repeating pattern over depth: mechanism of each layer, and whether it has positions."""
        return ((self, True),)


@dataclasses.dataclass(frozen=True)
class Softmax(Mechanism):
    """Scaled dot-product attention over every token the model may see (Vaswani et al., 2017, eq. 1).

    Heads and key/value heads of the model make it multi-head, grouped-query (Ainslie et al., 2023) or
    multi-query (Shazeer, 2019). In order: projections, QK-norm, rotary positions, scaled scores, soft cap,
    bias of the positions, mask, softmax with sink, values, gate, output projection.
    """

    cross: ClassVar[bool] = True
    engines: ClassVar[bool] = True

    qk_norm: bool = False
    """RMS-normalise queries and keys per head (Henry et al., 2020; Dehghani et al., 2023)."""
    soft_cap: float | None = None
    """Soft cap c of the scores, c * tanh(s / c) (Gemma 2)."""
    sink: bool = False
    """A learned logit per head that takes its share of the softmax and gives nothing (gpt-oss, 2025; first
    tokens do so unasked: Xiao et al., 2023). It begins at 0: the softmax "off by one"."""
    gate: bool = False
    """Multiply what a head reads by sigmoid(W x), channel by channel (Qiu et al., 2025, their G1)."""
    scale: float | None = None
    """Factor on the scores; default: head_dim^-1/2 (T5 has 1, muP 1/head_dim)."""

    def pattern(self, geometry: Geometry, *, causal: bool) -> Mask:
        """Returns which pairs the mechanism admits, beside the model's own causal or open mask."""
        del geometry, causal
        return Everything()

    def matmul_parameters(self, geometry: Geometry) -> int:
        """Returns the weights of the query, key, value, output and gate projections."""
        heads = (3 if self.gate else 2) * geometry.heads + 2 * geometry.kv_heads
        return geometry.width * heads * geometry.head_dim

    def flops_per_token(self, geometry: Geometry, length: int, *, causal: bool, visible: bool) -> float:
        """Returns 2 * head_dim for each score and as many for each value read, for every head."""
        keys = self.visible_keys(geometry, length, causal=causal) if visible else float(length)
        return 4.0 * geometry.heads * geometry.head_dim * keys

    def memory_parameters(self, geometry: Geometry) -> int:
        """Returns the weights of the key and value projections."""
        return 2 * geometry.width * geometry.kv_heads * geometry.head_dim

    def cross_flops(self, geometry: Geometry, length: int, memory: int) -> float:
        """Returns what as many tokens of a sequence of the memory's length take."""
        return length * self.flops_per_token(geometry, memory, causal=False, visible=False)

    def visible_keys(self, geometry: Geometry, length: int, *, causal: bool) -> float:
        """Returns the mean number of keys that a token of a sequence of ``length`` sees."""
        del geometry
        return (length + 1) / 2 if causal else float(length)

    def state(self, geometry: Geometry, batch: int, slots: int, dtype: jnp.dtype) -> Any:
        """Returns room for the keys and values of every token."""
        return KeyValues.empty(batch, slots, geometry.kv_heads, geometry.head_dim, dtype)


@dataclasses.dataclass(frozen=True)
class SlidingWindow(Softmax):
    """Softmax attention to the nearest tokens only (Beltagy et al., 2020; Jiang et al., 2023).

    Decoding keeps ``window`` tokens, in a ring.
    """

    cross: ClassVar[bool] = False

    window: int = 128
    """Tokens that a token sees, itself included: those before it in a decoder, both sides in an encoder."""

    def pattern(self, geometry: Geometry, *, causal: bool) -> Mask:
        """Returns the window: all of it before the token, or half on each side."""
        del geometry
        return Window(*window_sides(self.window, causal=causal))

    def visible_keys(self, geometry: Geometry, length: int, *, causal: bool) -> float:
        """Returns the window, less what the ends of the sequence cut off."""
        del geometry
        before, after = (min(side, length - 1) for side in window_sides(self.window, causal=causal))
        return before + after + 1 - (before * (before + 1) + after * (after + 1)) / (2 * length)

    def state(self, geometry: Geometry, batch: int, slots: int, dtype: jnp.dtype) -> RecentKeyValues:
        """Returns room for the keys and values of a window."""
        kept = min(self.window, slots)
        return RecentKeyValues.empty(batch, 0, kept, geometry.kv_heads, geometry.head_dim, dtype)


def window_sides(window: int, *, causal: bool) -> tuple[int, int]:
    """Returns how many of a window's tokens stand before and after the token itself."""
    return (window - 1, 0) if causal else (window // 2, (window - 1) // 2)


@dataclasses.dataclass(frozen=True)
class Forgetting(Softmax):
    """The forgetting transformer: scores fall with what lies in between (FoX; Lin et al., 2025, eq. 1-3).

    Each token has a forget gate f = sigmoid(w x + b) per head; the score of query i and key j gets the sum
    of log f over the tokens after j up to i. With ``gate`` and ``qk_norm`` it is near the paper's "Pro"
    block, whose shift of keys and values and output norm it leaves out. The running sum of log f is float32.
    It needs no other positions, and admits all.
    """

    encoder: ClassVar[bool] = False
    cross: ClassVar[bool] = False

    def problems(self, geometry: Geometry, positions: Positions | None, *, causal: bool) -> Iterator[str]:
        """Yields that it forgets the past, where a token also reads the future."""
        yield from super().problems(geometry, positions, causal=causal)
        if not causal:
            yield (
                "model.attention 'forgetting' counts what lies between a token and those before it, and an "
                "encoder reads those after it too; choose 'softmax' with model.positions 'alibi'"
            )

    def matmul_parameters(self, geometry: Geometry) -> int:
        """Returns the weights of softmax attention and of the forget gates."""
        return super().matmul_parameters(geometry) + geometry.width * geometry.heads

    def state(self, geometry: Geometry, batch: int, slots: int, dtype: jnp.dtype) -> ForgettingState:
        """Returns room for keys, values and log forget gates of every token."""
        return ForgettingState(
            super().state(geometry, batch, slots, dtype),
            jnp.zeros((batch, slots, geometry.heads), jnp.float32),
        )


@dataclasses.dataclass(frozen=True)
class Differential(Softmax):
    """The difference of two softmax maps, which cancels what both attend to alike (Ye et al., 2024, eq. 1-3).

    Heads make pairs, each head with queries and keys of its own; a pair reads values twice as wide and gives
    softmax_1 v - lambda softmax_2 v, RMS-normalised per pair and scaled by 1 - initial. Parameters are those
    of ``Softmax`` and four vectors per layer: lambda = exp(q1 k1) - exp(q2 k2) + initial. The paper's initial
    value depends on the depth; here it is one for all layers, which the paper's ablations found as good.
    """

    initial: float = 0.8
    """Initial lambda."""

    def problems(self, geometry: Geometry, positions: Positions | None, *, causal: bool) -> Iterator[str]:
        """Yields heads that do not come in pairs."""
        yield from super().problems(geometry, positions, causal=causal)
        for name, heads in (("heads", geometry.heads), ("kv_heads", geometry.kv_heads)):
            if heads % 2:
                yield f"model.attention 'differential' needs an even number of model.{name}, not {heads}"

    def flops_per_token(self, geometry: Geometry, length: int, *, causal: bool, visible: bool) -> float:
        """Returns 2 * head_dim for each score and twice as many for each value read, for every head."""
        return 1.5 * super().flops_per_token(geometry, length, causal=causal, visible=visible)


@dataclasses.dataclass(frozen=True)
class Latent(Mechanism):
    """Multi-head latent attention (MLA; DeepSeek-V2, 2024, eq. 9-19).

    Keys and values of all heads are maps of one latent per token, c = norm(W x); positions turn channels of
    their own, of which the key's are one for all heads:

        k_h = [U_h c; turn(W_r x)],  v_h = V_h c,  q_h = [Q_h x; turn(R_h x)]

    Decoding keeps c and the turned key alone: U_h moves to the query's side and V_h behind the weighted sum,
    so that all heads read one shared "key/value head" of rank + rotary_dim channels. Where the model's
    positions are not rotary these channels are not turned (as Kimi Linear has it). No map but the output's
    has a bias.
    """

    engines: ClassVar[bool] = True

    rank: int | None = None
    """Channels of the latent; default: 4 * head_dim (DeepSeek-V2's 512 for heads of 128)."""
    query_rank: int | None = None
    """Channels of a latent that queries are maps of; default: none, queries are maps of x (V2-Lite)."""
    rotary_dim: int | None = None
    """Channels of a head that positions turn; default: head_dim / 2, made even."""

    def sizes(self, geometry: Geometry) -> tuple[int, int]:
        """Returns the channels of the latent, and those that positions turn."""
        rank = 4 * geometry.head_dim if self.rank is None else self.rank
        return rank, (geometry.head_dim + 3) // 4 * 2 if self.rotary_dim is None else self.rotary_dim

    def problems(self, geometry: Geometry, positions: Positions | None, *, causal: bool) -> Iterator[str]:
        """Yields shared key/value heads, and channels that cannot be turned in pairs."""
        yield from super().problems(geometry, positions, causal=causal)
        if geometry.kv_heads != geometry.heads:
            yield (
                "model.attention 'latent' keeps one latent for all heads, not "
                f"{geometry.kv_heads} key/value heads; leave model.kv_heads out, choose model.attention.rank"
            )
        if self.rotary_dim is not None and self.rotary_dim % 2:
            yield f"model.attention.rotary_dim {self.rotary_dim} is odd; channels are turned in pairs"

    def matmul_parameters(self, geometry: Geometry) -> int:
        """Returns the weights of all projections, down, up and out."""
        rank, turned = self.sizes(geometry)
        heads, head_dim, width = geometry.heads, geometry.head_dim, geometry.width
        queries = heads * (head_dim + turned)
        down = width * self.query_rank if self.query_rank is not None else 0
        query = down + (width if self.query_rank is None else self.query_rank) * queries
        return query + width * (rank + turned) + 2 * rank * heads * head_dim + heads * head_dim * width

    def flops_per_token(self, geometry: Geometry, length: int, *, causal: bool, visible: bool) -> float:
        """Returns 2 for each channel of each score and of each value read, for every head, in training."""
        keys = Softmax().visible_keys(geometry, length, causal=causal) if visible else float(length)
        _, turned = self.sizes(geometry)
        return 2.0 * geometry.heads * (2 * geometry.head_dim + turned) * keys

    def state(self, geometry: Geometry, batch: int, slots: int, dtype: jnp.dtype) -> Latents:
        """Returns room for the latent and the turned key of every token."""
        rank, turned = self.sizes(geometry)
        return Latents(jnp.zeros((batch, slots, 1, rank), dtype), jnp.zeros((batch, slots, 1, turned), dtype))
