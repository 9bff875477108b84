"""What a decoder needs of a language model, and scoring phrases with it, many at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int, Int32, Int64

EMPTY = 0
"""The state of no context."""


@runtime_checkable
class LanguageModel(Protocol):
    """A model of the next word whose contexts are numbered states, ``EMPTY`` that of none; words
    are its own ids.

    Two contexts after which every continuation has the same probability should have the same state, for a
    decoder keeps one hypothesis of those that share it.
    """

    @property
    def begin(self) -> int:
        """State at the beginning of a sentence."""
        ...

    @property
    def end(self) -> int:
        """Id of the word that ends a sentence."""
        ...

    def ids(self, tokens: Sequence[str]) -> Int32[np.ndarray, " tokens"]:
        """Returns the id of each word; words that are unknown share one."""
        ...

    def advance(
        self, states: Int[np.ndarray, " queries"], words: Int[np.ndarray, " queries"]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the natural log-probability of each word in its state, and the state after it."""
        ...

    def temporary(self) -> AbstractContextManager[None]:
        """Within it, as while one sentence is translated, states may get numbers that mean nothing after."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class TargetPhrases:
    """Phrases as a language model sees them.

    Attributes:
      words: ids of the words of each phrase, filled up with 0.
      lengths: number of words of each.
      states: state after each word where nothing precedes the phrase.
      rest: log-probability of the words after each one, in the same case.
    """

    words: Int32[np.ndarray, "phrases width"]
    lengths: Int32[np.ndarray, " phrases"]
    states: Int32[np.ndarray, "phrases width"]
    rest: Float32[np.ndarray, "phrases width"]

    def take(self, index: Int64[np.ndarray, " chosen"]) -> TargetPhrases:
        """Returns some of the phrases."""
        return TargetPhrases(*(column[index] for column in vars(self).values()))


def target_phrases(
    phrases: Sequence[Sequence[str]], model: LanguageModel
) -> tuple[TargetPhrases, Float64[np.ndarray, " phrases"]]:
    """Returns phrases, and the log-probability of each where nothing precedes it."""
    lengths = np.array([len(words) for words in phrases], np.int32)
    shape = (len(phrases), int(lengths.max(initial=1)))
    words, states, log_p = np.zeros(shape, np.int32), np.full(shape, EMPTY, np.int32), np.zeros(shape)
    words[np.arange(shape[1]) < lengths[:, None]] = model.ids([word for each in phrases for word in each])
    state = np.full(len(phrases), EMPTY, np.int32)
    for position in range(shape[1]):
        active = np.flatnonzero(lengths > position)
        log_p[active, position], state[active] = model.advance(state[active], words[active, position])
        states[:, position] = state
    from_here = np.cumsum(log_p[:, ::-1], axis=1)[:, ::-1]
    return TargetPhrases(words, lengths, states, (from_here - log_p).astype(np.float32)), from_here[:, 0]


def extend(
    model: LanguageModel,
    states: Int32[np.ndarray, " queries"],
    phrases: TargetPhrases,
    index: Int64[np.ndarray, " queries"],
) -> tuple[Float64[np.ndarray, " queries"], Int32[np.ndarray, " queries"]]:
    """Returns the log-probability of each phrase after its state, and the state after the phrase.

    Args:
      model: the language model.
      states: state before each phrase.
      phrases: phrases.
      index: which phrase is asked for.
    """
    total, last = np.zeros(len(states)), np.array(phrases.states[index, phrases.lengths[index] - 1])
    active = np.arange(len(states))
    for position in range(phrases.words.shape[1]):
        if not len(active):
            break
        found, states = model.advance(states, phrases.words[index, position])
        total[active] += found
        # Once the state is that of the phrase on its own, the rest is too.
        alone = states == phrases.states[index, position]
        total[active[alone]] += phrases.rest[index[alone], position]
        done = alone | (phrases.lengths[index] == position + 1)
        ended = done & ~alone
        last[active[ended]] = states[ended]
        active, states, index = active[~done], states[~done], index[~done]
    return total, last
