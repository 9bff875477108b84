"""NSA's layer."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.attention.cache import Slots
from research.attention.chosen_blocks import summarised_and_chosen
from research.attention.dropout import dropout
from research.attention.engines import attend
from research.attention.masks import Tokens, Window, positions_of
from research.attention.native_sparse import (
    NSA,
    Layout,
    SparseState,
    completed,
    layout,
    layout_of_one,
    ranks,
    summaries,
)
from research.modules.attention import AttentionSpec, scale, self_mask, turned
from research.modules.linear import Linear
from research.modules.recurrent import documents

KeysValues = tuple[Float[Array, "batch _ kv_heads head_dim"], Float[Array, "batch _ kv_heads head_dim"]]
Places = tuple[Int[Array, "batch q_len"], Int[Array, "batch q_len"], Layout]
"""Rank of each query, first rank of its document, and the layout of the keys."""


class NativeSparseAttention(nn.Module):
    """Summaries, chosen blocks and a window, gated (Yuan et al., 2025; see ``NSA``)."""

    spec: AttentionSpec

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        tokens: Tokens | None = None,
        *,
        cache: tuple[SparseState, Slots] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length width"], SparseState | None]:
        """Returns the output and, when a cache is given, the state after this call's tokens."""
        spec, geometry = self.spec, self.spec.geometry
        given, x, _, _ = documents(tokens, x)
        q = self._linear("query", geometry.heads)(x)
        kv, raw, near = (
            (
                self._linear(f"{name}key", geometry.kv_heads)(x),
                self._linear(f"{name}value", geometry.kv_heads)(x),
            )
            for name in ("", "summary_", "window_")
        )
        by_token, k, near_k = turned(spec.positions, tokens, q, kv[0], near[0])
        kv, near, near_tokens, after = (k, kv[1]), (near_k, near[1]), tokens, None
        if cache is None:
            kv, compressed, places = self._parallel(kv, raw, given)
        else:
            after, kv, compressed, places = self._extended(kv, raw, positions_of(tokens, x.shape[1]), cache)
            ring, seen, near_tokens = after.window.extend(*near, positions_of(tokens, x.shape[1]), cache[1])
            after, near = dataclasses.replace(after, window=ring), (seen.keys, seen.values)
        factor = scale(spec, geometry.head_dim)
        of_summaries, of_blocks = summarised_and_chosen(
            (q, by_token), compressed, kv, *places, self._form, (geometry.head_dim**-0.5, factor)
        )
        of_window = attend(
            by_token, *near, scale=factor, q_tokens=tokens, kv_tokens=near_tokens, engine=spec.engine,
            mask=self_mask(Window(self._form.window - 1, 0), tokens, causal=True),
        )  # fmt: skip
        heads = (geometry.heads, geometry.head_dim)
        gates = Linear((geometry.width,), (geometry.heads, 3), spec.bias, spec.stddev, name="branch_gate")(x)
        of_each = jnp.split(nn.sigmoid(gates), 3, axis=-1)
        out = of_each[0] * of_summaries + of_each[1] * of_blocks + of_each[2] * of_window
        out = Linear(heads, (geometry.width,), spec.bias, spec.output_stddev, name="output")(out)
        return dropout(out, spec.dropout, key), after

    @property
    def _form(self) -> NSA:
        assert isinstance(self.spec.mechanism, NSA)
        return self.spec.mechanism

    def _linear(self, name: str, heads: int) -> Linear:
        """Returns a map from the width to heads."""
        spec, geometry = self.spec, self.spec.geometry
        return Linear((geometry.width,), (heads, geometry.head_dim), spec.bias, spec.stddev, name=name)

    def _compressed(self, raw: KeysValues, first: Int[Array, "batch summaries"]) -> KeysValues:
        """Returns keys and values of the summaries."""
        size, dim = self._form.summary, self.spec.geometry.head_dim
        found = []
        for name, x in zip(("key", "value"), raw, strict=True):
            normal = nn.initializers.normal
            shapes = {
                "places": ((size, dim), self.spec.stddev),
                "hidden": ((size, dim, dim), (size * dim) ** -0.5),
                "output": ((dim, dim), dim**-0.5),
            }
            weights = (
                self.param(f"{name}_summary_{part}", normal(deviation), shape, jnp.float32)
                for part, (shape, deviation) in shapes.items()
            )
            found.append(summaries(x, first, *weights))
        return found[0], found[1]

    def _parallel(
        self, kv: KeysValues, raw: KeysValues, tokens: Tokens | None
    ) -> tuple[KeysValues, KeysValues, Places]:
        """Returns keys and values of all tokens by rank, of all summaries, and where queries and keys are."""
        batch, length = kv[0].shape[:2]
        if tokens is None:
            rank = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (batch, length))
            start, whole = jnp.zeros_like(rank), jnp.full((batch, 1), length, jnp.int32)
            places = layout_of_one(whole, length, self._form)
        else:
            rank, start, order = ranks(tokens, batch)
            start_by_rank = jnp.take_along_axis(start, order, axis=1)
            start_by_rank = jnp.where(start_by_rank < 0, length, start_by_rank)
            if not tokens.in_order:
                by_rank = functools.partial(jnp.take_along_axis, indices=order[:, :, None, None], axis=1)
                kv, raw = jax.tree.map(by_rank, (kv, raw))
            places = layout(start_by_rank, self._form)
        return kv, self._compressed(raw, places.summary), (rank, start, places)

    def _extended(
        self, kv: KeysValues, raw: KeysValues, positions: Int[Array, "#batch length"],
        cache: tuple[SparseState, Slots],
    ) -> tuple[SparseState, KeysValues, KeysValues, Places]:  # fmt: skip
        """Returns the state with new tokens but for their window, and what ``_parallel`` does, from it."""
        state, slots = cache
        batch, length = kv[0].shape[:2]
        positions = jnp.broadcast_to(positions, (batch, length))
        row = jnp.arange(batch)[:, None]

        def put(kept: Array, new: Array, at: Array) -> Array:  # what has no place is dropped
            return kept.at[row, at].set(new.astype(kept.dtype), mode="drop")

        recent, *tokens, first, number = completed(state.recent, *raw, positions, slots, self._form)
        new = self._compressed((tokens[0], tokens[1]), first)
        state = SparseState(
            put(state.keys, kv[0], positions), put(state.values, kv[1], positions),
            put(state.compressed_keys, new[0], number), put(state.compressed_values, new[1], number),
            recent, state.window,
        )  # fmt: skip
        size = state.keys.shape[1]
        real = positions < size
        count = slots.tokens.real.sum(axis=1, keepdims=True, dtype=jnp.int32)
        whole = layout_of_one(count, size, self._form)
        places = (jnp.where(real, positions, 0), jnp.where(real, 0, -1), whole)
        dtype = kv[0].dtype
        kv = (state.keys.astype(dtype), state.values.astype(dtype))
        return state, kv, (state.compressed_keys.astype(dtype), state.compressed_values.astype(dtype)), places
