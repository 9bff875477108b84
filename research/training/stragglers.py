"""Names the processes that keep the others waiting."""

from __future__ import annotations

import collections
import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence

_FACTOR = 2.0  # times the median of the others
_SHARE = 0.5  # of the time that passed: less than that is hidden behind the devices' work
_INTERVALS = 3  # one after another


class Stragglers:
    """Compares what the processes of a run do by themselves: making and placing batches.

    The steps themselves take the same time everywhere, for each waits for all in its collective operations;
    what a process does between them is its own. A chip that is slow is not seen from here.
    """

    def __init__(self) -> None:
        self._own, self._since = 0.0, time.monotonic()
        self._slow: collections.Counter[int] = collections.Counter()
        self._named: set[int] = set()

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Counts the time in the context as this process's own."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._own += time.monotonic() - started

    def interval(self) -> tuple[float, float]:
        """Returns the seconds of its own, and all seconds, since the last call: what processes exchange."""
        now = time.monotonic()
        found = self._own, now - self._since
        self._own, self._since = 0.0, now
        return found

    def named(self, intervals: Sequence[Sequence[float]]) -> list[str]:
        """Takes in the intervals of all processes; returns a line for each that is slow, once.

        Args:
          intervals: of each process, in order: its own seconds, and all.
        """
        lines = []
        for process, (own, seconds) in enumerate(intervals):
            others = [theirs for other, (theirs, _) in enumerate(intervals) if other != process]
            usual = statistics.median(others) if others else own
            slow = own > _FACTOR * usual and own > _SHARE * seconds
            self._slow[process] = self._slow[process] + 1 if slow else 0
            if self._slow[process] == _INTERVALS and process not in self._named:
                self._named.add(process)
                lines.append(
                    f"process {process} keeps the others waiting: making its batches takes"
                    f" {own / seconds:.0%} of the time, theirs {usual / seconds:.0%}"
                )
        return lines
