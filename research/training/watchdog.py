"""A watchdog: ends a process that has come to a standstill, so that a scheduler starts it again."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType

from research.errors import LostError
from research.training.progress import say


class Watchdog:
    """Ends the process when it has given no sign of life for a while: stacks of all threads, then code 4.

    A collective operation that waits for a process that is gone, or a file system that does not answer, waits
    for ever; it cannot be interrupted, so the process ends at once, with nothing saved since the last save.

    Args:
      seconds: how long to wait for a sign of life; None: for ever.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._doing, self._since = "starting", time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._seconds is not None:
            self.alive(self._doing)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()

    def alive(self, doing: str) -> None:
        """Says that the process makes headway, and what it does next."""
        self._doing, self._since = doing, time.monotonic()

    def _watch(self) -> None:
        assert self._seconds is not None
        while True:
            left = self._since + self._seconds - time.monotonic()
            if left <= 0:
                break
            if self._done.wait(left):
                return
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        error = LostError(f"no headway for {self._seconds:g} s while {self._doing}")
        say(f"headway: {error}")
        os._exit(error.exit_code)
