"""Every attention mechanism that a model can be given, patterns of them over depth, and what each can do."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Literal

import jax.numpy as jnp

from research.attention.block_choice import MoBA
from research.attention.hashing import Reformer
from research.attention.low_rank import Linformer
from research.attention.mechanisms import (
    Differential,
    Forgetting,
    Geometry,
    Latent,
    Mechanism,
    SlidingWindow,
    Softmax,
)
from research.attention.native_sparse import NSA
from research.attention.positions import Positions
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
from research.attention.sparse_mechanisms import BigBird, Longformer, SparseTransformer

Single = (
    Softmax | SlidingWindow | Latent | Differential | Forgetting | Longformer | BigBird | SparseTransformer
    | MoBA | NSA | Linformer | Reformer
    | LinearTransformer | Performer | Based | Retention | GLA | Mamba2 | DeltaNet | GatedDeltaNet | KimiDelta
    | RWKV7
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Interleaved(Mechanism):
    """A pattern over depth: some layers of one mechanism, then some of another, repeated.

    Five windows to one full layer is Gemma 3's; three linear to one full Kimi Linear's and Qwen3-Next's;
    ``positions_in="first"`` with a softmax in both leaves positions out of every last layer (SmolLM3).
    """

    first: Single = dataclasses.field(default_factory=SlidingWindow)
    """Mechanism of the first layers of each group."""
    firsts: int = 5
    """Layers of the first mechanism in a group."""
    second: Single = dataclasses.field(default_factory=Softmax)
    """Mechanism of the other layers of each group."""
    seconds: int = 1
    """Layers of the second mechanism in a group."""
    positions_in: Literal["both", "first", "second"] = "both"
    """Layers that get the model's positional encoding, where it acts inside attention."""

    def layers(self) -> tuple[tuple[Mechanism, bool], ...]:
        """Returns one group of layers."""
        first = (self.first, self.positions_in in ("both", "first"))
        second = (self.second, self.positions_in in ("both", "second"))
        return (first,) * self.firsts + (second,) * self.seconds

    def problems(self, geometry: Geometry, positions: Positions | None, *, causal: bool) -> Iterator[str]:
        """Yields what keeps either mechanism from being used, with the positions that its layers get."""
        for name, mechanism in (("first", self.first), ("second", self.second)):
            theirs = positions if self.positions_in in ("both", name) else None
            for problem in mechanism.problems(geometry, theirs, causal=causal):
                yield problem.replace("model.attention", f"model.attention.{name}")


Attention = Single | Interleaved


@dataclasses.dataclass(frozen=True)
class Capability:
    """What a mechanism can do."""

    decoder: bool
    """Whether it can be causal, and decode a token at a time."""
    encoder: bool
    """Whether a token can read those on both sides."""
    cross: bool
    """Whether it can read a memory."""
    packed: bool
    """Whether a row may hold several documents."""
    state_bytes: tuple[int, int] | None
    """Bytes of one layer's decoding state after 1,024 and after 16,384 tokens, bfloat16, width 768, 12 heads;
    None: it does not decode."""


def capabilities() -> dict[type[Mechanism], Capability]:
    """Returns what each mechanism of the catalogue can do, with its default fields, in order."""
    geometry = Geometry(width=768, heads=12, kv_heads=12, head_dim=64, context=16_384)

    def state(mechanism: Mechanism) -> tuple[int, int] | None:
        short, long = (
            mechanism.state_bytes(geometry, length, jnp.dtype("bfloat16")) for length in (1024, 16_384)
        )
        return (short, long)

    return {
        cls: Capability(
            cls.decoder, cls.encoder, cls.cross, cls.packed, state(cls()) if cls.decoder else None
        )
        for cls in typing.get_args(Single)
    }
