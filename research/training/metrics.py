"""Metrics of a run: means between two lines of metrics.jsonl, and the files they are written to."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from research.data.replacing import write_atomically
from research.errors import UserError
from research.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event

_LAST = ("train/learning_rate",)  # a function of the step, so the mean over a window would only blur it


class Window:
    """Training metrics of the steps since the last line: the mean of each, the last learning rate."""

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        self.count: int = saved["count"] if saved else 0
        self.sums: dict[str, float] = dict(saved["sums"]) if saved else {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """Takes in the metrics of one step."""
        self.count += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value if name not in _LAST else value

    def to_json(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, so that a resumed run writes the very line a straight one does."""
        return {"count": self.count, "sums": dict(self.sums)}

    def take(self) -> dict[str, float]:
        """Returns the means and starts anew."""
        count, sums = max(self.count, 1), self.sums
        self.count, self.sums = 0, {}
        return {name: value if name in _LAST else value / count for name, value in sums.items()}


class Stopwatch:
    """Seconds spent on training steps: evaluation, saving and the first step's compilation do not count."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._paused = 0.0

    def seconds(self) -> float:
        """Returns the seconds since the start, without pauses."""
        return time.monotonic() - self._started - self._paused

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time spent in the context."""
        before = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - before


class MetricsWriter:
    """Appends to metrics.jsonl and to a TensorBoard event file, in the thread that calls.

    A line is written by one system call, so a killed process leaves whole lines (a full disk may cut the
    last, which the next run drops). Rows after the restored step are dropped, so no step is there twice. Only
    the primary process of a run writes.

    Args:
      directory: the run directory, claimed.
      restored: step the run goes on from; 0 for a new one.
    """

    def __init__(self, directory: RunDirectory, restored: int) -> None:
        self._directory, self._restored = directory, restored
        self._events: EventsWriter | None = None
        if not directory.primary:
            return
        kept = [row for row in directory.rows() if row["step"] <= restored]
        with self._disk():
            write_atomically(directory.metrics, "".join(json.dumps(row) + "\n" for row in kept))
            self._file = open(directory.metrics, "ab", buffering=0)  # noqa: SIM115 (closed by close)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line; ``UserError`` if the disk does not take it."""
        if not self._directory.primary:
            return
        line = json.dumps({"step": step, **metrics}).encode() + b"\n"
        with self._disk():
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._opened().write_event(_event(step, metrics))

    def open_events(self) -> None:
        """Opens the event file: after the first step, for the import takes a second beside PyTorch."""
        if self._directory.primary:
            with self._disk():
                self._opened()

    def _opened(self) -> EventsWriter:
        if self._events is not None:
            return self._events
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        events = self._directory.events
        if not self._restored:
            for file in events.glob("events.out.tfevents.*"):
                file.unlink()
        self._events = EventsWriter(str(events / "events"), f".{self._restored}")
        # Tells TensorBoard to drop what the sessions before have written for this and later steps.
        log = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(step=self._restored + 1, wall_time=time.time(), session_log=log))
        return self._events

    def flush(self) -> None:
        """Brings the event file to the disk (metrics.jsonl always is there)."""
        if self._events:
            with self._disk():
                self._events.flush()

    def close(self) -> None:
        """Closes the files; what a full disk does not take of the event file is lost."""
        if self._directory.primary:
            self._file.close()
        if self._events:
            with contextlib.suppress(OSError):
                self._events.close()

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write the metrics of {self._directory}: {error.strerror}") from error


def _event(step: int, metrics: Mapping[str, float]) -> Event:
    """Returns one TensorBoard event with all metrics of a row."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
    return Event(step=step, wall_time=time.time(), summary=Summary(value=values))
