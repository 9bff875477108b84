"""What a decoder needs of a language model, and scoring phrases with it, many at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int, Int32

EMPTY = 0
"""The state of no context."""


@runtime_checkable
class LanguageModel(Protocol):
    """A model of the next word whose contexts are numbered states, ``EMPTY`` that of none; words
    are its own ids.

    Two contexts after which every continuation has the same probability should have the same state, for a
    decoder keeps one hypothesis of those that share it.
    """

    begin: int
    """State at the beginning of a sentence."""
    end: int
    """Id of the word that ends a sentence."""

    def ids(self, tokens: Sequence[str]) -> Int32[np.ndarray, " tokens"]:
        """Returns the id of each word; words that are unknown share one."""
        ...

    def advance(
        self, states: Int[np.ndarray, " queries"], words: Int[np.ndarray, " queries"]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the natural log-probability of each word in its state, and the state after it."""
        ...


def extend(
    model: LanguageModel,
    states: Int32[np.ndarray, " phrases"],
    words: Int32[np.ndarray, "phrases longest"],
    lengths: Int32[np.ndarray, " phrases"],
) -> tuple[Float64[np.ndarray, " phrases"], Int32[np.ndarray, " phrases"]]:
    """Returns the log-probability of each phrase after its state, and the state after the phrase.

    Args:
      model: the language model.
      states: state before each phrase.
      words: words of each phrase; those beyond its length do not matter.
      lengths: words of each phrase.
    """
    total, states = np.zeros(len(states)), states.copy()
    for position in range(int(lengths.max(initial=0))):
        active = np.flatnonzero(lengths > position)
        found, after = model.advance(states[active], words[active, position])
        total[active] += found
        states[active] = after
    return total, states
