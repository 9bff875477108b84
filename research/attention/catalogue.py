"""Every attention mechanism that a model can be given, and patterns of them over depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from research.attention.mechanisms import Geometry, Mechanism, SlidingWindow, Softmax
from research.attention.positions import Positions

Single = Softmax | SlidingWindow


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
        """Yields what keeps either mechanism from being used."""
        yield from self.first.problems(geometry, positions, causal=causal)
        yield from self.second.problems(geometry, positions, causal=causal)


Attention = Single | Interleaved
