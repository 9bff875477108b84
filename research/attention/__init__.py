"""Attention as pure functions: arrays in, arrays out."""

from research.attention.catalogue import Interleaved, capabilities
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
from research.attention.mechanisms import Differential, Forgetting, Latent, SlidingWindow, Softmax
from research.attention.sparse_masks import BlockMask, DilatedWindow, Fixed, Global, RandomBlocks, Strided
from research.attention.sparse_mechanisms import BigBird, Longformer, SparseTransformer

__all__ = [
    "And",
    "BigBird",
    "BlockMask",
    "Causal",
    "Differential",
    "DilatedWindow",
    "Everything",
    "Fixed",
    "Forgetting",
    "Global",
    "Interleaved",
    "Latent",
    "Longformer",
    "Mask",
    "Not",
    "Or",
    "Present",
    "RandomBlocks",
    "SameSegment",
    "SlidingWindow",
    "Softmax",
    "SparseTransformer",
    "Strided",
    "Tokens",
    "Window",
    "attend",
    "capabilities",
]
