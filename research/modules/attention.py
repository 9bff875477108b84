"""Multi-head attention: projections around ``attend``."""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.attention.biases import AlibiBias, Bias, BucketBias, LineageBias, alibi_slopes
from research.attention.cache import KeyValues, MemoryRead, Slots
from research.attention.dropout import dropout
from research.attention.engines import EngineName, attend
from research.attention.masks import Causal, Everything, Mask, SameSegment, Tokens, positions_of
from research.attention.mechanisms import Geometry, Mechanism, Softmax
from research.attention.positions import Alibi, Positions, RelativeBias, Rotary, rotary
from research.modules.linear import Linear, linear
from research.modules.norm import rms_norm


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """What an attention layer is built from."""

    geometry: Geometry
    mechanism: Mechanism = Softmax()  # noqa: RUF009 (frozen)
    causal: bool = False
    """Whether a token sees only those before it."""
    positions: Positions | None = None
    """Positional encoding; what acts outside attention is left to the model."""
    bias: bool = True
    dropout: float = 0.0
    """Of the output."""
    weight_dropout: float = 0.0
    """Of the attention weights, where there are any."""
    engine: EngineName = "auto"
    norm_epsilon: float = 1e-5
    """Of the normalisation of queries and keys, where there is one."""
    stddev: float = 0.02
    output_stddev: float = 0.02
    tells: bool = False
    """Whether cross-attention keeps its weights in the decoding state; they are computed apart."""


