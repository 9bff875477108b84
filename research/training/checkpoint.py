"""Checkpoints by Orbax: written atomically, in the background, restored onto any mesh.

A checkpoint holds the state, the data iterator's state, a record (format, experiment, versions of the
packages, the loop's own counters) and, where the step was evaluated, its validation metrics. Beside them lies
a manifest of sizes and checksums: what a crash of the machine truncated is found out when it is restored.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.metadata
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
from jax.experimental import multihost_utils

from research.data.object_store import refusal, unreachable
from research.errors import FULL, LostError, UserError, unwrapped
from research.scale import hosts
from research.training.arrays import read_arrays
from research.training.migrations import FORMAT
from research.training.run_directory import RunDirectory, ranking

if TYPE_CHECKING:
    import grain
    import orbax.checkpoint as ocp

    from research.training.experiment import Checkpointing

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "headway")

# What a disk may refuse; TensorStore passes it on as text.
_DISK_ERRORS = tuple(
    os.strerror(number) for number in (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
)

Tree = TypeVar("Tree")


class Restored(NamedTuple):
    """What a checkpoint gives back to the loop."""

    step: int
    """Step it was saved at."""
    state: Any
    """The state, on the mesh asked for."""
    record: dict[str, Any]
    """What was saved beside it."""


class Checkpoints:
    """Checkpoints of a run that is training: saves in the background, keeps what the policy says.

    Args:
      directory: the run directory, claimed.
      policy: what to keep.
      best: what makes a checkpoint the best, which is kept as well, as in ``Evaluation``.
    """

    def __init__(self, directory: RunDirectory, policy: Checkpointing, best: str = "loss") -> None:
        self._directory = directory
        self._saving: int | None = None
        self._manager = _manager(directory, policy, best, self._before_commit)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, KeyboardInterrupt):
            return  # at once: an unfinished save is dropped by the next run
        try:
            self._manager.close()
        except Exception:
            if kind is None:
                raise

    def save(
        self,
        step: int,
        state: Any,
        batches: grain.DatasetIterator | grain.DataLoaderIterator | None,
        record: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Starts to save; returns as soon as the state has been copied, so that its buffers may be donated.

        Args:
          step: the step that the state is the result of.
          state: pytree of arrays.
          batches: the data iterator, exactly ``step`` batches on; None for a state that no training led to.
          record: what to keep beside the arrays, as JSON.
          metrics: validation metrics of this very state; empty if it was not evaluated.

        Raises:
          UserError: this save, or the one before, failed for want of space or rights.
        """
        import grain
        import orbax.checkpoint as ocp

        self.wait()
        record = {"format": FORMAT, "step": step, "versions": versions(), **record}
        items: dict[str, Any] = {
            "state": ocp.args.PyTreeSave(state),
            "record": ocp.args.JsonSave(record),
        }
        if batches is not None:
            items["batches"] = grain.checkpoint.CheckpointSave(batches)
        self._saving = step
        self._guard(
            lambda: self._manager.save(
                step, args=ocp.args.Composite(**items), metrics=dict(metrics) or None, force=True
            )
        )

    def check(self) -> None:
        """Raises the error of a save that failed in the background; ``UserError`` if it is the disk's."""
        self._guard(self._manager.check_for_errors)

    def wait(self) -> None:
        """Waits until what is being saved is safe; raises as ``check`` does."""
        self._guard(self._manager.wait_until_finished)

    def restore_newest(
        self,
        abstract_state: Any,
        batches: grain.DatasetIterator | grain.DataLoaderIterator,
        note: Callable[[str], None],
    ) -> Restored | None:
        """Restores the newest checkpoint that is whole, moving damaged ones aside.

        Args:
          abstract_state: pytree of ``jax.ShapeDtypeStruct`` with shardings.
          batches: data iterator to set; on return it gives the batch after the restored step.
          note: told, in a line, about every damaged checkpoint.

        Returns:
          What was restored; None if there is no whole checkpoint.

        Raises:
          UserError: the newest whole checkpoint is of a newer format, or does not fit.
        """
        found = False
        while (newest := self._newest()) is not None:
            step, flaw = newest
            if flaw is None:
                return restore(self._directory, abstract_state, step, batches, verified=True)
            note(f"checkpoint {step} is damaged ({flaw}): falling back to the one before")
            self._set_aside(step)
            found = True
        if found:
            note("no checkpoint is whole: starting from the beginning")
        return None

    def _newest(self) -> tuple[int, str | None] | None:
        """Returns the newest checkpoint and what is wrong with it; the first process looks for all."""
        flaw: str | None = "damaged"

        def look() -> tuple[int, int]:
            nonlocal flaw
            steps = self._directory.steps()
            flaw = damage(self._directory, steps[-1]) if steps else None
            return steps[-1] if steps else -1, int(flaw is None)

        step, good = hosts.of_first(look, 2)
        return None if step < 0 else (step, None if good else flaw)

    def _set_aside(self, step: int) -> None:
        """Moves a damaged checkpoint away: training will come to its step again and needs the name."""
        if self._directory.primary:
            self._directory.files.set_aside(step)
        _barrier()
        self._manager.reload()

    def _before_commit(self) -> None:
        """Called by Orbax, in its thread, when all is written but not yet committed."""
        assert self._saving is not None
        self._directory.publish()
        self._directory.files.seal(self._saving)

    def _guard(self, action: Callable[[], Any]) -> None:
        """Turns errors of the disk into one line."""
        try:
            action()
        except Exception as error:
            if self._directory.mirror and (lost := unreachable(error)):
                place = f"step {self._saving} in {self._directory}"
                raise LostError(f"cannot save {place}: the store cannot be reached ({lost})") from error
            reason = refusal(error, self._directory) or _disk_error(error)
            if reason is None:
                raise
            good = [step for step in self._directory.steps() if step != self._saving]
            last = (
                f"the last good checkpoint is step {good[-1]}" if good else "there is no checkpoint before it"
            )
            raise UserError(
                f"cannot save step {self._saving} in {self._directory}: {reason}; {last};"
                " make room and run the same command again"
            ) from error


