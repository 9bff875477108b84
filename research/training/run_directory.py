"""The run directory: where everything about a run lies, claimed by one process at a time.

    experiment.json   the resolved description
    metrics.jsonl     one JSON object per line
    checkpoints/      one directory per saved step, named by the step
    tokenizer.json    the tokenizer the run was trained with
    text.json         how long its text is, so that it is seen to have changed
    events/           TensorBoard event files
    lock              held (flock) by the process that trains

A run directory may lie in a bucket (gs://bucket/name): its checkpoints are written there, and all the rest by
way of a copy on this machine (`Mirror`).

Nothing here imports JAX, so looking into a run is quick.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import fcntl
import json
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from research.data.cache import cache_directory, content_hash
from research.data.files import read_json, record_of
from research.data.object_store import check_bucket, is_object, located
from research.data.replacing import write_atomically
from research.errors import UserError
from research.training.checkpoint_files import CheckpointFiles, files_of
from research.training.migrations import FORMAT, migrated
from research.training.mirror import Mirror

# Fields in which a resumed run may differ from the one that was started: how long it trains, what it writes
# down, and which devices it runs on. Anything else would make it a different experiment.
_MAY_CHANGE = (
    "steps", "log_every", "baselines", "samples", "evaluation", "checkpointing", "sharding", "model.engine",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Paths of a run."""

    path: Path
    """The directory itself; of a run in a bucket, the copy of its small files on this machine."""
    primary: bool = True
    """Whether this process is the one of the run's processes that writes (but for checkpoints: all do)."""
    mirror: Mirror | None = None
    """What copies from and to the bucket; None: the run does not lie in one."""

    def __str__(self) -> str:
        return str(self.place)

    @property
    def place(self) -> Path:
        """Where the run lies: the directory, or gs://bucket/name."""
        return self.mirror.place if self.mirror else self.path

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
        """Directory of checkpoints, absolute as Orbax wants it."""
        return self.place / "checkpoints" if self.mirror else self.path.absolute() / "checkpoints"

    @property
    def files(self) -> CheckpointFiles:
        """The files of the checkpoints."""
        return files_of(self.checkpoints)

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
        return self.files.steps()

    def newest(self) -> int:
        """Returns the step of the newest checkpoint; ``UserError`` if there is none."""
        steps = self.steps()
        if not steps:
            raise UserError(f"{self} has no checkpoint yet: nothing was saved before the run stopped")
        return steps[-1]

    def best(self) -> int:
        """Returns the step of the checkpoint that validation found best; the newest if none was evaluated."""
        best = self.description().get("evaluation", {}).get("best", "loss")
        ranks = {step: ranking(self.checkpoint_metrics(step), best) for step in self.steps()}
        evaluated = {step: rank for step, rank in ranks.items() if math.isfinite(rank)}
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
            raise UserError(f"{self} has no checkpoint {which!r}: choose newest, best or a step ({have})")
        return int(which)

    def checkpoint_metrics(self, step: int) -> dict[str, float]:
        """Returns the validation metrics saved with a checkpoint; empty if that step was not evaluated."""
        path = self.checkpoints / str(step) / "metrics" / "metrics"
        return read_json(path) if path.exists() else {}

    def checkpoint_record(self, step: int) -> dict[str, Any]:
        """Returns what was saved beside the arrays: format, step, experiment, versions of the packages."""
        return read_json(self.checkpoints / str(step) / "record" / "metadata")

    def publish(self) -> None:
        """Copies what has changed to the bucket, where the run lies in one; ``UserError`` if that refuses."""
        if self.mirror:
            self.mirror.publish()

    def rows(self) -> list[dict[str, Any]]:
        """Returns the lines of metrics.jsonl; a line cut off by a crash is left out.

        Raises:
          UserError: a line is not a JSON object.
        """
        return list(_rows(self.metrics))

    def keep(self, files: Mapping[str, str]) -> None:
        """Writes files of the data (tokenizer, sizes), or checks that they are those the run began with.

        Raises:
          UserError: the run has another one, so its data has changed since it was started.
        """
        for name, text in files.items() if self.primary else ():
            file = self.path / name
            if not file.exists():
                write_atomically(file, text)
            elif file.read_text(encoding="utf-8") != text:
                raise UserError(
                    f"the data of {self} has changed since the run began: its {name} is not the one"
                    " made now; choose another --workdir"
                )


def ranking(metrics: dict[str, float], best: str = "loss") -> float:
    """Returns the figure that says which checkpoint is best (lower is better); infinity if there is none.

    Args:
      metrics: of the validation.
      best: what makes it the best, as in ``Evaluation``.
    """
    if best != "loss":
        figure = -metrics.get(f"valid/{best}", -math.inf)
    else:
        figure = metrics.get("valid/bits_per_byte", metrics.get("valid/loss", math.inf))
    return figure if math.isfinite(figure) else math.inf


def higher_is_better(metric: str) -> bool:
    """Returns whether a metric is a score and not a loss: BLEU is, and accuracies are, on test rows too.

    So is all that GLUE measures ("metrics/...").
    """
    scores = ("accuracy", "bleu", "f1", "matthews", "pearson")
    return any(score in metric for score in scores) or metric.startswith(("test/", "metrics/"))


