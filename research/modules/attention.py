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
        memory: Float[Array, "batch memory_length width"] | None = None,
        memory_tokens: Tokens | None = None,
        cache: tuple[KeyValues, Slots] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length width"], KeyValues | None]:
        """Returns the output and, when a cache is given, the cache with this call's keys and values.

        Args:
          x: queries' input, and that of keys and values unless ``memory`` is given.
          tokens: positions and segments of x; None: 0, 1, 2 … in one document.
          memory: input of keys and values for cross-attention.
          memory_tokens: positions and segments of the memory.
          cache: keys and values of earlier tokens, and its slots with those of ``tokens`` already written.
          key: key of the dropout of weights and output; None: no dropout.
        """
        spec, geometry, softmax = self.spec, self.spec.geometry, self.spec.mechanism
        assert isinstance(softmax, Softmax)
        q, k, v = self._project(x, x if memory is None else memory)
        if softmax.qk_norm:
            one = (geometry.head_dim,)
            q = rms_norm(q, self.param("query_scale", nn.initializers.ones, one, jnp.float32))
            k = rms_norm(k, self.param("key_scale", nn.initializers.ones, one, jnp.float32))
        if isinstance(spec.positions, Rotary) and memory is None:
            positions = Tokens.arange(x.shape[1]).positions if tokens is None else tokens.positions
            q, k = rotary(q, positions, spec.positions.base), rotary(k, positions, spec.positions.base)
        kv_tokens, mask = tokens, self._mask()
        if memory is not None:  # which never shares the queries' tokens, though it may be as long
            kv_tokens = Tokens.arange(memory.shape[1]) if memory_tokens is None else memory_tokens
            mask = Everything()
        elif tokens is not None and tokens.segments is not None:
            mask = SameSegment() if mask == Everything() else mask & SameSegment()
        layer = None
        if cache is not None:
            layer, slots = cache
            layer = layer.write(k, v, slots.used - x.shape[1])
            k, v, kv_tokens = layer.keys.astype(q.dtype), layer.values.astype(q.dtype), slots.tokens
        weight_key, output_key = (None, None) if key is None else jax.random.split(key)
        out = attend(
            q, k, v,
            mask=mask, q_tokens=tokens, kv_tokens=kv_tokens, soft_cap=softmax.soft_cap,
            dropout=spec.dropout, dropout_key=weight_key, engine=spec.engine,
        )  # fmt: skip
        heads = (geometry.heads, geometry.head_dim)
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
        self, x: Float[Array, "batch length width"], source: Float[Array, "batch source_length width"]
    ) -> tuple[
        Float[Array, "batch length heads head_dim"],
        Float[Array, "batch source_length kv_heads head_dim"],
        Float[Array, "batch source_length kv_heads head_dim"],
    ]:
        """Returns queries of x, and keys and values of ``source``."""
        spec, geometry = self.spec, self.spec.geometry
        shapes = {"query": geometry.heads, "key": geometry.kv_heads, "value": geometry.kv_heads}
        maps = {
            name: Linear((geometry.width,), (heads, geometry.head_dim), spec.bias, spec.stddev, name=name)
            for name, heads in shapes.items()
        }
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
