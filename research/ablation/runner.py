"""Runs the points of a grid in processes of their own, some at a time, and goes on where it stopped.

Every point has a directory under the ablation's: what it is (point.json), its run, its log, and its result. A
point that has a result is done; one that failed is tried again the next time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from research.ablation.grid import Ablation, Point, Row, point
from research.ablation.worker import LOG, POINT, RESULT, RUN
from research.errors import StoppedError, UserError
from research.training.description import from_json, to_json
from research.training.interrupt import Interrupt
from research.training.migrations import FORMAT, migrated
from research.training.progress import duration
from research.training.run_directory import RunDirectory, check_same_experiment, write_atomically

_POLL = 0.1
"""Seconds between two looks at the processes."""
Command = Callable[[Path, str | None], list[str]]
"""(directory, cores) -> the command line that runs its point on these cores."""
Result = dict[str, Any]
"""What `research.ablation.worker` writes, "failed" among it where it did not come to an end."""


def worker_command(directory: Path, cores: str | None) -> list[str]:
    """Returns the command line of `research.ablation.worker`."""
    command = [sys.executable, "-m", "research.ablation.worker", str(directory)]
    return command if cores is None else [*command, cores]


def run(
    ablation: Ablation,
    rows: Sequence[Row],
    directory: Path,
    *,
    parallel: int = 1,
    report: Callable[[str], None],
    command: Command = worker_command,
) -> list[Result]:
    """Runs what is not done yet of a grid, and returns the results of all its points, row by row.

    With learning rates to choose from, each row's are tried with the first seed, and the other seeds get the
    one that came out best.

    Args:
      ablation: the grid.
      rows: its combinations.
      directory: the ablation's; made if it is not there.
      parallel: points at a time; the cores are shared out evenly among them.
      report: receives a line when a point begins or ends.
      command: how a point is run.

    Raises:
      StoppedError: SIGTERM or Ctrl-C; points that were running have saved what they had.
      UserError: the directory cannot be written, or is in use.
    """
    first, *others = ablation.seeds
    points = [point(ablation, row, rate, first) for row in rows for rate in ablation.rates(row)]
    total = len(points) + len(rows) * len(others)
    pool = _Pool(directory, parallel, total, ablation, report, command)
    with _locked(directory):
        tried = pool.run(points)
        if others:
            rates = [best_rate(ablation, [r for p, r in tried if p.row is row]) for row in rows]
            chosen = [
                point(ablation, row, ablation.rates(row)[0] if rate is None else rate, seed)
                for row, rate in zip(rows, rates, strict=True)
                for seed in others
            ]
            tried += pool.run(chosen)
    order = {row.title: number for number, row in enumerate(rows)}
    tried.sort(key=lambda found: (order[found[0].row.title], found[0].rate, found[0].seed))
    return [result for _, result in tried]


def best_rate(ablation: Ablation, results: Sequence[Result]) -> float | None:
    """Returns the learning rate of the result with the best quality; None if all failed."""
    done = [result for result in results if "failed" not in result]
    if not done:
        return None
    sign = -1.0 if ablation.higher_is_better else 1.0
    return min(done, key=lambda result: sign * quality(ablation, result))["learning_rate"]


def quality(ablation: Ablation, result: Result) -> float:
    """Returns the metric of a result that the ablation names; ``UserError`` if it has no such metric."""
    metrics = result["metrics"]
    if ablation.quality not in metrics:
        raise UserError(
            f"{ablation.name}: quality {ablation.quality!r} is no metric of its runs; they have "
            + ", ".join(metrics)
        )
    return metrics[ablation.quality]


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds a lock (the kernel's, gone with the process) on the ablation's directory, which is made."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / "lock", "a", encoding="utf-8")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{directory} is in use by another headway ablate; wait for it or choose another --workdir"
            ) from None
        yield


@dataclasses.dataclass
class _Running:
    point: Point
    process: subprocess.Popen[bytes]
    log: TextIO
    started: float
    place: int


class _Pool:
    """Runs points, as many at a time as there are places."""

    def __init__(
        self,
        directory: Path,
        places: int,
        total: int,
        ablation: Ablation,
        report: Callable[[str], None],
        command: Command,
    ) -> None:
        self._directory, self._ablation = directory, ablation
        self._report, self._command = report, command
        self._cores = _shares(places)
        # Each of several processes on one accelerator would take nearly all of its memory at its start.
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if places > 1 else {}
        self._environment = {**shared, **os.environ}
        self._total, self._done = total, 0
        self._seconds: list[float] = []

    def run(self, points: Sequence[Point]) -> list[tuple[Point, Result]]:
        """Returns the result of every point, running those that have none."""
        found = {one.name: result for one in points if (result := self._finished(one)) is not None}
        self._done += len(found)
        waiting = [one for one in points if one.name not in found]
        for unfinished in waiting:  # before anything that was measured is lost
            check_same_experiment(RunDirectory(self._place(unfinished) / RUN), to_json(unfinished.experiment))
        if found:
            self._report(f"{len(found)} points are done already")
        running: list[_Running] = []
        with Interrupt() as interrupt:
            try:
                while waiting or running:
                    if interrupt.received:
                        raise StoppedError(
                            f"stopped by {interrupt.received} with {self._done} of {self._total} points "
                            f"done; saved in {self._directory}: the same command goes on from there"
                        )
                    free = set(range(len(self._cores))) - {one.place for one in running}
                    if waiting and free:
                        running.append(self._start(waiting.pop(0), min(free)))
                        continue
                    # Either a process or a signal ends the wait, and no call of Python's waits for both: it
                    # goes on with a wait that a signal has interrupted.
                    time.sleep(_POLL)
                    for one in [one for one in running if one.process.poll() is not None]:
                        running.remove(one)
                        found[one.point.name] = self._end(one)
            finally:
                _stop(running)
        return [(one, found[one.name]) for one in points]

    def _place(self, one: Point) -> Path:
        return self._directory / one.name

    def _task(self, one: Point) -> dict[str, Any]:
        return {
            "labels": dict(one.row.labels),
            "learning_rate": one.rate,
            "seed": one.seed,
            "parameters": one.row.parameters,
            "contexts": list(self._ablation.contexts),
            "directory": one.name,
            "experiment": {"format": FORMAT, **to_json(one.experiment)},
        }

    def _finished(self, one: Point) -> Result | None:
        """Returns the result of a point that is done as it is described now; a failed one is not done."""
        try:
            result = json.loads((self._place(one) / RESULT).read_text(encoding="utf-8"))
            # As a description, not as JSON: a field that did not exist when it ran has its default, or what
            # it was in that format.
            same = from_json(migrated(result["experiment"])) == one.experiment
        except (OSError, ValueError, KeyError, UserError):
            return None
        same &= result["contexts"] == list(self._ablation.contexts)
        # What a row is called is not what it is.
        return {**result, "labels": dict(one.row.labels)} if same and "failed" not in result else None

    def _start(self, one: Point, place: int) -> _Running:
        directory = self._place(one)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / RESULT).unlink(missing_ok=True)
            write_atomically(directory / POINT, json.dumps(self._task(one), indent=1) + "\n")
            log = open(directory / LOG, "a", encoding="utf-8")  # noqa: SIM115 (closed when it ends)
        except OSError as error:
            raise UserError(f"cannot write to {directory}: {error.strerror}") from error
        # Its standard input is a pipe that ends when this process does; it then saves and stops. A session of
        # its own keeps a terminal's Ctrl-C from it.
        process = subprocess.Popen(
            self._command(directory, self._cores[place]),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=self._environment,
        )
        return _Running(one, process, log, time.monotonic(), place)

    def _end(self, one: _Running) -> Result:
        """Takes in the result of a process that has ended, whatever way."""
        _close(one)
        self._done += 1
        seconds = time.monotonic() - one.started
        self._seconds.append(seconds)
        result = self._finished(one.point)
        if result is None:
            result = self._failure(one)
            outcome = f"failed: {result['failed']}"
        else:
            outcome = f"{self._ablation.quality} {quality(self._ablation, result):.4f}"
        mean = sum(self._seconds) / len(self._seconds)
        left = mean * (self._total - self._done) / len(self._cores)
        self._report(
            f"[{self._done}/{self._total}] {one.point.title}: {outcome} ({duration(seconds)}; "
            f"about {duration(left)} left)"
        )
        return result

    def _failure(self, one: _Running) -> Result:
        directory = self._place(one.point)
        try:
            return json.loads((directory / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            code = one.process.returncode
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            if code == -signal.SIGKILL:
                how += ", as the system does when memory runs out"
            failed = {**self._task(one.point), "failed": f"{how} (see {LOG})"}
            write_atomically(directory / RESULT, json.dumps(failed, indent=1) + "\n")
            return failed


def _stop(running: Sequence[_Running]) -> None:
    """Has processes save and stop, and waits for them."""
    for one in running:
        one.process.terminate()
    for one in running:
        one.process.wait()
        _close(one)


def _close(one: _Running) -> None:
    assert one.process.stdin is not None
    one.process.stdin.close()
    one.log.close()


def _shares(places: int) -> list[str | None]:
    """Returns the cores of each place, as the worker takes them; None: all of them."""
    if places == 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * places
    cores = sorted(os.sched_getaffinity(0))
    if places > len(cores):
        return [None] * places
    return [",".join(map(str, cores[place::places])) for place in range(places)]
