"""Linear and recurrent attention: projections around ``recurrent``."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from research.attention.cache import Slots
from research.attention.convolution import next_tail, short_convolution
from research.attention.dropout import dropout
from research.attention.masks import Tokens
from research.attention.positions import Rotary
from research.attention.recurrent import both_ways, document_starts, read, recurrent, written
from research.attention.recurrent_mechanisms import Recurrent, RecurrentState
from research.modules.attention import AttentionSpec, rows_of_memory, turned
from research.modules.linear import Linear
from research.modules.norm import Norm


class RecurrentAttention(nn.Module):
    """Attention through a state matrix per head, in any of the forms of ``Recurrent``.

    Its decoding state has one size, whatever the length. Dropout acts on the output: there are no weights.
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
        projected: RecurrentState | None = None,
        cache: tuple[RecurrentState, Slots] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length width"], RecurrentState | None]:
        """Returns the output and the state: the memory's or, when a cache is given, that after these tokens.

        Arguments as for ``MultiHeadAttention``; a memory is read by the forms that have no decay. The first
        document of a row continues the cache's.
        """
        spec, form = self.spec, self._form
        tokens, x, real, document = documents(tokens, x)
        state = None if cache is None else cache[0]
        source = x if memory is None else memory
        q, k, v = self._project(x, source)
        tail = None
        if form.convolution is not None and memory is None:
            q, k, v, tail = self._convolve(q, k, v, real, document, None if state is None else state.tail)
        if form.activated or form.convolution is not None:
            q, k, v = (nn.silu(part) for part in (q, k, v))
        rotary = memory is None and isinstance(spec.positions, Rotary)
        if rotary and not form.turned_features:
            q, k = turned(spec.positions, tokens, q, k)
        values = v
        feature_key, output_key = (None, None) if key is None else jax.random.split(key)
        q, k = form.features(q, k, feature_key)
        if form.shared:
            q, k = (jnp.broadcast_to(part, (*v.shape[:3], part.shape[-1])) for part in (q, k))
        k, log_decay = self._decay(x, k)
        strength = self._linear("strength", (spec.geometry.heads,))(x) if form.delta else None
        strength = None if strength is None else nn.sigmoid(strength.astype(jnp.float32))
        if form.normalised:  # one more value channel, of ones, sums the weights
            v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1).astype(q.dtype)
        after = None
        if memory is not None:
            # Where the state is given, nothing reads keys and values, and the compiler drops them.
            after = RecurrentState(written(k, v, memory_tokens), None) if projected is None else projected
            q, q_tokens = rows_of_memory(q, tokens, len(memory))
            out = read(q, after.memory, q_tokens).astype(v.dtype)
            out = out.reshape(*x.shape[:2], *out.shape[2:])
        else:
            before = None if state is None else state.memory
            rule = (log_decay, strength, tokens)
            if rotary and form.turned_features:  # what is read by turned features, its weights by the others
                parts = (None, None) if before is None else (before[..., :-1], before[..., -1:])
                weights, weight = self._recur(q, k, v[..., -1:], parts[1], *rule)
                q, k = turned(spec.positions, tokens, q, k)
                out, last = self._recur(q, k, v[..., :-1], parts[0], *rule)
                out = jnp.concatenate([out, weights], axis=-1)
                last = None if last is None or weight is None else jnp.concatenate([last, weight], axis=-1)
            else:
                out, last = self._recur(q, k, v, before, *rule)
            if state is not None and last is not None:
                after = RecurrentState(last, tail if form.convolution else None)
        if form.normalised:
            total = out[..., -1:]
            # By the size of the sum first, which may be so small that the derivative of a quotient, with its
            # square, would not be finite.
            one = jnp.ones((), out.dtype)
            size = jax.lax.stop_gradient(jnp.where(total == 0, one, total))
            out = (out[..., :-1] / size) / jnp.where(total == 0, one, total / size)
        out = self._output(x, out.astype(x.dtype), values)
        return dropout(out, spec.dropout, output_key), after

    def _recur(
        self,
        q: Float[Array, "batch length heads features"],
        k: Float[Array, "batch length heads features"],
        v: Float[Array, "batch length heads values"],
        state: Float[Array, "batch heads features values"] | None,
        log_decay: Float[Array, "*decay"] | None,
        strength: Float[Array, "batch length heads"] | None,
        tokens: Tokens | None,
    ) -> tuple[Float[Array, "batch length heads values"], Float[Array, "batch heads features values"] | None]:
        """Returns what every token reads, and the state after the last (of both directions: none)."""
        if self.spec.causal:
            return recurrent(q, k, v, log_decay=log_decay, strength=strength, tokens=tokens, state=state)
        return both_ways(q, k, v, log_decay=log_decay, strength=strength, tokens=tokens), None

    @property
    def _form(self) -> Recurrent:
        assert isinstance(self.spec.mechanism, Recurrent)
        return self.spec.mechanism

    def _linear(self, name: str, outputs: tuple[int, ...], inputs: int | None = None) -> Linear:
        """Returns a map without bias from the width (or ``inputs`` channels)."""
        inputs = self.spec.geometry.width if inputs is None else inputs
        return Linear((inputs,), outputs, False, self.spec.stddev, name=name)

    def _project(
        self, x: Float[Array, "batch length width"], source: Float[Array, "memories source_length width"]
    ) -> tuple[
        Float[Array, "batch length key_heads key_dim"],
        Float[Array, "memories source_length key_heads key_dim"],
        Float[Array, "memories source_length heads value_dim"],
    ]:
        """Returns queries of x, and keys and values of ``source``."""
        geometry, form = self.spec.geometry, self._form
        names = ("read_key", "write_key") if form.shared else ("query", "key")
        keys = (1 if form.shared else geometry.heads, form.keys(geometry))
        values = (geometry.heads, geometry.head_dim)
        q, k = (self._linear(name, keys)(x) for name, x in zip(names, (x, source), strict=True))
        return q, k, self._linear("value", values)(source)

    def _convolve(
        self,
        q: Float[Array, "batch length key_heads key_dim"],
        k: Float[Array, "batch length key_heads key_dim"],
        v: Float[Array, "batch length heads value_dim"],
        real: Bool[Array, "#batch length"] | None,
        document: Int[Array, "#batch length"] | None,
        tail: Float[Array, "batch before channels"] | None,
    ) -> tuple[Array, Array, Array, Float[Array, "batch before channels"] | None]:
        """Returns queries, keys and values after the short convolution, and the tail after them."""
        width = self._form.convolution
        assert width is not None
        init = nn.initializers.normal((3 * width) ** -0.5)  # the variance of PyTorch's default
        parts = {"query_convolution": q, "key_convolution": k, "value_convolution": v}
        kernel = jnp.concatenate(
            [
                self.param(name, init, (width, *part.shape[2:]), jnp.float32).reshape(width, -1)
                for name, part in parts.items()
            ],
            axis=-1,
        )
        flat = jnp.concatenate([part.reshape(*part.shape[:2], -1) for part in parts.values()], axis=-1)
        out = short_convolution(flat, kernel, document=document, tail=tail)
        if self._form.convolution_bias:
            uniform = functools.partial(_initial_bias, most=width**-0.5)  # PyTorch's default
            bias = [
                self.param(f"{name}_bias", uniform, part.shape[2:], jnp.float32).reshape(-1)
                for name, part in parts.items()
            ]
            out = out + jnp.concatenate(bias).astype(out.dtype)[None, None]
        if tail is not None:
            tail = next_tail(tail, flat, real=real, document=document)
        ends = np.cumsum([math.prod(part.shape[2:]) for part in parts.values()])[:-1]
        q, k, v = (
            part.reshape(like.shape)
            for part, like in zip(jnp.split(out, ends, axis=-1), parts.values(), strict=True)
        )
        return q, k, v, tail

    def _decay(
        self, x: Float[Array, "batch length width"], k: Float[Array, "memories source_length heads features"]
    ) -> tuple[Float[Array, "memories source_length heads features"], Float[Array, "*decay"] | None]:
        """Returns the keys, times the step where the form has one, and the log decay, float32."""
        form, geometry = self._form, self.spec.geometry
        heads = geometry.heads
        if form.decay == "none":
            return k, None
        if form.decay == "fixed":
            spread = np.linspace(math.log(1 / 32), math.log(1 / 512), heads)
            return k, jnp.asarray(np.log1p(-np.exp(spread)), jnp.float32)
        if form.decay == "scalar":
            shape: tuple[int, ...] = (heads,)
            logits = self._linear("forget", shape)(x)
        else:
            rank, shape = form.decay_rank(geometry), (heads, form.keys(geometry))
            logits = self._linear("decay", shape, rank)(self._linear("decay_latent", (rank,))(x))
        if not form.rated:
            bias = self.param("decay_bias", nn.initializers.zeros, shape, jnp.float32)
            return k, form.log_decay(logits.astype(jnp.float32) + bias[None, None], None)
        bias = self.param("decay_bias", _initial_step, shape, jnp.float32)
        rates = functools.partial(_initial_log_rate, slowest=form.slowest_rate)
        rate = self.param("decay_scale", rates, (heads,), jnp.float32)
        logits = logits.astype(jnp.float32) + bias[None, None]
        log_decay = form.log_decay(logits, rate.reshape(1, 1, heads, *(1,) * (len(shape) - 1)))
        if form.stepped:
            k = (k.astype(jnp.float32) * jax.nn.softplus(logits)[..., None]).astype(k.dtype)
        return k, log_decay

    def _output(
        self,
        x: Float[Array, "batch length width"],
        out: Float[Array, "batch length heads value_dim"],
        values: Float[Array, "memories source_length heads value_dim"],
    ) -> Float[Array, "batch length width"]:
        """Returns what the heads read, with skip connection, norm and gate, projected to the width."""
        spec, form, geometry = self.spec, self._form, self.spec.geometry
        heads = (geometry.heads, geometry.head_dim)
        if form.stepped:
            skip = self.param("skip_scale", nn.initializers.ones, (geometry.heads,), jnp.float32)
            out = out + values * skip.astype(out.dtype)[None, None, :, None]
        if form.norm:
            out = Norm("rms", epsilon=form.norm_epsilon, name="output_norm")(out)
        if form.gate:
            gate = self._linear("output_gate", heads)(x)
            out = out * (nn.silu(gate) if form.gate_function == "silu" else nn.sigmoid(gate))
        return Linear(heads, (geometry.width,), spec.bias, spec.output_stddev, name="output")(out)