class MultiHeadAttention(nn.Module):
    """Multi-head, grouped- or multi-query softmax attention over x or memory (Vaswani et al., 2017, 3.2.2).

    A token attends within its document: where tokens have segments, to those of its own segment.
    """

    spec: AttentionSpec

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        tokens: Tokens | None = None,
        *,
        memory: Float[Array, "memories memory_length width"] | None = None,
        memory_tokens: Tokens | None = None,
        projected: KeyValues | MemoryRead | None = None,
        cache: tuple[Any, Slots] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length width"], Any]:
        """Returns the output and keys and values: the memory's, or a given cache with this call's in it.

        Args:
          x: queries' input, and that of keys and values unless ``memory`` is given.
          tokens: positions and segments of x; None: 0, 1, 2 … in one document.
          memory: input of keys and values for cross-attention. Its rows may be fewer than those of x, of
            which as many successive ones then read the same memory (the hypotheses of a beam).
          memory_tokens: positions and segments of the memory.
          projected: keys and values of the memory, as an earlier call returned them.
          cache: the mechanism's state after earlier tokens, and slots, those of ``tokens`` already written.
          key: key of the dropout of weights and output; None: no dropout.
        """
        spec, geometry, softmax = self.spec, self.spec.geometry, self.spec.mechanism
        assert isinstance(softmax, Softmax)
        projected = projected.key_values if isinstance(projected, MemoryRead) else projected
        q, k, v = self._project(x, x if memory is None else memory, projected)
        if softmax.qk_norm:
            one = (geometry.head_dim,)
            query_scale = self.param("query_scale", nn.initializers.ones, one, jnp.float32)
            q = rms_norm(q, query_scale, spec.norm_epsilon)
            key_scale = self.param("key_scale", nn.initializers.ones, one, jnp.float32)
            k = rms_norm(k, key_scale, spec.norm_epsilon) if projected is None else k
        if memory is None:
            q, k = turned(spec.positions, tokens, q, k)
            mask = self_mask(softmax.pattern(geometry, causal=spec.causal), tokens, causal=spec.causal)
            layer, k, v, kv_tokens, bias = self._remember(x, q, k, v, tokens, cache)
            q_tokens = tokens
            if cache is not None and cache[1].lineage is not None and reads_lineages(softmax):
                q, k, v, q_tokens, kv_tokens, bias = _read_together(q, k, v, tokens, cache[1], bias)
        else:  # which never shares the queries' tokens, though it may be as long
            layer, bias, mask = KeyValues(k, v), None, Everything()
            q, q_tokens = rows_of_memory(q, tokens, len(memory))
            kv_tokens = Tokens.arange(memory.shape[1]) if memory_tokens is None else memory_tokens
        sink = None
        if softmax.sink:
            sink = self.param("sink", nn.initializers.zeros, (geometry.heads,), jnp.float32)
        weight_key, output_key = (None, None) if key is None else jax.random.split(key)
        how: dict[str, Any] = {
            "mask": mask, "q_tokens": q_tokens, "kv_tokens": kv_tokens, "scale": scale(spec, q.shape[-1]),
            "soft_cap": softmax.soft_cap, "bias": bias, "sink": sink,
        }  # fmt: skip
        out = self._attend(
            q, k, v, dropout=spec.weight_dropout, dropout_key=weight_key, engine=spec.engine, **how
        )
        if spec.tells and memory is not None:
            # What is read of the identity are the weights.
            identity = jnp.broadcast_to(jnp.eye(k.shape[1])[None, :, None], (*k.shape[:3], k.shape[1]))
            weights = attend(q, k, identity, engine="reference", **how).mean(2)
            layer = MemoryRead(layer, weights.reshape(*x.shape[:2], -1))
        heads = (geometry.heads, geometry.head_dim)
        out = out.reshape(*x.shape[:2], *heads)
        if softmax.gate:
            gate = Linear((geometry.width,), heads, spec.bias, spec.stddev, name="output_gate")(x)
            out = out * nn.sigmoid(gate)
        out = Linear(heads, (geometry.width,), spec.bias, spec.output_stddev, name="output")(out)
        return dropout(out, spec.dropout, output_key), layer

    def _attend(
        self,
        q: Float[Array, "batch q_len heads head_dim"],
        k: Float[Array, "batch kv_len kv_heads head_dim"],
        v: Float[Array, "batch kv_len kv_heads head_dim"],
        **options: Any,
    ) -> Float[Array, "batch q_len heads head_dim"]:
        """Returns what each head reads."""
        return attend(q, k, v, **options)

    def _remember(
        self,
        x: Float[Array, "batch length width"],
        q: Float[Array, "batch length heads head_dim"],
        k: Float[Array, "batch length kv_heads head_dim"],
        v: Float[Array, "batch length kv_heads head_dim"],
        tokens: Tokens | None,
        cache: tuple[Any, Slots] | None,
    ) -> tuple[Any, Array, Array, Tokens | None, Bias | None]:
        """Returns the new state, if one was given; keys, values, their tokens; and the bias of the scores."""
        del x, q
        bias = position_bias(self, self.spec)
        if cache is None:
            return None, k, v, tokens, bias
        layer, seen, kv_tokens = cache[0].extend(k, v, positions_of(tokens, k.shape[1]), cache[1])
        return layer, seen.keys, seen.values, kv_tokens, bias

    def _project(
        self,
        x: Float[Array, "batch length width"],
        source: Float[Array, "memories source_length width"],
        projected: KeyValues | None,
    ) -> tuple[
        Float[Array, "batch length heads head_dim"],
        Float[Array, "memories source_length kv_heads head_dim"],
        Float[Array, "memories source_length kv_heads head_dim"],
    ]:
        """Returns queries of x, and keys and values of ``source`` unless they are given."""
        spec, geometry = self.spec, self.spec.geometry
        shapes = {"query": geometry.heads, "key": geometry.kv_heads, "value": geometry.kv_heads}
        maps = {
            name: Linear((geometry.width,), (heads, geometry.head_dim), spec.bias, spec.stddev, name=name)
            for name, heads in shapes.items()
        }
        if projected is not None:
            return maps["query"](x), projected.keys, projected.values
        # For one token, joining the kernels costs as much as reading them.
        if source is not x or x.shape[1] == 1:
            return maps["query"](x), maps["key"](source), maps["value"](source)
        # One product for all three. Each key/value head lies with the query heads that read it, so that a
        # mesh that splits heads splits this too.
        group = geometry.heads // geometry.kv_heads
        kernels, biases = zip(*(part.weights() for part in maps.values()), strict=True)
        kernel = jnp.concatenate(
            [kernel.reshape(geometry.width, geometry.kv_heads, -1, geometry.head_dim) for kernel in kernels],
            axis=2,
        ).reshape(geometry.width, -1)
        bias = None
        if spec.bias:
            parts = [bias.reshape(geometry.kv_heads, -1, geometry.head_dim) for bias in biases]
            bias = jnp.concatenate(parts, axis=1).reshape(-1)
        y = linear(x, kernel, bias).reshape(*x.shape[:-1], geometry.kv_heads, group + 2, geometry.head_dim)
        # A split, not slices: its gradient is a concatenation, theirs a sum of padded arrays.
        q, k, v = jnp.split(y, [group, group + 1], axis=3)
        q, k, v = (part.reshape(*x.shape[:-1], -1, geometry.head_dim) for part in (q, k, v))
        return q, k, v


