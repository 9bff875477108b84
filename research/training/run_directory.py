"""The run directory: where everything about a run lies, claimed by one process at a time.

    experiment.json   the resolved description
    metrics.jsonl     one JSON object per line
    checkpoints/      one directory per saved step, named by the step
    tokenizer.json    the tokenizer the run was trained with
    events/           TensorBoard event files
    lock              held (flock) by the process that trains

Nothing here imports JAX, so looking into a run is quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import re
import socket
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from research.data.files import read_json
from research.data.replacing import replacing
from research.errors import UserError
from research.training.migrations import FORMAT, migrated

# Fields in which a resumed run may differ from the one that was started: how long it trains, what it writes
# down, and which devices it runs on. Anything else would make it a different experiment.
_MAY_CHANGE = ("steps", "log_every", "baselines", "samples", "evaluation", "checkpointing", "sharding")


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Paths of a run."""

    path: Path
    """The directory itself."""
    primary: bool = True
    """Whether this process is the one of the run's processes that writes (but for checkpoints: all do)."""

    @property
    def experiment(self) -> Path:
        """The resolved description, JSON."""
        return self.path / "experiment.json"

    @property
    def metrics(self) -> Path:
        """Metrics, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Directory of checkpoints."""
        return self.path / "checkpoints"

    @property
    def events(self) -> Path:
        """Directory of TensorBoard event files."""
        return self.path / "events"

    @property
    def lock(self) -> Path:
        """File that the training process holds a lock on."""
        return self.path / "lock"

    def description(self) -> dict[str, Any]:
        """Returns the experiment's description as JSON, in today's format; ``UserError`` if there is none."""
        stored = read_json(self.experiment)
        try:
            return migrated(stored)
        except UserError as error:
            raise UserError(f"{self.experiment}: {error}") from None

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, ascending."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.checkpoints.iterdir() if entry.name.isdecimal())

    def newest(self) -> int:
        """Returns the step of the newest checkpoint; ``UserError`` if there is none."""
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.path} has no checkpoint yet: nothing was saved before the run stopped")
        return steps[-1]

    def best(self) -> int:
        """Returns the step of the checkpoint with the lowest validation loss; the newest if none has one."""
        losses = {step: ranking(self.checkpoint_metrics(step)) for step in self.steps()}
        evaluated = {step: loss for step, loss in losses.items() if math.isfinite(loss)}
        return min(evaluated, key=lambda step: (evaluated[step], -step)) if evaluated else self.newest()

    def checkpoint_step(self, which: str | int) -> int:
        """Returns the step of a checkpoint called "newest", "best" or by step; ``UserError`` if not there."""
        if which == "newest":
            return self.newest()
        if which == "best":
            return self.best()
        steps = self.steps()
        if not str(which).isdecimal() or int(which) not in steps:
            have = ", ".join(map(str, steps)) or "none"
            raise UserError(
                f"{self.path} has no checkpoint {which!r}: choose newest, best or a step ({have})"
            )
        return int(which)

    def checkpoint_metrics(self, step: int) -> dict[str, float]:
        """Returns the validation metrics saved with a checkpoint; empty if that step was not evaluated."""
        path = self.checkpoints / str(step) / "metrics" / "metrics"
        return read_json(path) if path.exists() else {}

    def checkpoint_record(self, step: int) -> dict[str, Any]:
        """Returns what was saved beside the arrays: format, step, experiment, versions of the packages."""
        return read_json(self.checkpoints / str(step) / "record" / "metadata")

    def rows(self) -> list[dict[str, Any]]:
        """Returns the lines of metrics.jsonl; a line cut off by a crash is left out."""
        return list(_rows(self.metrics))

    def keep(self, files: Mapping[str, str]) -> None:
        """Writes files of the data (its tokenizer), or checks that they are those the run was started with.

        Raises:
          UserError: the run has another one, so its data has changed since it was started.
        """
        for name, text in files.items() if self.primary else ():
            file = self.path / name
            if not file.exists():
                write_atomically(file, text)
            elif file.read_text(encoding="utf-8") != text:
                raise UserError(
                    f"the data of {self.path} has changed since the run began: its {name} is not the one"
                    " made now; choose another --workdir"
                )


def ranking(metrics: dict[str, float]) -> float:
    """Returns the figure that says which checkpoint is best (lower is better); infinity if there is none."""
    figure = metrics.get("valid/bits_per_byte", metrics.get("valid/loss", math.inf))
    return figure if math.isfinite(figure) else math.inf


