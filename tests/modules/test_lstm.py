"""The LSTM against float64 NumPy and against PyTorch's; padding; directions; layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from research.modules.lstm import LSTM, CellState, lstm

BATCH, LENGTH, INPUTS, WIDTH, LAYERS = 3, 5, 4, 6, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(BATCH, LENGTH, INPUTS))
LENGTHS = np.array([5, 3, 1])
PRESENT = np.arange(LENGTH)[None] < LENGTHS[:, None]


def by_tokens(projected, recurrent, state, *, reverse):
    """``lstm`` with rows before tokens."""
    present = jnp.asarray(PRESENT.T)
    out, end = lstm(projected.swapaxes(0, 1), recurrent, state, present, reverse=reverse)
    return out.swapaxes(0, 1), end


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plain(x, recurrent, hidden, memory):
    """One row of projected inputs through the published equations."""
    outputs = []
    for token in x:
        i, f, g, o = np.split(token + hidden @ recurrent, 4)
        memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(memory)
        outputs.append(hidden)
    return np.array(outputs), hidden, memory


@pytest.mark.parametrize("reverse", [False, True])
def test_layer_is_the_equations_row_by_row(reverse):
    projected, recurrent = RNG.normal(size=(BATCH, LENGTH, 4 * WIDTH)), RNG.normal(size=(WIDTH, 4 * WIDTH))
    begin = CellState(RNG.normal(size=(BATCH, WIDTH)), RNG.normal(size=(BATCH, WIDTH)))
    dirty = np.where(PRESENT[..., None], projected, np.nan)
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (dirty, recurrent, begin))
    out, end = by_tokens(*single, reverse=reverse)
    for row, length in enumerate(LENGTHS):
        x = projected[row, :length][:: -1 if reverse else 1]
        wanted, hidden, memory = plain(x, recurrent, begin.hidden[row], begin.memory[row])
        np.testing.assert_allclose(out[row, :length], wanted[:: -1 if reverse else 1], atol=1e-5)
        np.testing.assert_allclose(end.hidden[row], hidden, atol=1e-5)
        np.testing.assert_allclose(end.memory[row], memory, atol=1e-5)
        assert not np.asarray(out[row, length:]).any()


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_are_those_of_finite_differences(reverse):
    with jax.enable_x64(True):
        arrays = (
            RNG.normal(size=(BATCH, LENGTH, 4 * WIDTH)), RNG.normal(size=(WIDTH, 4 * WIDTH)),
            CellState(RNG.normal(size=(BATCH, WIDTH)), RNG.normal(size=(BATCH, WIDTH))),
        )  # fmt: skip
        weights = RNG.normal(size=(3, BATCH, LENGTH, WIDTH))

        def loss(projected, recurrent, state):
            out, end = by_tokens(projected, recurrent, state, reverse=reverse)
            last = (end.hidden * weights[1, :, 0] + end.memory * weights[2, :, 0]).sum()
            return (out * weights[0]).sum() + last

        arrays = jax.tree.map(jnp.asarray, arrays)
        check_grads(jax.jit(loss), arrays, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_stack_is_that_of_pytorch(bidirectional):
    torch = pytest.importorskip("torch")
    stack = LSTM(WIDTH, LAYERS, bidirectional)
    x = jnp.asarray(X, jnp.float32)
    shapes = jax.eval_shape(stack.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), shapes)
    half = WIDTH // 2 if bidirectional else WIDTH
    theirs = torch.nn.LSTM(INPUTS, half, LAYERS, batch_first=True, bidirectional=bidirectional)
    with torch.no_grad():
        for name, p in params.items():
            direction, layer = name.split("_")
            suffix = f"_l{layer}{'_reverse' if direction == 'backward' else ''}"
            for field, value in (("weight_ih", p["kernel"].T), ("weight_hh", p["recurrent"].T),
                                 ("bias_ih", p["bias"]), ("bias_hh", 0 * p["bias"])):  # fmt: skip
                getattr(theirs, field + suffix).copy_(torch.tensor(value))
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            torch.tensor(np.asarray(x)), torch.tensor(LENGTHS), batch_first=True
        )
        out, (hidden, memory) = theirs(packed)
        out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=LENGTH)
    got, end = jax.jit(stack.apply)({"params": params}, x, jnp.asarray(PRESENT))
    np.testing.assert_allclose(got, out.numpy(), atol=1e-5)
    for ours, state in ((end.hidden, hidden), (end.memory, memory)):
        by_layer = state.numpy().reshape(LAYERS, -1, BATCH, half).transpose(0, 2, 1, 3).reshape(ours.shape)
        np.testing.assert_allclose(ours, by_layer, atol=1e-5)


def test_the_forget_gate_begins_open():
    params = LSTM(WIDTH, 1).init(jax.random.key(0), jnp.zeros((1, 1, INPUTS)))["params"]
    bias = np.asarray(params["forward_0"]["bias"])
    np.testing.assert_array_equal(bias, np.repeat([0.0, 1.0, 0.0, 0.0], WIDTH))
