"""Linear and recurrent attention as descriptions: one state matrix per head, whatever the length."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.attention.features import (
    drawn_directions,
    elu_plus_one,
    favor_key,
    favor_query,
    fixed_directions,
    taylor,
    unit,
)
from research.attention.mechanisms import Geometry, Mechanism
from research.attention.positions import Alibi, Positions, RelativeBias, Rotary
from research.attention.recurrent import CHUNK

Decay = Literal["none", "fixed", "scalar", "vector"]
Features = tuple[Float[Array, "batch q_len heads features"], Float[Array, "memories kv_len heads features"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RecurrentState:
    """Decoding state of one layer: of the same size after any number of tokens."""

    memory: Float[Array, "*layers batch heads features value_dim"]
    """State matrix of each head, float32."""
    tail: Float[Array, "*layers batch before channels"] | None
    """Last inputs of the short convolution; None where there is none."""


@dataclasses.dataclass(frozen=True)
class Recurrent(Mechanism):
    """What linear attention has in common (see ``research.attention.recurrent``); its forms are subclasses.

    In order: projections, short convolution, SiLU (after a convolution, or where the form has it), rotary
    positions, features, the recurrence, normaliser or norm per head, gate, output projection. In an encoder
    the recurrence runs both ways and the two are added; the convolution looks back there too.

    Where there is a gate, keys are half as wide as values, so that a layer has about the 4 width^2 weights
    of softmax attention. Cost: see ``flops_per_token``; the state is heads * features * head_dim float32
    numbers.
    """

    decay: ClassVar[Decay] = "none"
    """How the state decays: not, by a constant per head, by a number per token, or by one per channel."""
    delta: ClassVar[bool] = False
    """Whether a token replaces what its key read (delta rule) or adds to it."""
    normalised: ClassVar[bool] = False
    """Whether outputs are divided by the sum of their weights, as softmax's are."""
    activated: ClassVar[bool] = False
    """Whether SiLU follows the projections even without a convolution."""
    shared: ClassVar[bool] = False
    """Whether all heads have one query and key."""
    rated: ClassVar[bool] = True
    """Whether a data-dependent decay has a learned rate per head."""
    stepped: ClassVar[bool] = False
    """Whether keys are multiplied by a step, and values skip the state (Mamba-2)."""
    slowest_rate: ClassVar[float] = 1.0
    """The lower end of the rates that a data-dependent decay begins with."""
    turned_features: ClassVar[bool] = False
    """Whether rotary positions turn the features and not what they are made of (see LinearTransformer)."""
    gate_function: ClassVar[Literal["silu", "sigmoid"]] = "silu"
    """What the gate applies to its projection."""

    convolution: int | None = None
    """Tokens that a depthwise causal convolution of queries, keys and values reaches (4 in most papers);
    default: no convolution."""
    convolution_bias: bool = False
    """Add a learned number per channel to what the convolution makes."""
    gate: bool = False
    """Multiply outputs by a gate, a function of the token."""
    norm: bool = True
    """RMS-normalise what each head reads."""
    norm_epsilon: float = 1e-6
    """Added to the mean square by that norm."""
    key_dim: int | None = None
    """Channels of a head's queries and keys; default: head_dim, half of it with a gate."""

    def keys(self, geometry: Geometry) -> int:
        """Returns the channels of a head's queries and keys."""
        if self.key_dim is not None:
            return self.key_dim
        return max(geometry.head_dim // 2, 1) if self.gate else geometry.head_dim

    def feature_dim(self, geometry: Geometry) -> int:
        """Returns the features of a head's queries and keys: the rows of its state."""
        return self.keys(geometry)

    def decay_rank(self, geometry: Geometry) -> int:
        """Returns the channels through which a vector decay is projected."""
        return geometry.head_dim

    def features(
        self,
        q: Float[Array, "batch q_len heads key_dim"],
        k: Float[Array, "memories kv_len heads key_dim"],
        key: Key[Array, ""] | None,
    ) -> Features:
        """Returns what stands for queries and keys in the recurrence; ``key`` draws what is drawn."""
        del key
        return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k

    def log_decay(
        self, logits: Float[Array, "*shape"], log_rate: Float[Array, "*ones"] | None
    ) -> Float[Array, "*shape"]:
        """Returns the log decay: -exp(log_rate) softplus(logits) (Mamba-2; Gated DeltaNet; KDA)."""
        assert log_rate is not None
        return -jnp.exp(log_rate) * jax.nn.softplus(logits)

    def problems(self, geometry: Geometry, positions: Positions | None, *, causal: bool) -> Iterator[str]:
        """Yields grouped heads, positions that act on scores, and sizes that do not fit."""
        yield from super().problems(geometry, positions, causal=causal)
        name = type(self).__name__
        if geometry.kv_heads != geometry.heads:
            yield (
                f"{name} has a state per head: model.kv_heads must be model.heads "
                f"({geometry.heads}), not {geometry.kv_heads}"
            )
        if isinstance(positions, Alibi | RelativeBias):
            yield (
                f"{name} has no scores that model.positions could be added to; "
                "choose 'none', 'rotary', 'learned' or 'sinusoidal'"
            )
        if isinstance(positions, Rotary) and self.keys(geometry) % 2:
            yield (
                f"{name} with rotary positions needs an even model.attention.key_dim, "
                f"not {self.keys(geometry)}"
            )
        for field, value in (("convolution", self.convolution), ("key_dim", self.key_dim)):
            if value is not None and value < 1:
                yield f"model.attention.{field} {value}: at least 1"

    def cross_problems(self, geometry: Geometry) -> Iterator[str]:
        """Yields a convolution, beside what keeps any mechanism from reading a memory."""
        yield from super().cross_problems(geometry)
        if self.cross and self.convolution is not None:
            yield (
                f"model.attention.convolution {self.convolution} mixes neighbours in one sequence, and a "
                "memory is another; leave it out"
            )

    def memory_parameters(self, geometry: Geometry) -> int:
        """Returns the weights of the key and value projections."""
        key_heads = 1 if self.shared else geometry.heads
        return geometry.width * (key_heads * self.keys(geometry) + geometry.heads * geometry.head_dim)

    def cross_flops(self, geometry: Geometry, length: int, memory: int) -> float:
        """Returns 2 for each number of the state that a token of the memory writes and a query reads."""
        values = geometry.head_dim + (1 if self.normalised else 0)
        return 2.0 * geometry.heads * self.feature_dim(geometry) * values * (length + memory)

    def matmul_parameters(self, geometry: Geometry) -> int:
        """Returns the weights of the projections: queries, keys, values, gate, output, decay, strength."""
        width, heads = geometry.width, geometry.heads
        key_heads = 1 if self.shared else heads
        count = 2 * width * key_heads * self.keys(geometry)
        count += (3 if self.gate else 2) * width * heads * geometry.head_dim
        if self.delta:
            count += width * heads
        if self.decay == "scalar":
            count += width * heads
        if self.decay == "vector":
            count += self.decay_rank(geometry) * (width + heads * self.keys(geometry))
        return count

    def flops_per_token(self, geometry: Geometry, length: int, *, causal: bool, visible: bool) -> float:
        """Returns the FLOPs of the matrix products of the chunked recurrence; independent of ``visible``.

        With f features, v value channels and chunks of C tokens, per head: 2 C f for scores, 2 C v for
        reading the chunk, 4 f v for writing and reading the state; the delta rule has scores of keys by
        keys, the inverse of a triangle (C^2), a solution v + f wide, and f^2 v / C for a transition.
        """
        del visible
        f, v = self.feature_dim(geometry), geometry.head_dim + (1 if self.normalised else 0)
        chunk = min(CHUNK, length)
        flops = 2.0 * chunk * (f + v) + 4.0 * f * v
        if self.delta:
            flops += 2.0 * chunk * (f + v + 2 * f) + chunk**2 + 2.0 * f * f + 2.0 * f * f * v / chunk
        return geometry.heads * flops * (1 if causal else 2)

    def state(self, geometry: Geometry, batch: int, slots: int, dtype: jnp.dtype) -> RecurrentState:
        """Returns the state matrix, and the tail of the convolution."""
        del slots
        values = geometry.head_dim + (1 if self.normalised else 0)
        memory = jnp.zeros((batch, geometry.heads, self.feature_dim(geometry), values), jnp.float32)
        if self.convolution is None:
            return RecurrentState(memory, None)
        key_heads = 1 if self.shared else geometry.heads
        channels = 2 * key_heads * self.keys(geometry) + geometry.heads * geometry.head_dim
        return RecurrentState(memory, jnp.zeros((batch, self.convolution - 1, channels), dtype))


@dataclasses.dataclass(frozen=True)
class LinearTransformer(Recurrent):
    """The Linear Transformer: elu(x) + 1 for exp, normalised (Katharopoulos et al., 2020, eq. 4-9).

    o_i = phi(q_i)^T sum_j phi(k_j) v_j^T / (phi(q_i)^T sum_j phi(k_j)). Rotary positions turn phi(q) and
    phi(k) above the line and not below it, so that they act by distance alone and no sum of weights is near
    0 (Su et al., 2021, eq. 19); the paper adds its positions to the embeddings. No other departure.
    """

    normalised: ClassVar[bool] = True
    turned_features: ClassVar[bool] = True
    cross: ClassVar[bool] = True

    norm: bool = False

    def features(self, q: Array, k: Array, key: Key[Array, ""] | None) -> Features:
        """Returns elu + 1 of both."""
        del key
        return elu_plus_one(q), elu_plus_one(k)


@dataclasses.dataclass(frozen=True)
class Performer(Recurrent):
    """Softmax attention in expectation, by positive orthogonal random features (Choromanski et al., 2021).

    Departures: the paper's code takes a maximum over all keys, future ones included, out of the logits of
    keys, which here are cut where float32 ends; nothing is added to features to keep them from 0; all layers
    and heads have the same directions. So keys several times longer than sqrt(head_dim) (six times, at 64
    channels) have no features that float32 could hold, and a token that sees no others reads 0.
    """

    normalised: ClassVar[bool] = True
    cross: ClassVar[bool] = True

    norm: bool = False
    random_features: int | None = None
    """Random features of a head; default: head_dim * ln(head_dim), the paper's order (266 for 64)."""
    redraw: bool = False
    """Draw new directions at every call that has a random key (training with dropout); otherwise, and always
    in evaluation, they are a function of ``seed``."""
    seed: int = 0
    """Of the directions."""

    def feature_dim(self, geometry: Geometry) -> int:
        """Returns the number of random features."""
        return self._count(self.keys(geometry))

    def _count(self, dim: int) -> int:
        return max(round(dim * math.log(dim)), 1) if self.random_features is None else self.random_features

    def features(self, q: Array, k: Array, key: Key[Array, ""] | None) -> Features:
        """Returns positive random features of both, float32."""
        sizes = q.shape[-1], self._count(q.shape[-1])
        directions = jnp.asarray(fixed_directions(*sizes, self.seed))
        if self.redraw and key is not None:
            directions = drawn_directions(*sizes, key)
        return favor_query(q, directions), favor_key(k, directions)


@dataclasses.dataclass(frozen=True)
class Based(Recurrent):
    """exp's second-order Taylor series as the kernel, on few channels (Based; Arora et al., 2024, section 4).

    The paper interleaves it with windows of 64 tokens ('interleaved' with 'sliding-window'). Departure: a
    feature per pair of channels instead of one per ordered pair, the same kernel.
    """

    normalised: ClassVar[bool] = True
    cross: ClassVar[bool] = True

    norm: bool = False
    key_dim: int | None = 16

    def feature_dim(self, geometry: Geometry) -> int:
        """Returns 1, the channels, and their pairs."""
        dim = self.keys(geometry)
        return 1 + dim + dim * (dim + 1) // 2

    def features(self, q: Array, k: Array, key: Key[Array, ""] | None) -> Features:
        """Returns Taylor features of both, float32."""
        del key
        return taylor(q), taylor(k)


@dataclasses.dataclass(frozen=True)
class Retention(Recurrent):
    """Retention: a fixed decay per head (Sun et al., 2023, eq. 5-8); xPos is rotary positions and this decay.

    Decays are 1 - exp(linspace(log 1/32, log 1/512, heads)). Departures: RMSNorm for GroupNorm; values as
    wide as the model and keys half (the paper: twice and once, with a narrower feed-forward network).
    """

    decay: ClassVar[Decay] = "fixed"

    gate: bool = True


@dataclasses.dataclass(frozen=True)
class GLA(Recurrent):
    """Gated linear attention: a decay per key channel, sigmoid(W2 W1 x + b)^(1/16) (Yang et al., 2023, 4.4).

    No departure.
    """

    decay: ClassVar[Decay] = "vector"
    rated: ClassVar[bool] = False

    gate: bool = True

    def decay_rank(self, geometry: Geometry) -> int:
        """Returns 16, the paper's."""
        del geometry
        return 16

    def log_decay(self, logits: Array, log_rate: Array | None) -> Array:
        """Returns log(sigmoid(logits)) / 16."""
        del log_rate
        return jax.nn.log_sigmoid(logits) / 16


@dataclasses.dataclass(frozen=True)
class Mamba2(Recurrent):
    """State-space duality: a scalar decay and step per head and token (Mamba-2; Dao & Gu, 2024, section 5-7).

    step = softplus(w x + b), log decay = -a step, S <- decay S + B (step x)^T, o = S^T C + d x, with B and C
    shared by all heads and SiLU on x, B and C. Departures: the values are as wide as the model (the paper:
    twice, without a feed-forward network) and outputs are RMS-normalised per head, before the gate.
    """

    decay: ClassVar[Decay] = "scalar"
    activated: ClassVar[bool] = True
    shared: ClassVar[bool] = True
    stepped: ClassVar[bool] = True

    convolution: int | None = 4
    convolution_bias: bool = True
    gate: bool = True

    def keys(self, geometry: Geometry) -> int:
        """Returns the state's size N; default: twice head_dim (the paper's 128 for heads of 64)."""
        return 2 * geometry.head_dim if self.key_dim is None else self.key_dim

    def features(self, q: Array, k: Array, key: Key[Array, ""] | None) -> Features:
        """Returns both as they are."""
        del key
        return q, k


@dataclasses.dataclass(frozen=True)
class DeltaNet(Recurrent):
    """The delta rule: a token replaces what its key read (Schlag et al., 2021; Yang et al., 2024, eq. 5-9).

    Queries and keys have unit length, strength is sigmoid(w x). No departure.
    """

    delta: ClassVar[bool] = True
    activated: ClassVar[bool] = True

    convolution: int | None = 4

    def features(self, q: Array, k: Array, key: Key[Array, ""] | None) -> Features:
        """Returns both with unit length, queries over sqrt(key_dim)."""
        return super().features(unit(q), unit(k), key)


@dataclasses.dataclass(frozen=True)
class GatedDeltaNet(DeltaNet):
    """The delta rule with Mamba-2's scalar decay (Yang et al., 2025, eq. 10; Qwen3-Next).

    Departure: key and value widths (the paper: 0.75 and 1.5 of the model's).
    """

    decay: ClassVar[Decay] = "scalar"
    slowest_rate: ClassVar[float] = 0.0

    gate: bool = True


@dataclasses.dataclass(frozen=True)
class KimiDelta(DeltaNet):
    """Kimi delta attention: the delta rule with a decay per key channel (Kimi Linear, 2025, eq. 1).

    Departures: the gate's projection has full rank; key width (the paper: values', with a gate of low rank).
    """

    decay: ClassVar[Decay] = "vector"
    gate_function: ClassVar[Literal["silu", "sigmoid"]] = "sigmoid"

    gate: bool = True
