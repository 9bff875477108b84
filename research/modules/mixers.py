"""Which module computes which attention mechanism."""

from __future__ import annotations

import flax.linen as nn

from research.attention.block_choice import MoBA
from research.attention.hashing import Reformer
from research.attention.low_rank import Linformer
from research.attention.mechanisms import Differential, Forgetting, Latent, Mechanism, Softmax
from research.attention.native_sparse import NSA
from research.attention.recurrent_mechanisms import Recurrent
from research.attention.rwkv import RWKV7
from research.modules.attention import AttentionSpec, MultiHeadAttention
from research.modules.block_choice import BlockChoiceAttention
from research.modules.differential import DifferentialAttention
from research.modules.forgetting import ForgettingAttention
from research.modules.hashing import HashedAttention
from research.modules.latent import LatentAttention
from research.modules.low_rank import LowRankAttention
from research.modules.native_sparse import NativeSparseAttention
from research.modules.recurrent import RecurrentAttention
from research.modules.rwkv import RWKV7Attention

MIXERS: dict[type[Mechanism], type[nn.Module]] = {
    Differential: DifferentialAttention,
    Forgetting: ForgettingAttention,
    Latent: LatentAttention,
    Linformer: LowRankAttention,
    MoBA: BlockChoiceAttention,
    NSA: NativeSparseAttention,
    Reformer: HashedAttention,
    Recurrent: RecurrentAttention,
    RWKV7: RWKV7Attention,
    Softmax: MultiHeadAttention,
}
"""Modules by kind of mechanism, subclasses included; the first that fits counts. Each is called as
``MultiHeadAttention`` is, with input, tokens, cache and key (and memory, if it can read one), and returns
output and cache."""


def mixer(spec: AttentionSpec, name: str) -> nn.Module:
    """Returns the module of the mechanism that ``spec`` names."""
    module = next(module for kind, module in MIXERS.items() if isinstance(spec.mechanism, kind))
    return module(spec, name=name)