def is_run(path: Path | str) -> bool:
    """Returns whether there is a directory; of a bucket always True, for opening it will tell."""
    return is_object(path) or Path(path).is_dir()


def on_disk(path: Path | str) -> Path:
    """Returns the path of a run directory that must lie in a file system; ``UserError`` if it does not."""
    place = located(path)
    if is_object(place):
        raise UserError(
            f"{place}: only networks are trained in a bucket; write to a DIRECTORY here, and copy it with:"
            f" gcloud storage cp --recursive DIRECTORY {place}"
        )
    return Path(path)


def open_run(path: Path | str) -> RunDirectory:
    """Returns a run directory for reading; ``UserError`` if there is none at that path."""
    directory = RunDirectory(Path(path))
    if is_object(place := located(path)):
        mirror = Mirror(_scratch(), place)
        mirror.fetch()
        directory = RunDirectory(mirror.local, mirror=mirror)
    elif not directory.path.is_dir():
        raise UserError(f"no run directory at {directory}")
    if not directory.experiment.exists():
        raise UserError(f"{directory} is not a run directory: it has no experiment.json")
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
      UserError: the directory is in use, was made by another experiment, has taken more steps already, is
        something else altogether, or cannot be written.
    """
    directory = _directory(path, primary)
    stored = json.dumps({"format": FORMAT, **description}, indent=2) + "\n"
    if not primary:
        if directory.mirror:
            directory.mirror.fetch()
            write_atomically(directory.experiment, stored)
        yield directory
        return
    with contextlib.ExitStack() as stack:
        try:
            directory.path.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(directory)
            lock = stack.enter_context(open(directory.lock, "a+", encoding="utf-8"))
            _acquire(lock, directory)
            if directory.mirror:
                directory.mirror.fetch()
            check_same_experiment(directory, description)
            _check_steps_to_come(directory, description)
            if not directory.mirror:
                directory.checkpoints.mkdir(exist_ok=True)
            directory.events.mkdir(exist_ok=True)
            write_atomically(directory.experiment, stored)
        except OSError as error:
            raise UserError(f"cannot use {directory} as run directory: {error.strerror}") from error
        directory.publish()
        try:
            yield directory
        except Exception:
            with contextlib.suppress(UserError):
                directory.publish()
            raise
        directory.publish()


def _directory(path: Path | str, primary: bool) -> RunDirectory:
    """Returns a run directory for training; ``UserError`` if its bucket cannot be used."""
    place = located(path)
    if not is_object(place):
        return RunDirectory(Path(path), primary)
    check_bucket(place)
    # In one place of the machine, so that the lock there keeps out a second process.
    local = cache_directory() / "runs" / content_hash(str(place)) if primary else _scratch()
    return RunDirectory(local, primary, Mirror(local, place))


def _scratch() -> Path:
    """Returns a new directory that lasts as long as the process."""
    made = tempfile.mkdtemp(prefix="headway-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


def _acquire(lock: TextIO, directory: RunDirectory) -> None:
    """Takes the lock and writes down who has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        raise UserError(
            f"run directory {directory} is in use by {holder}; wait for it or choose another --workdir"
        ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()


def _refuse_foreign(directory: RunDirectory) -> None:
    """Refuses a directory with files in it that no run has put there."""
    mirror = directory.mirror
    names = mirror.names() if mirror else [entry.name for entry in directory.path.iterdir()]
    if directory.experiment.name in names:
        return
    own = {"lock", "experiment.json.tmp", "checkpoints", "events", "tokenizer.json", "text.json"}
    foreign = sorted(set(names) - own)
    if foreign:
        raise UserError(
            f"{directory} is not empty and not a run directory (it has {foreign[0]}); choose another"
            " --workdir"
        )


def check_same_experiment(directory: RunDirectory, description: dict[str, Any]) -> None:
    """Refuses (``UserError``) a directory of another experiment, naming the first fields that differ."""
    if not directory.experiment.exists():
        return
    # Through JSON, so that tuples and lists compare equal.
    now = flatten(json.loads(json.dumps(description)))
    there = {**_defaults(directory.description(), now), **flatten(directory.description())}
    absent = object()
    differing = [
        f"{name} ({there.get(name, 'absent')!r} there, {now.get(name, 'absent')!r} now)"
        for name in sorted(there.keys() | now.keys())
        if not _may_change(name) and there.get(name, absent) != now.get(name, absent)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"{directory} was made by a different experiment: {', '.join(differing[:3])}{more};"
            " choose another --workdir"
        )


def _may_change(name: str) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in _MAY_CHANGE)


def _check_steps_to_come(directory: RunDirectory, description: dict[str, Any]) -> None:
    """Refuses to train a run to fewer steps than it has taken: its description would not be true of it."""
    steps, taken = description.get("steps"), directory.steps()
    if steps is not None and taken and taken[-1] > steps:
        raise UserError(
            f"{directory} is at step {taken[-1]} already, beyond steps {steps}; choose {taken[-1]} or more,"
            " or another --workdir"
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
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            yield record_of(line, f"{path}, line {number}")
