"""Progress of a run on standard error: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import collections
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

_REDRAW = 0.25  # seconds between two drawings of the live line
_SPAN = 10.0  # seconds that the displayed speed is the mean of


class Display:
    """Shows step, loss, tokens per second, model FLOP/s (both causal conventions) and time left.

    It draws when the loop calls it, in no thread of its own, which would take a core from the training step.

    Args:
      stream: where to write.
      every: seconds between two lines where ``stream`` is no terminal.
    """

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self._stream = stream or sys.stderr
        self._live: Progress | None = None
        self._between = _REDRAW if self._stream.isatty() else every
        self._next = 0.0
        self._points: collections.deque[tuple[int, float, float]] = collections.deque()

    def begin(self, step: int, total: int, tokens: int, flops: float, flops_causal: float) -> None:
        """Starts at ``step`` of ``total``; the others are tokens and model FLOPs of one full step."""
        self._total, self._tokens, self._flops, self._causal = total, tokens, flops, flops_causal
        self._points.clear()
        self._next = 0.0
        if self._stream.isatty():
            self._live = _live(self._stream)
            self._live.start()
            self._task = self._live.add_task("", total=total, completed=step, text="compiling the first step")
            self._live.refresh()

    def update(self, step: int, loss: float, seconds: float, work: float) -> None:
        """Shows a finished step; ``seconds`` were spent so far on ``work`` full steps' tokens."""
        now = time.monotonic()
        if now < self._next and step != self._total:
            return
        self._next = now + self._between
        self._points.append((step, work, seconds))
        while len(self._points) > 2 and self._points[1][2] < seconds - _SPAN:
            self._points.popleft()
        text = f"loss {loss:.4f}{self._speed()}"
        if self._live:
            self._live.update(self._task, completed=step, text=text)
            self._live.refresh()
        else:
            say(f"step {step}/{self._total}  {text}", self._stream)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows validation metrics."""
        figures = "  ".join(f"{name.removeprefix('valid/')} {value:.4f}" for name, value in metrics.items())
        self.note(f"step {step}/{self._total}  validation: {figures}")

    def note(self, text: str) -> None:
        """Shows a line that stays."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            say(text, self._stream)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._live:
            self._live.stop()
            self._live = None

    def _speed(self) -> str:
        (first, before, start), (last, after, end) = self._points[0], self._points[-1]
        if last == first or end <= start:
            return ""
        rate = (after - before) / (end - start)
        flops = f"{_quantity(rate * self._flops)}FLOP/s ({_quantity(rate * self._causal)}FLOP/s causal)"
        left = duration((self._total - last) * (end - start) / (last - first))
        return f"  {rate * self._tokens:,.0f} tokens/s  {flops}  {left} left"


def say(text: str, stream: TextIO | None = None) -> None:
    """Writes a line to ``stream`` (standard error); that its reader has gone (``| head``) ends nothing."""
    stream = stream or sys.stderr
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:  # whatever else is written there, at exit too, is to go nowhere as well
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _live(stream: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.fields[text]}", markup=False))
    return Progress(*columns, console=Console(file=stream), auto_refresh=False)


def _quantity(value: float) -> str:
    """Returns a number with three digits and its SI prefix: 12.3 k."""
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.3g} "


def duration(seconds: float) -> str:
    """Returns hours, minutes and seconds: 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