def restore(
    directory: RunDirectory,
    abstract_state: Tree,
    step: int,
    batches: grain.DatasetIterator | grain.DataLoaderIterator | None = None,
    *,
    verified: bool = False,
) -> Restored:
    """Restores one checkpoint, or the part of it that ``abstract_state`` has (the parameters alone, say).

    Args:
      directory: the run directory.
      abstract_state: pytree of ``jax.ShapeDtypeStruct`` with shardings; they decide where the arrays lie,
        whatever mesh they were saved from.
      step: the checkpoint.
      batches: data iterator to set, if any.
      verified: whether the files have been checked already.

    Raises:
      UserError: the checkpoint is damaged, is of a newer format, does not fit ``abstract_state``, or is of no
        training that could be gone on with (when ``batches`` is to be set).
    """
    _silence()
    position = next((directory.checkpoints / str(step) / "batches").glob("process_0-of-*.json"), None)
    with contextlib.nullcontext() if verified else _watched(directory, step):
        if batches is not None and position is None:
            raise UserError(
                f"{directory} was imported or averaged, not trained: begin another run with --from"
                f" {directory}"
            )
        restored = _restored(directory, abstract_state, step)
    if batches is not None and position is not None:
        # A batch is a record and a process reads its rows of each, so all of them were at the same place.
        batches.set_state(json.loads(position.read_text(encoding="utf-8")))
    return restored


def _restored(directory: RunDirectory, abstract_state: Any, step: int) -> Restored:
    record = directory.checkpoint_record(step)
    if record["format"] > FORMAT:
        raise UserError(
            f"checkpoint {step} of {directory} has format {record['format']}, written by headway"
            f" {record['versions'].get('headway')}: this version reads up to {FORMAT}, upgrade headway"
        )
    folder = directory.checkpoints / str(step) / "state"
    if misfit := _misfit(folder, abstract_state):
        raise UserError(f"checkpoint {step} of {directory} does not fit: {misfit}{_upgrades(record)}")
    return Restored(step, read_arrays(folder, abstract_state), record)