def documents(
    tokens: Tokens | None, x: Float[Array, "batch length width"]
) -> tuple[
    Tokens | None,
    Float[Array, "batch length width"],
    Bool[Array, "#batch length"] | None,
    Int[Array, "#batch length"] | None,
]:
    """Returns the tokens (None: one document without padding), x with 0 at padding, what is real, and the
    number of each token's document in its row."""
    if tokens is None or (tokens.in_order and tokens.segments is None):
        return None, x, None, None
    tokens = jax.tree.map(jnp.asarray, tokens)
    document = jnp.cumsum(document_starts(tokens), axis=1, dtype=jnp.int32)
    return tokens, jnp.where(tokens.real[:, :, None], x, jnp.zeros((), x.dtype)), tokens.real, document


def _initial_log_rate(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any, slowest: float) -> Array:
    """Returns the log of rates that are uniform on (slowest, 16] (Mamba-2's initialisation)."""
    return jnp.log(16.0 - jax.random.uniform(key, shape, dtype, 0.0, 16.0 - slowest))


def _initial_bias(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any, most: float) -> Array:
    """Returns biases that are uniform on [-most, most)."""
    return jax.random.uniform(key, shape, dtype, -most, most)


def _initial_step(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any) -> Array:
    """Returns biases for which softplus gives steps log-uniform on [0.001, 0.1] (as Mamba-2 begins)."""
    step = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(1e-3), math.log(0.1)))
    return step + jnp.log(-jnp.expm1(-step))
