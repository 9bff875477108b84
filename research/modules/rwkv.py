"""RWKV-7's time mixing: projections around ``recurrent``."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.attention.cache import Slots
from research.attention.convolution import next_tail, short_convolution
from research.attention.dropout import dropout
from research.attention.masks import Tokens
from research.attention.recurrent import both_ways, recurrent
from research.attention.recurrent_mechanisms import RecurrentState
from research.attention.rwkv import RWKV7, replacement, slow_decay
from research.modules.attention import AttentionSpec
from research.modules.linear import Linear
from research.modules.norm import layer_norm
from research.modules.recurrent import documents

MIXTURES = {"query": 0.2, "decay": 0.9, "key": 0.7, "value": 0.7, "rate": 0.9, "gate": 0.2}
"""What reads a mixture of its own of a token and the one before it, and how steeply the share of the token
itself, (n / width)^power, rises with the channel n at first (the authors', of the first layer)."""
KEY_SHARE = 0.1
"""What the key's weights begin with, of the others' (the authors')."""


class RWKV7Attention(nn.Module):
    """RWKV-7's time mixing (Peng et al., 2025; see ``RWKV7``). Dropout acts on the output."""

    spec: AttentionSpec

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        tokens: Tokens | None = None,
        *,
        cache: tuple[RecurrentState, Slots] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length width"], RecurrentState | None]:
        """Returns the output and, when a cache is given, the state after this call's tokens."""
        spec, geometry = self.spec, self.spec.geometry
        state = None if cache is None else cache[0]
        tokens, x, real, document = documents(tokens, x)
        tail = None if state is None else state.tail
        ones = jnp.ones((1, geometry.width), jnp.float32)
        token_before = jnp.concatenate([ones, jnp.zeros_like(ones)])
        mixed = self._mixtures(x, short_convolution(x, token_before, document=document, tail=tail))
        q, k, v = (
            self._linear(name, geometry.width, (geometry.heads, geometry.head_dim), share)(mixed[name])
            for name, share in (("query", 1.0), ("key", KEY_SHARE), ("value", 1.0))
        )
        low, gate_rank = self._form.ranks(geometry)
        hidden = nn.tanh(self._linear("decay_latent", geometry.width, (low,))(mixed["decay"]))
        log_decay = slow_decay(self._raised("decay", hidden, _initial_decay))
        hidden = self._linear("rate_latent", geometry.width, (low,))(mixed["rate"])
        rate = nn.sigmoid(self._raised("rate", hidden, nn.initializers.zeros))
        scales = (self._vector(name, nn.initializers.ones) for name in ("removal_scale", "rate_scale"))
        k, removal = replacement(k, rate, log_decay, *scales)
        after = None
        if spec.causal:
            out, last = recurrent(
                q, k, v, log_decay=log_decay, removal=removal, tokens=tokens,
                state=None if state is None else state.memory,
            )  # fmt: skip
            if state is not None:
                assert tail is not None
                after = RecurrentState(last, next_tail(tail, x, real=real, document=document))
        else:
            out = both_ways(q, k, v, log_decay=log_decay, removal=removal, tokens=tokens)
        one = jnp.ones((geometry.head_dim,), jnp.float32)
        out = layer_norm(out.astype(jnp.float32), one, None, geometry.head_dim * 1e-5)
        out = out * self._vector("read_scale", nn.initializers.ones)[None, None]
        out = out + self._vector("read_bias", nn.initializers.zeros)[None, None]
        bonus = self._vector("bonus_scale", nn.initializers.zeros)[None, None]
        products = q.astype(jnp.float32) * k.astype(jnp.float32) * bonus
        out = out + products.sum(-1, keepdims=True) * v.astype(jnp.float32)
        hidden = nn.sigmoid(self._linear("read_gate_latent", geometry.width, (gate_rank,))(mixed["gate"]))
        heads = (geometry.heads, geometry.head_dim)
        out = out.astype(x.dtype) * self._linear("read_gate", gate_rank, heads)(hidden)
        out = Linear(heads, (geometry.width,), spec.bias, spec.output_stddev, name="output")(out)
        return dropout(out, spec.dropout, key), after

    @property
    def _form(self) -> RWKV7:
        assert isinstance(self.spec.mechanism, RWKV7)
        return self.spec.mechanism

    def _linear(self, name: str, inputs: int, outputs: tuple[int, ...], share: float = 1.0) -> Linear:
        """Returns a map without bias, whose weights begin with a share of the usual deviation."""
        return Linear((inputs,), outputs, False, share * self.spec.stddev, name=name)

    def _vector(self, name: str, init: Any) -> Float[Array, "heads head_dim"]:
        """Returns a parameter per channel of each head."""
        shape = (self.spec.geometry.heads, self.spec.geometry.head_dim)
        return self.param(name, init, shape, jnp.float32)

    def _mixtures(
        self, x: Float[Array, "batch length width"], before: Float[Array, "batch length width"]
    ) -> dict[str, Float[Array, "batch length width"]]:
        """Returns the mixtures of the tokens and those before them, by what reads them."""

        def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any) -> Array:
            del key
            place = jnp.arange(shape[1], dtype=dtype) / shape[1]
            return jnp.stack([1.0 - place**power for power in MIXTURES.values()])

        shares = self.param("shift_scale", init, (len(MIXTURES), x.shape[-1]), jnp.float32).astype(x.dtype)
        less = before - x
        return {name: x + less * share[None, None] for name, share in zip(MIXTURES, shares, strict=True)}

    def _raised(
        self, name: str, hidden: Float[Array, "batch length rank"], init: Any
    ) -> Float[Array, "batch length heads head_dim"]:
        """Returns a map of the low rank to every channel of the heads, with a bias, float32."""
        heads = (self.spec.geometry.heads, self.spec.geometry.head_dim)
        raised = self._linear(name, hidden.shape[-1], heads)(hidden).astype(jnp.float32)
        return raised + self._vector(f"{name}_bias", init)[None, None]


def _initial_decay(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any) -> Float[Array, "heads head_dim"]:
    """Returns logits from -5.5 to 0.5 over all channels, and over those of each head from 2.5 below to 2.5
    above them, in a curve that is flat in its middle (the authors' zigzag)."""
    del key
    heads, head_dim = shape
    over_all = jnp.linspace(-5.5, 0.5, heads * head_dim, dtype=dtype).reshape(shape)
    within = jnp.linspace(-1.0, 1.0, head_dim, dtype=dtype)
    return over_all + (2.5 * within * jnp.abs(within))[None]
