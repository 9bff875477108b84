"""Long short-term memory: the cell, layers by ``lax.scan`` with the input products outside, and stacks."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Key

from research.attention.devices import BATCH_AXES
from research.attention.dropout import dropout
from research.modules.linear import linear
from research.modules.placement import rows_apart


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
    i, f, g, o = jnp.split(activated(gates), 4, axis=-1)
    memory = f * memory + i * g
    return o * jnp.tanh(memory), memory


def activated(gates: Float[Array, "batch gates"]) -> Float[Array, "batch gates"]:
    """Returns the gates, tanh of the candidate's quarter and the logistic function of the others.

    sigmoid(x) = (1 + tanh(x / 2)) / 2: one function for all, and so one loop on a CPU.
    """
    width = gates.shape[-1] // 4
    place = jax.lax.broadcasted_iota(jnp.int32, (1, 4 * width), 1) // width
    scale = jnp.where(place == 2, 1.0, 0.5).astype(gates.dtype)
    return jnp.tanh(gates * scale) * scale + (1.0 - scale)


def lstm(
    projected: Float[Array, "length batch gates"],
    recurrent: Float[Array, "width gates"],
    state: CellState,
    present: Bool[Array, "length batch"] | None = None,
    *,
    reverse: bool = False,
) -> tuple[Float[Array, "length batch width"], CellState]:
    """Returns the hidden state at every token, and the state after the last (with ``reverse``, the first).

    Tokens come before rows, as the loop reads them: nothing of four times the width is transposed.

    Args:
      projected: W x + b of every token: one product for all, outside the loop.
      recurrent: U.
      state: the state before.
      present: tokens that are real; others leave the state as it is, give 0 and may hold NaN.
      reverse: go from the last token to the first.
    """
    if present is not None:
        projected = jnp.where(present[..., None], projected, jnp.zeros((), projected.dtype))
    hidden, end = _recurrence(reverse, recurrent.astype(projected.dtype), state, projected, present)
    return hidden if present is None else jnp.where(present[..., None], hidden, 0.0), end


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(
    reverse: bool,
    recurrent: Float[Array, "width gates"],
    state: CellState,
    projected: Float[Array, "length batch gates"],
    present: Bool[Array, "length batch"] | None,
) -> tuple[Float[Array, "length batch width"], CellState]:
    """Returns the hidden states at all tokens and the state after them.

    Its gradient is written out, once and in reverse only: U's is one product over all tokens after the loop,
    not a sum of one per token in it, and no gate is computed twice.
    """
    return _forward(reverse, recurrent, state, projected, present)[0]


def _forward(
    reverse: bool, recurrent: Array, state: CellState, projected: Array, present: Array | None
) -> tuple[Any, Any]:
    def step(state: CellState, token: Any) -> tuple[CellState, Any]:
        gates = activated(token[0] + state.hidden @ recurrent)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        memory = f * state.memory + i * g
        after = CellState(o * jnp.tanh(memory), memory)
        if token[1] is not None:
            pairs = zip(after, state, strict=True)
            after = CellState(*(jnp.where(token[1][:, None], new, old) for new, old in pairs))
        return after, (after, gates)

    end, (states, gates) = jax.lax.scan(step, state, (projected, present), reverse=reverse)
    return (states.hidden, end), (recurrent, state, states, gates, present)


def _backward(reverse: bool, saved: Any, cotangents: Any) -> Any:
    recurrent, begin, states, gates, present = saved
    outputs, end = cotangents
    before = CellState(*(_shifted(reverse, *x) for x in zip(begin, states, strict=True)))
    # All that does not wait for the token after, for all tokens at once: the derivatives of the gates' inputs
    # by the memory (three of them) and the hidden state, and those of these two.
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    read = jnp.tanh(states.memory)
    parts = (g * i * (1 - i), before.memory * f * (1 - f), i * (1 - g * g), read * o * (1 - o))
    by_state, by_hidden = jnp.stack(parts, axis=2), o * (1 - read * read)
    kept = None
    if present is not None:  # a token that is none passes on what it is given
        kept = jnp.where(present, 0, 1).astype(outputs.dtype)[..., None]
        by_state = jnp.where(present[..., None, None], by_state, 0)
        by_hidden, f = jnp.where(present[..., None], by_hidden, 0), jnp.where(present[..., None], f, 1)

    def step(after: CellState, token: Any) -> tuple[CellState, Array]:
        output, by_state, by_hidden, f, kept = token
        of_hidden = output + after.hidden
        of_memory = after.memory + of_hidden * by_hidden
        gate = jax.lax.broadcasted_iota(jnp.int32, (1, 4, 1), 1)
        of_gates = by_state * jnp.where(gate == 3, of_hidden[:, None], of_memory[:, None])
        of_gates = of_gates.reshape(len(output), -1)
        back = of_gates @ recurrent.T
        return CellState(back if kept is None else back + kept * of_hidden, of_memory * f), of_gates

    tokens = (outputs, by_state, by_hidden, f, kept)
    state, of_gates = jax.lax.scan(step, end, tokens, reverse=not reverse)
    # Transposed first, or XLA's product over rows is a third slower.
    hidden = jax.lax.optimization_barrier(before.hidden.reshape(-1, len(recurrent)).T)
    # `present` has no gradient.
    return hidden @ of_gates.reshape(-1, recurrent.shape[1]), state, of_gates, None


def _shifted(
    reverse: bool, first: Float[Array, "batch width"], after: Float[Array, "length batch width"]
) -> Float[Array, "length batch width"]:
    """Returns what was before each token, given what was before the first and what is after each."""
    parts = (after[1:], first[None]) if reverse else (first[None], after[:-1])
    return jnp.concatenate(parts, axis=0)


_recurrence.defvjp(_forward, _backward)


def layer(
    x: Float[Array, "length batch inputs"],
    weights: tuple[Float[Array, "inputs gates"], Float[Array, "width gates"], Float[Array, " gates"]],
    present: Bool[Array, "length batch"] | None,
    *,
    reverse: bool,
) -> tuple[Float[Array, "length batch width"], CellState]:
    """Returns what `lstm` returns, from its inputs; ``weights`` are kernel, recurrent kernel and bias."""
    kernel, recurrent, bias = weights
    state = CellState.zeros(x.shape[1], len(recurrent), x.dtype)
    return lstm(linear(x, kernel, bias), recurrent, state, present, reverse=reverse)


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
        x, present = x.swapaxes(0, 1), None if present is None else present.T
        rows, tokens = P(BATCH_AXES), P(None, BATCH_AXES)
        for number in range(self.layers):
            if number:
                x = dropout(x, self.dropout, None if key is None else jax.random.fold_in(key, number))
            outputs, ends = [], []
            for direction in directions:
                weights = LSTMWeights(x.shape[-1], width, name=f"{direction}_{number}")()
                run = functools.partial(layer, reverse=direction == "backward")
                out, end = rows_apart(run, (tokens, P(), tokens), (tokens, rows))(x, weights, present)
                outputs.append(out)
                ends.append(end)
            x = jnp.concatenate(outputs, axis=-1)
            states.append(CellState(*(jnp.concatenate(parts, axis=-1) for parts in zip(*ends, strict=True))))
        return x.swapaxes(0, 1), CellState(*(jnp.stack(parts) for parts in zip(*states, strict=True)))