def higher_is_better(metric: str) -> bool:
    """Returns whether a metric is a score and not a loss: BLEU is, and accuracies are, on test rows too."""
    return "accuracy" in metric or "bleu" in metric or metric.startswith("test/")


def run_path(path: Path | str) -> Path:
    """Returns the path of a run directory; ``UserError`` if it is that of a bucket, such as gs://bucket/run.

    A run is locked, appended to and renamed: what a file system does and an object store does not.
    """
    if found := re.match(r"([a-z][a-z0-9+]+):/+([^/]+)", str(path)):
        bucket = found.group(2)
        raise UserError(
            f"{path}: a run directory lies in a file system; mount the bucket (gcsfuse --implicit-dirs"
            f" {bucket} /mnt/{bucket}) and name the directory there"
        )
    return Path(path)


def open_run(path: Path | str) -> RunDirectory:
    """Returns a run directory for reading; ``UserError`` if there is none at that path."""
    directory = RunDirectory(run_path(path))
    if not directory.path.is_dir():
        raise UserError(f"no run directory at {directory.path}")
    if not directory.experiment.exists():
        raise UserError(f"{directory.path} is not a run directory: it has no experiment.json")
    return directory


@contextlib.contextmanager
def claim(path: Path | str, description: dict[str, Any], *, primary: bool = True) -> Iterator[RunDirectory]:
    """Creates a run directory, or takes up one of the same experiment, and holds it while the context lasts.

    The lock is the kernel's (flock): it is gone as soon as the process is, however it ended.

    Args:
      path: the directory.
      description: the experiment as JSON; it may differ from the one that is there only in how long it
        trains, what it writes down and which devices it uses.
      primary: whether this process writes (one of the processes of a run does).

    Raises:
      UserError: the directory is in use, was made by another experiment, is something else altogether, or
        cannot be written.
    """
    directory = RunDirectory(run_path(path), primary)
    if not primary:
        yield directory
        return
    with contextlib.ExitStack() as stack:
        try:
            directory.path.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(directory)
            lock = stack.enter_context(open(directory.lock, "a+", encoding="utf-8"))
            _acquire(lock, directory)
            _check_same_experiment(directory, description)
            directory.checkpoints.mkdir(exist_ok=True)
            directory.events.mkdir(exist_ok=True)
            stored = {"format": FORMAT, **description}
            write_atomically(directory.experiment, json.dumps(stored, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot use {directory.path} as run directory: {error.strerror}") from error
        yield directory


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that a reader, or a crash, finds the old content or the new, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _acquire(lock: TextIO, directory: RunDirectory) -> None:
    """Takes the lock and writes down who has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        raise UserError(
            f"run directory {directory.path} is in use by {holder}; wait for it or choose another --workdir"
        ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()


def _refuse_foreign(directory: RunDirectory) -> None:
    """Refuses a directory with files in it that no run has put there."""
    if directory.experiment.exists():
        return
    own = {"lock", "experiment.json.tmp", "checkpoints", "events", "tokenizer.json"}
    foreign = sorted(entry.name for entry in directory.path.iterdir() if entry.name not in own)
    if foreign:
        raise UserError(
            f"{directory.path} is not empty and not a run directory (it has {foreign[0]}); choose another"
            " --workdir"
        )


def _check_same_experiment(directory: RunDirectory, description: dict[str, Any]) -> None:
    """Refuses a directory that another experiment has made, naming the first fields that differ."""
    if not directory.experiment.exists():
        return
    # Through JSON, so that tuples and lists compare equal.
    now = flatten(json.loads(json.dumps(description)))
    there = {**_defaults(directory.description(), now), **flatten(directory.description())}
    absent = object()
    differing = [
        f"{name} ({there.get(name, 'absent')!r} there, {now.get(name, 'absent')!r} now)"
        for name in sorted(there.keys() | now.keys())
        if name.split(".")[0] not in _MAY_CHANGE and there.get(name, absent) != now.get(name, absent)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"{directory.path} was made by a different experiment: {', '.join(differing[:3])}{more};"
            " choose another --workdir"
        )


def _defaults(description: dict[str, Any], wanted: Collection[str]) -> dict[str, Any]:
    """Returns the wanted fields with a description's defaults: an older version kept none of newer fields."""
    from research.training.description import from_json, to_json  # which imports JAX

    try:
        resolved = flatten(json.loads(json.dumps(to_json(from_json(description)))))
    except UserError:  # it has a field that is unknown here, which will be named
        return {}
    return {name: value for name, value in resolved.items() if name in wanted}


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested objects as one, with dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, item in value.items()
        for name, leaf in flatten(item, f"{prefix}.{key}" if prefix else key).items()
    }


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)
