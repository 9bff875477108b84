"""Attention as pure functions: arrays in, arrays out."""

from research.attention.engines import attend
from research.attention.masks import (
    And,
    Causal,
    Everything,
    Mask,
    Not,
    Or,
    Present,
    SameSegment,
    Tokens,
    Window,
)

__all__ = [
    "And",
    "Causal",
    "Everything",
    "Mask",
    "Not",
    "Or",
    "Present",
    "SameSegment",
    "Tokens",
    "Window",
    "attend",
]
