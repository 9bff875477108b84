"""Multi-head attention: projections around ``attend``."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.attention.cache import KeyValues, Slots
from research.attention.dropout import dropout
from research.attention.engines import EngineName, attend
from research.attention.masks import Causal, Everything, Mask, SameSegment, Tokens
from research.attention.mechanisms import Geometry, Mechanism, Softmax
from research.attention.positions import Positions, Rotary, rotary
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
    engine: EngineName = "auto"
    stddev: float = 0.02
    output_stddev: float = 0.02


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
        projected: KeyValues | None = None,
        cache: tuple[KeyValues, Slots] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length width"], KeyValues | None]:
        """Returns the output and keys and values: the memory's, or a given cache with this call's in it.

        Args:
          x: queries' input, and that of keys and values unless ``memory`` is given.
          tokens: positions and segments of x; None: 0, 1, 2 … in one document.
          memory: input of keys and values for cross-attention. Its rows may be fewer than those of x, of
            which as many successive ones then read the same memory (the hypotheses of a beam).
          memory_tokens: positions and segments of the memory.
          projected: keys and values of the memory, as an earlier call returned them.
          cache: keys and values of earlier tokens, and its slots with those of ``tokens`` already written.
          key: key of the dropout of weights and output; None: no dropout.
        """
        spec, geometry, softmax = self.spec, self.spec.geometry, self.spec.mechanism
        assert isinstance(softmax, Softmax)
        q, k, v = self._project(x, x if memory is None else memory, projected)
        if softmax.qk_norm:
            one = (geometry.head_dim,)
            q = rms_norm(q, self.param("query_scale", nn.initializers.ones, one, jnp.float32))
            key_scale = self.param("key_scale", nn.initializers.ones, one, jnp.float32)
            k = rms_norm(k, key_scale) if projected is None else k
        if isinstance(spec.positions, Rotary) and memory is None:
            positions = Tokens.arange(x.shape[1]).positions if tokens is None else tokens.positions
            q, k = rotary(q, positions, spec.positions), rotary(k, positions, spec.positions)
        kv_tokens, mask, layer, q_tokens = tokens, self._mask(), None, tokens
        if memory is not None:  # which never shares the queries' tokens, though it may be as long
            layer = KeyValues(k, v)
            q, q_tokens = _rows_of_memory(q, tokens, len(memory))
            kv_tokens = Tokens.arange(memory.shape[1]) if memory_tokens is None else memory_tokens
            mask = Everything()
        elif tokens is not None and tokens.segments is not None:
            mask = SameSegment() if mask == Everything() else mask & SameSegment()
        if cache is not None:
            layer, slots = cache
            layer = layer.write(k, v, slots.used - x.shape[1])
            k, v, kv_tokens = layer.keys.astype(q.dtype), layer.values.astype(q.dtype), slots.tokens
        weight_key, output_key = (None, None) if key is None else jax.random.split(key)
        out = attend(
            q, k, v,
            mask=mask, q_tokens=q_tokens, kv_tokens=kv_tokens, soft_cap=softmax.soft_cap,
            dropout=spec.dropout, dropout_key=weight_key, engine=spec.engine,
        )  # fmt: skip
        heads = (geometry.heads, geometry.head_dim)
        out = out.reshape(*x.shape[:2], *heads)
        out = Linear(heads, (geometry.width,), spec.bias, spec.output_stddev, name="output")(out)
        return dropout(out, spec.dropout, output_key), layer

    def _mask(self) -> Mask:
        """Returns what self-attention admits within one document."""
        assert isinstance(self.spec.mechanism, Softmax)
        pattern = self.spec.mechanism.pattern(causal=self.spec.causal)
        if not self.spec.causal:
            return pattern
        return Causal() if pattern == Everything() else Causal() & pattern

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
        if source is not x:
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


def _rows_of_memory(
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
