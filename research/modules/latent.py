"""Multi-head latent attention: keys and values of all heads from one latent per token."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.attention.cache import Latents, Slots
from research.attention.dropout import dropout
from research.attention.engines import attend
from research.attention.masks import Everything, Tokens
from research.attention.mechanisms import Latent
from research.modules.attention import AttentionSpec, position_bias, scale, self_mask, turned
from research.modules.linear import Linear
from research.modules.norm import Norm


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, 2024, eq. 9-19); decoding reads the latents themselves."""

    spec: AttentionSpec

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        tokens: Tokens | None = None,
        *,
        cache: tuple[Latents, Slots] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length width"], Latents | None]:
        """Returns the output and, when a cache is given, the cache with this call's tokens in it.

        Arguments as for ``MultiHeadAttention``.
        """
        spec, geometry, mechanism = self.spec, self.spec.geometry, self.spec.mechanism
        assert isinstance(mechanism, Latent)
        heads, head_dim = geometry.heads, geometry.head_dim
        rank, _ = mechanism.sizes(geometry)
        q, q_turned, latent, shared = self._project(x, tokens)
        up = {
            name: Linear((rank,), (heads, head_dim), False, spec.stddev, name=name)
            for name in ("key", "value")
        }
        layer, kv_tokens = None, tokens
        if cache is None:
            k = jnp.broadcast_to(shared, q_turned.shape)
            k, v = jnp.concatenate([up["key"](latent), k], axis=-1), up["value"](latent)
        else:
            layer = cache[0].extend(latent[:, :, None], shared, cache[1])
            q = jnp.einsum("blhd,rhd->blhr", q, up["key"].weights()[0].astype(q.dtype))
            v, shared, kv_tokens = layer.latents.astype(x.dtype), layer.keys.astype(x.dtype), cache[1].tokens
            k = jnp.concatenate([v, shared], axis=-1)
        weight_key, output_key = (None, None) if key is None else jax.random.split(key)
        out = attend(
            jnp.concatenate([q, q_turned], axis=-1), k, v,
            mask=self_mask(Everything(), tokens, causal=spec.causal), q_tokens=tokens, kv_tokens=kv_tokens,
            scale=scale(spec, head_dim + q_turned.shape[-1]), bias=position_bias(self, spec),
            dropout=spec.weight_dropout, dropout_key=weight_key, engine=spec.engine,
        )  # fmt: skip
        if cache is not None:
            out = jnp.einsum("blhr,rhd->blhd", out, up["value"].weights()[0].astype(out.dtype))
        out = Linear((heads, head_dim), (geometry.width,), spec.bias, spec.output_stddev, name="output")(out)
        return dropout(out, spec.dropout, output_key), layer

    def _project(
        self, x: Float[Array, "batch length width"], tokens: Tokens | None
    ) -> tuple[
        Float[Array, "batch length heads head_dim"],
        Float[Array, "batch length heads rotary_dim"],
        Float[Array, "batch length rank"],
        Float[Array, "batch length 1 rotary_dim"],
    ]:
        """Returns the queries' two parts, the latents, and the turned part of the keys."""
        spec, geometry, mechanism = self.spec, self.spec.geometry, self.spec.mechanism
        assert isinstance(mechanism, Latent)
        (rank, turned_dim), width = mechanism.sizes(geometry), geometry.width
        down = Linear((width,), (rank + turned_dim,), False, spec.stddev, name="latent")(x)
        latent, shared = jnp.split(down, [rank], axis=-1)
        latent = Norm("rms", name="latent_norm")(latent)
        source, inputs = x, width
        if mechanism.query_rank is not None:
            inputs = mechanism.query_rank
            source = Linear((width,), (inputs,), False, spec.stddev, name="query_latent")(x)
            source = Norm("rms", name="query_latent_norm")(source)
        channels = (geometry.heads, geometry.head_dim + turned_dim)
        q = Linear((inputs,), channels, False, spec.stddev, name="query")(source)
        q, q_turned = jnp.split(q, [geometry.head_dim], axis=-1)
        q_turned, shared = turned(spec.positions, tokens, q_turned, shared[:, :, None])
        return q, q_turned, latent, shared
