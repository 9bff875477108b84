"""Metrics of a run: means between two lines of metrics.jsonl, and the files they are written to."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from research.errors import UserError
from research.training.run_directory import RunDirectory, write_atomically

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

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
    """Appends to metrics.jsonl and to TensorBoard event files.

    A line is written with one system call, so a killed process leaves whole lines (a full disk may cut the
    last, which the next run drops). Rows after the restored step are dropped, so no step is there twice.
    """

    def __init__(self, directory: RunDirectory, restored: int) -> None:
        self._directory, self._restored = directory, restored
        kept = [row for row in directory.rows() if row["step"] <= restored]
        with _disk(directory):
            write_atomically(directory.metrics, "".join(json.dumps(row) + "\n" for row in kept))
            self._file = open(directory.metrics, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._events: SummaryWriter | None = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line; ``UserError`` if the disk does not take it."""
        with _disk(self._directory):
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
            if self._events is None:
                self.open_events()
            for name, value in metrics.items():
                self._events.add_scalar(name, value, step)

    def open_events(self) -> None:
        """Opens the event file: after the first step, for the import takes a second beside PyTorch."""
        from tensorboardX import SummaryWriter

        if self._restored == 0:
            for file in self._directory.events.glob("events.out.tfevents.*"):
                file.unlink()
        purge = self._restored + 1 if self._restored else None
        self._events = SummaryWriter(str(self._directory.events), purge_step=purge)

    def flush(self) -> None:
        """Brings the event files to the disk (metrics.jsonl always is there)."""
        if self._events:
            with _disk(self._directory):
                self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._events:
            self._events.close()


@contextlib.contextmanager
def _disk(directory: RunDirectory) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write the metrics of {directory.path}: {error.strerror}") from error
