"""Iterations of EM, ``state -> state, metrics`` each, and what becomes of the states.

A trainer goes through *phases* of a fixed number of iterations, one after the other. A state is a tree of
arrays and all that an iteration needs of the one before it. Where states are kept, training that was killed
goes on behind the last of them and ends where it would have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

State = TypeVar("State")

WAYS = ("forward", "backward")
"""The directions t(f|e) and t(e|f), whose log-likelihoods are the metrics "WAY/log_likelihood"."""


def _silent(message: str) -> None:
    pass


class Progress:
    """Says how training goes, and keeps nothing: ``training.kept_iterations`` has one that does."""

    def __init__(self, report: Callable[[str], None] = _silent) -> None:
        self.report = report

    def resume(self, phase: str, total: int, state: State) -> tuple[int, State]:
        """Returns how many of a phase's iterations are done, and the state after them; ``state`` if none."""
        del phase, total
        return 0, state

    def keep(self, phase: str, done: int, total: int, state: State, metrics: Mapping[str, float]) -> None:
        """Takes what an iteration came to: its metrics are log-likelihoods of a sentence pair, or none."""
        del state
        if metrics:
            values = " and ".join(f"{value:.4f}" for value in metrics.values())
            self.report(f"{phase}, iteration {done} of {total}: log-likelihood {values} a pair")


SILENT = Progress()


def iterate(
    phase: str,
    total: int,
    state: State,
    step: Callable[[State, int], tuple[State, Mapping[str, float]]],
    progress: Progress,
) -> State:
    """Returns the state after a phase.

    Args:
      phase: its name, which no other phase of the training has.
      total: number of its iterations.
      state: what it begins with: a tree of arrays.
      step: returns what iteration ``number``, from 0, makes of a state, which it may change, and its metrics.
      progress: is told of every iteration, and knows which are done already.
    """
    done, state = progress.resume(phase, total, state)
    for number in range(done, total):
        state, metrics = step(state, number)
        progress.keep(phase, number + 1, total, state, metrics)
    return state
