"""Which module computes which attention mechanism."""

from __future__ import annotations

import flax.linen as nn

from research.attention.mechanisms import Mechanism, Softmax
from research.modules.attention import AttentionSpec, MultiHeadAttention

MIXERS: dict[type[Mechanism], type[nn.Module]] = {Softmax: MultiHeadAttention}
"""Modules by kind of mechanism, subclasses included. Each is called as ``MultiHeadAttention`` is: input,
tokens, memory, cache, key -> output, cache."""


def mixer(spec: AttentionSpec, name: str) -> nn.Module:
    """Returns the module of the mechanism that ``spec`` names."""
    module = next(module for kind, module in MIXERS.items() if isinstance(spec.mechanism, kind))
    return module(spec, name=name)
