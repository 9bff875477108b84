"""SIGTERM and Ctrl-C: the first asks the loop to stop after the step at hand, the second stops at once.

What is made by stages or iterations, each saved, stops at once (``stoppable``).
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

from research.errors import StoppedError


class Interrupt:
    """Notes SIGTERM and SIGINT while its context lasts.

    Attributes:
      received: the signal that came ("SIGTERM", "SIGINT"); None while there was none.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Interrupt:
        # Python delivers signals to the main thread alone, and lets no other install a handler.
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def stoppable(directory: Path) -> Iterator[None]:
    """Makes SIGTERM and Ctrl-C a `StoppedError`: whatever is under way, what was before it is saved."""
    here = threading.current_thread() is threading.main_thread()  # no other may set handlers
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if here else None
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(
            f"stopped; what was done is saved in {directory}: the same command goes on"
        ) from None
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)
