"""SIGTERM and Ctrl-C: the first asks the loop to stop after the step at hand, the second stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


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