def reads_lineages(mechanism: Mechanism) -> bool:
    """Returns whether a row reads its past where it lies (see ``Slots.lineage``), so that nothing is moved.

    Other mechanisms have states of another kind, or choose what they read among the keys of their row.
    """
    return type(mechanism) is Softmax


def _read_together(
    q: Float[Array, "rows 1 heads head_dim"],
    k: Float[Array, "rows slots kv_heads head_dim"],
    v: Float[Array, "rows slots kv_heads head_dim"],
    tokens: Tokens | None,
    slots: Slots,
    bias: Bias | None,
) -> tuple[Array, Array, Array, Tokens, Tokens, Bias]:
    """Returns what a group's queries read together: queries, keys, values, the tokens of both, the bias."""
    assert slots.lineage is not None

    def together(x: Array) -> Array:
        return x.reshape(slots.lineage.shape[0], -1, *x.shape[2:])  # type: ignore[union-attr]

    places = together(jnp.broadcast_to(positions_of(tokens, 1), q.shape[:2]))
    own = LineageBias.of(slots.lineage)
    return (
        together(q), together(k), together(v), Tokens(places), Tokens(together(slots.positions)),
        own if bias is None else bias + own,
    )  # fmt: skip


def rows_of_memory(
    q: Float[Array, "batch length heads head_dim"], tokens: Tokens | None, memories: int
) -> tuple[Float[Array, "memories queries heads head_dim"], Tokens | None]:
    """Returns the queries (and their tokens) of each memory as one row; their positions play no part."""
    if len(q) == memories:
        return q, tokens
    segments = None
    if tokens is not None and tokens.segments is not None:
        segments = jnp.broadcast_to(tokens.segments, q.shape[:2]).reshape(memories, -1)
    q = q.reshape(memories, -1, *q.shape[2:])
    return q, Tokens(jnp.zeros((1, q.shape[1]), jnp.int32), segments)


def turned(
    positions: Positions | None, tokens: Tokens | None, *arrays: Float[Array, "batch length _ _"]
) -> tuple[Float[Array, "batch length _ _"], ...]:
    """Returns queries and keys turned by their positions, where the encoding is rotary."""
    if not isinstance(positions, Rotary):
        return arrays
    places = positions_of(tokens, arrays[0].shape[1])
    return tuple(rotary(x, places, positions) for x in arrays)


def scale(spec: AttentionSpec, channels: int) -> float:
    """Returns the factor on the scores of queries and keys of so many channels."""
    own = spec.mechanism.scale if isinstance(spec.mechanism, Softmax) else None
    temperature = spec.positions.temperature if isinstance(spec.positions, Rotary) else 1.0
    return temperature * (channels**-0.5 if own is None else own)


def position_bias(module: nn.Module, spec: AttentionSpec) -> Bias | None:
    """Returns what positions add to the scores, if anything; ``module`` owns the learned table."""
    match spec.positions:
        case Alibi():
            return AlibiBias(jnp.asarray(alibi_slopes(spec.geometry.heads)))
        case RelativeBias(count, most):
            normal = nn.initializers.normal(spec.stddev)
            table = module.param("relative_bias", normal, (count, spec.geometry.heads), jnp.float32)
            return BucketBias(table, most, bidirectional=not spec.causal)
    return None


def self_mask(pattern: Mask, tokens: Tokens | None, *, causal: bool) -> Mask:
    """Returns what self-attention admits: the pattern, nothing later if causal, one document alone."""
    parts: list[Mask] = [Causal()] if causal else []
    parts += [pattern] if pattern != Everything() else []
    parts += [SameSegment()] if tokens is not None and tokens.segments is not None else []
    return functools.reduce(operator.and_, parts) if parts else Everything()
