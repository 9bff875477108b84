"""The position-wise feed-forward network."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from research.attention.dropout import dropout
from research.modules.linear import Linear

FeedForwardName = Literal["gelu", "relu", "relu2", "silu", "swiglu", "geglu", "exact-gelu", "exact-geglu"]

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),  # GPT-2's tanh form (Hendrycks & Gimpel, 2016)
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,  # Marian's "swish"
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # So et al., 2021
    "swiglu": jax.nn.silu,  # of the gate (Shazeer, 2020)
    "geglu": lambda x: jax.nn.gelu(x, approximate=True),  # of the gate (T5 1.1)
    "exact-gelu": lambda x: jax.nn.gelu(x, approximate=False),  # BERT's
    "exact-geglu": lambda x: jax.nn.gelu(x, approximate=False),  # of the gate (ModernBERT)
}
GATED = ("swiglu", "geglu", "exact-geglu")
"""Activations of a third linear map, the gate, which multiplies the hidden units."""


class FeedForward(nn.Module):
    """Two linear maps with an activation between them (Vaswani et al., 2017, eq. 2); some with a gate."""

    width: int
    hidden: int
    activation: FeedForwardName = "gelu"
    bias: bool = True
    dropout: float = 0.0
    stddev: float = 0.02
    output_stddev: float = 0.02

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length width"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch length width"]:
        """Returns the network's output, dropped out when a key is given."""
        inputs, hidden = (self.width,), (self.hidden,)
        h = Linear(inputs, hidden, self.bias, self.stddev, name="up")(x)
        if self.activation in GATED:
            gate = Linear(inputs, hidden, self.bias, self.stddev, name="gate")(x)
            h = ACTIVATIONS[self.activation](gate) * h
        else:
            h = ACTIVATIONS[self.activation](h)
        out = Linear(hidden, inputs, self.bias, self.output_stddev, name="down")(h)
        return dropout(out, self.dropout, key)