def damage(directory: RunDirectory, step: int) -> str | None:
    """Returns what is wrong with the files of a checkpoint; None if they are as they were written."""
    return directory.files.damage(step)


@contextlib.contextmanager
def _watched(directory: RunDirectory, step: int) -> Iterator[None]:
    """Looks for damage while a checkpoint is read within, so that the disk need give each byte but once.

    Raises:
      UserError: the checkpoint is damaged, whatever else that has led to.
    """

    def refuse(flaw: str | None) -> None:
        if flaw is not None:
            others = ", ".join(str(other) for other in directory.steps() if other != step) or "none"
            raise UserError(
                f"checkpoint {step} of {directory} is damaged ({flaw}); other checkpoints: {others}"
            ) from None

    refuse(directory.files.damage(step, contents=False))  # a file that is cut short must not be mapped
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(damage, directory, step)
        try:
            yield
        except Exception:
            refuse(looking.result())
            raise
        refuse(looking.result())


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a checkpoint depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _manager(
    directory: RunDirectory, policy: Checkpointing, best: str, committed: Callable[[], None]
) -> ocp.CheckpointManager:
    import grain
    import orbax.checkpoint as ocp

    _silence()
    managers = ocp.checkpoint_managers
    rank = functools.partial(ranking, best=best)
    # BestN keeps the last in order: the lowest rank.
    keep: list[Any] = [
        managers.LatestN(policy.keep_last),
        managers.BestN(get_metric_fn=rank, reverse=True, n=1, keep_checkpoints_without_metrics=False),
    ]
    if policy.keep_every:
        keep.append(managers.EveryNSteps(policy.keep_every))
    options = ocp.CheckpointManagerOptions(
        preservation_policy=managers.AnyPreservationPolicy(keep),
        best_fn=rank,  # or the metrics are not written
        best_mode="min",
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=committed),
    )
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(use_compression=False),
        "record": ocp.JsonCheckpointHandler(),
        "batches": grain.checkpoint.CheckpointHandler(),
    }
    return ocp.CheckpointManager(directory.checkpoints, options=options, item_handlers=handlers)


def _barrier() -> None:
    """Waits for the other processes of the run."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoint")


def _misfit(folder: Path, abstract_state: Any) -> str | None:
    """Returns the first array of a state that is not in the checkpoint in that shape; None if all are."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        there = _shapes(reader.metadata(folder).item_metadata.tree)
    for name, shape in _shapes(abstract_state).items():
        if name not in there:
            return f"it has no {name}"
        if there[name] != shape:
            return f"{name} has shape {there[name]} there, {shape} here"
    return None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns path -> shape of the arrays of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves
    }


def _upgrades(record: Mapping[str, Any]) -> str:
    """Returns which packages have changed since a checkpoint was written: the likely cause of a misfit."""
    then, now = record["versions"], versions()
    changed = [
        f"{name} {then[name]} -> {now[name]}" for name in now if then.get(name, now[name]) != now[name]
    ]
    return f" (since it was written: {', '.join(changed)})" if changed else ""


def _disk_error(error: BaseException) -> str | None:
    """Returns what the disk refused, looking through wrapping errors; None if it is something else."""
    said = [str(seen) for seen in unwrapped(error)]
    return next((text for one in said for text in _DISK_ERRORS if text in one), None)


@functools.cache
def _silence() -> None:
    """Keeps errors that Orbax raises from being printed as well: the user gets one line.

    It logs their tracebacks; and when one array of several cannot be written, nobody asks for the errors of
    the others: asyncio logs them, or, when its event loop has been closed, Python prints them as unraisable.
    """
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    hook = sys.unraisablehook

    def quiet(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = quiet
