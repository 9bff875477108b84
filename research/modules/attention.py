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
from research.attention.masks import Everything, Mask, Tokens
from research.attention.positions import rotary
from research.modules.linear import Linear, linear
from research.modules.norm import rms_norm


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """What every attention layer of a stack shares."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = True
    rotary_base: float | None = None
    qk_norm: bool = False
    soft_cap: float | None = None
    dropout: float = 0.0
    engine: EngineName = "auto"
    stddev: float = 0.02
    output_stddev: float = 0.02


class MultiHeadAttention(nn.Module):
    """Multi-head, grouped- or multi-query attention over x or memory (Vaswani et al., 2017, 3.2.2)."""

    spec: AttentionSpec
    mask: Mask = Everything()

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
        spec = self.spec
        q, k, v = self._project(x, x if memory is None else memory)
        if spec.qk_norm:
            q = rms_norm(q, self.param("query_scale", nn.initializers.ones, (spec.head_dim,), jnp.float32))
            k = rms_norm(k, self.param("key_scale", nn.initializers.ones, (spec.head_dim,), jnp.float32))
        if spec.rotary_base is not None and memory is None:
            positions = Tokens.arange(x.shape[1]).positions if tokens is None else tokens.positions
            q, k = rotary(q, positions, spec.rotary_base), rotary(k, positions, spec.rotary_base)
        kv_tokens = tokens
        if memory is not None:  # which never shares the queries' tokens, though it may be as long
            kv_tokens = Tokens.arange(memory.shape[1]) if memory_tokens is None else memory_tokens
        layer = None
        if cache is not None:
            layer, slots = cache
            layer = layer.write(k, v, slots.used - x.shape[1])
            k, v, kv_tokens = layer.keys.astype(q.dtype), layer.values.astype(q.dtype), slots.tokens
        weight_key, output_key = (None, None) if key is None else jax.random.split(key)
        out = attend(
            q, k, v,
            mask=self.mask, q_tokens=tokens, kv_tokens=kv_tokens, soft_cap=spec.soft_cap,
            dropout=spec.dropout, dropout_key=weight_key, engine=spec.engine,
        )  # fmt: skip
        out = Linear(
            (spec.heads, spec.head_dim), (spec.width,), spec.bias, spec.output_stddev, name="output"
        )(out)
        return dropout(out, spec.dropout, output_key), layer

    def _project(
        self, x: Float[Array, "batch length width"], source: Float[Array, "batch source_length width"]
    ) -> tuple[
        Float[Array, "batch length heads head_dim"],
        Float[Array, "batch source_length kv_heads head_dim"],
        Float[Array, "batch source_length kv_heads head_dim"],
    ]:
        """Returns queries of x, and keys and values of ``source``."""
        spec = self.spec
        shapes = {"query": spec.heads, "key": spec.kv_heads, "value": spec.kv_heads}
        maps = {
            name: Linear((spec.width,), (heads, spec.head_dim), spec.bias, spec.stddev, name=name)
            for name, heads in shapes.items()
        }
        if source is not x:
            return maps["query"](x), maps["key"](source), maps["value"](source)
        # One product for all three. Each key/value head lies with the query heads that read it, so that a
        # mesh that splits heads splits this too.
        group = spec.heads // spec.kv_heads
        kernels, biases = zip(*(part.weights() for part in maps.values()), strict=True)
        kernel = jnp.concatenate(
            [kernel.reshape(spec.width, spec.kv_heads, -1, spec.head_dim) for kernel in kernels], axis=2
        ).reshape(spec.width, -1)
        bias = None
        if spec.bias:
            parts = [bias.reshape(spec.kv_heads, -1, spec.head_dim) for bias in biases]
            bias = jnp.concatenate(parts, axis=1).reshape(-1)
        y = linear(x, kernel, bias).reshape(*x.shape[:-1], spec.kv_heads, group + 2, spec.head_dim)
        # A split, not slices: its gradient is a concatenation, theirs a sum of padded arrays.
        q, k, v = jnp.split(y, [group, group + 1], axis=3)
        q, k, v = (part.reshape(*x.shape[:-1], -1, spec.head_dim) for part in (q, k, v))
        return q, k, v
