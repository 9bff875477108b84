"""Attention as pure functions: arrays in, arrays out."""

from research.attention.block_choice import MoBA
from research.attention.catalogue import Interleaved, capabilities
from research.attention.engines import attend
from research.attention.hashing import Reformer
from research.attention.low_rank import Linformer
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
from research.attention.native_sparse import NSA
from research.attention.recurrent_mechanisms import (
    GLA,
    Based,
    DeltaNet,
    GatedDeltaNet,
    KimiDelta,
    LinearTransformer,
    Mamba2,
    Performer,
    Retention,
)
from research.attention.rwkv import RWKV7
from research.attention.sparse_masks import BlockMask, DilatedWindow, Fixed, Global, RandomBlocks, Strided
from research.attention.sparse_mechanisms import BigBird, Longformer, SparseTransformer

__all__ = [
    "GLA",
    "NSA",
    "RWKV7",
    "And",
    "Based",
    "BigBird",
    "BlockMask",
    "Causal",
    "DeltaNet",
    "Differential",
    "DilatedWindow",
    "Everything",
    "Fixed",
    "Forgetting",
    "GatedDeltaNet",
    "Global",
    "Interleaved",
    "KimiDelta",
    "Latent",
    "LinearTransformer",
    "Linformer",
    "Longformer",
    "Mamba2",
    "Mask",
    "MoBA",
    "Not",
    "Or",
    "Performer",
    "Present",
    "RandomBlocks",
    "Reformer",
    "Retention",
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
