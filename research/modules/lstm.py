"""Long short-term memory: the cell, layers by ``lax.scan`` with the input products outside, and stacks."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from research.attention.dropout import dropout
from research.modules.linear import linear


class CellState(NamedTuple):
    """State of a cell (or, with a leading axis, of the cells of a stack)."""

    hidden: Float[Array, "*layers batch width"]
    memory: Float[Array, "*layers batch width"]

    @classmethod
    def zeros(cls, batch: int, width: int, dtype: jnp.dtype) -> CellState:
        """Returns the state before the first token."""
        return cls(jnp.zeros((batch, width), dtype), jnp.zeros((batch, width), dtype))


def lstm_cell(
    gates: Float[Array, "batch gates"], memory: Float[Array, "batch width"]
) -> tuple[Float[Array, "batch width"], Float[Array, "batch width"]]:
    """Returns hidden state and memory after one token (Hochreiter & Schmidhuber, 1997; Gers et al., 2000).

    Args:
      gates: W x + U h + b of the input, forget, candidate and output gates, side by side: 4 * width.
      memory: the memory before.
    """
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    memory = nn.sigmoid(f) * memory + nn.sigmoid(i) * jnp.tanh(g)
    return nn.sigmoid(o) * jnp.tanh(memory), memory


def lstm(
    projected: Float[Array, "batch length gates"],
    recurrent: Float[Array, "width gates"],
    state: CellState,
    present: Bool[Array, "batch length"] | None = None,
    *,
    reverse: bool = False,
) -> tuple[Float[Array, "batch length width"], CellState]:
    """Returns the hidden state at every token, and the state after the last (with ``reverse``, the first).

    Args:
      projected: W x + b of every token: one product for all, outside the loop.
      recurrent: U.
      state: the state before.
      present: tokens that are real; others leave the state as it is, give 0 and may hold NaN.
      reverse: go from the last token to the first.
    """
    if present is not None:
        projected = jnp.where(present[..., None], projected, jnp.zeros((), projected.dtype))
    tokens = (projected.swapaxes(0, 1), None if present is None else present.T)
    outputs, state = _recurrence(reverse, recurrent.astype(projected.dtype), state, tokens)
    return outputs.swapaxes(0, 1), state


Token = tuple[Array, Array | None]
"""Projected inputs, and whether they are real; with a leading axis, those of all tokens."""


def _after(
    gates: Float[Array, "batch gates"], state: CellState, here: Bool[Array, " batch"] | None
) -> tuple[CellState, Float[Array, "batch width"]]:
    """Returns the state after a token, and what is put out."""
    after = CellState(*lstm_cell(gates, state.memory))
    if here is None:
        return after, after.hidden
    after = CellState(*(jnp.where(here[:, None], new, old) for new, old in zip(after, state, strict=True)))
    return after, jnp.where(here[:, None], after.hidden, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(
    reverse: bool, recurrent: Float[Array, "width gates"], state: CellState, tokens: Token
) -> tuple[Float[Array, "length batch width"], CellState]:
    """Returns the outputs of all tokens and the state after them.

    Its gradient is written out, once and in reverse only, so that U's is one product over all tokens after
    the loop, not a sum of one per token in it.
    """
    (outputs, state), _ = _forward(reverse, recurrent, state, tokens)
    return outputs, state


def _forward(reverse: bool, recurrent: Array, state: CellState, tokens: Token) -> tuple[Any, Any]:
    def step(state: CellState, token: Token) -> tuple[CellState, Any]:
        gates = token[0] + state.hidden @ recurrent
        after, output = _after(gates, state, token[1])
        return after, (output, gates, state)

    end, (outputs, gates, before) = jax.lax.scan(step, state, tokens, reverse=reverse)
    return (outputs, end), (recurrent, gates, before, tokens[1])


def _backward(reverse: bool, saved: Any, cotangents: Any) -> Any:
    recurrent, gates, before, present = saved
    outputs, end = cotangents

    def step(after: CellState, token: Any) -> tuple[CellState, Array]:
        output, gates, before, here = token
        _, pull = jax.vjp(lambda gates, state: _after(gates, state, here), gates, before)
        of_gates, of_before = pull((after, output))
        return CellState(of_before.hidden + of_gates @ recurrent.T, of_before.memory), of_gates

    tokens = (outputs, gates, before, present)
    state, of_gates = jax.lax.scan(step, end, tokens, reverse=not reverse)
    of_recurrent = jnp.einsum("tbw,tbg->wg", before.hidden, of_gates)
    # `present` has no gradient.
    return of_recurrent, state, (of_gates, None)


_recurrence.defvjp(_forward, _backward)


class LSTMWeights(nn.Module):
    """The parameters of one cell: kernel [inputs, 4 width], recurrent [width, 4 width], bias [4 width]."""

    inputs: int
    width: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array, Array]:
        """Returns kernel, recurrent kernel and bias."""

        def bias(key: Array, shape: tuple[int], dtype: Any) -> Array:
            # The forget gate begins open (Gers et al., 2000; Jozefowicz et al., 2015).
            del key
            return jnp.zeros(shape, dtype).at[self.width : 2 * self.width].set(1.0)

        normal = nn.initializers.normal
        gates = 4 * self.width
        return (
            self.param("kernel", normal(self.inputs**-0.5), (self.inputs, gates), jnp.float32),
            self.param("recurrent", normal(self.width**-0.5), (self.width, gates), jnp.float32),
            self.param("bias", bias, (gates,), jnp.float32),
        )


class LSTM(nn.Module):
    """Layers of LSTM one over the other; bidirectional ones have half the width in each direction."""

    width: int
    layers: int
    bidirectional: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length inputs"],
        present: Bool[Array, "batch length"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch length width"], CellState]:
        """Returns the last layer's outputs and the last states of all layers [layers, batch, width].

        Args:
          x: inputs.
          present: tokens that are real.
          key: key of the dropout between layers; None: no dropout.
        """
        directions = ("forward", "backward") if self.bidirectional else ("forward",)
        width = self.width // len(directions)
        states = []
        for layer in range(self.layers):
            if layer:
                x = dropout(x, self.dropout, None if key is None else jax.random.fold_in(key, layer))
            outputs, ends = [], []
            for direction in directions:
                weights = LSTMWeights(x.shape[-1], width, name=f"{direction}_{layer}")()
                kernel, recurrent, bias = weights
                out, end = lstm(
                    linear(x, kernel, bias), recurrent, CellState.zeros(len(x), width, x.dtype), present,
                    reverse=direction == "backward",
                )  # fmt: skip
                outputs.append(out)
                ends.append(end)
            x = jnp.concatenate(outputs, axis=-1)
            states.append(CellState(*(jnp.concatenate(parts, axis=-1) for parts in zip(*ends, strict=True))))
        return x, CellState(*(jnp.stack(parts) for parts in zip(*states, strict=True)))
