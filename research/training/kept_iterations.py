"""What iterations of EM leave, kept in a directory, so that training which is killed goes on from there."""

from __future__ import annotations

import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from research.data.replacing import save_arrays
from research.errors import UserError
from research.statistical.iterations import Progress, State
from research.training.metrics import MetricsWriter
from research.training.run_directory import RunDirectory


class KeptIterations(Progress):
    """Keeps the state after each iteration, one file for each phase, replaced at once or not at all.

    Args:
      folder: where to.
      report: called with a line after each iteration.
      run: its metrics.jsonl gets a line for each iteration; None: there is none.
    """

    def __init__(self, folder: Path, report: Callable[[str], None], run: RunDirectory | None = None) -> None:
        super().__init__(report)
        self._folder, self._run = folder, run
        self._writer: MetricsWriter | None = None
        self._step, self._seconds, self._since = 0, 0.0, time.monotonic()

    def resume(self, phase: str, total: int, state: State) -> tuple[int, State]:
        """See ``Progress.resume``.

        Raises:
          UserError: what was kept cannot be read.
        """
        path = self._path(phase)
        if not path.exists():
            return 0, state
        leaves, structure = jax.tree.flatten(state)
        try:
            with np.load(path) as file:
                done, self._step = int(file["done"]), int(file["step"])
                self._seconds = float(file["seconds"])
                stored = [file[str(number)] for number in range(len(leaves))]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged ({error}): delete it, and its phase begins anew") from None
        self._since = time.monotonic()
        self.report(f"{phase}: {done} of {total} iterations are done already")
        new = [
            jnp.asarray(there) if isinstance(leaf, jax.Array) else there
            for leaf, there in zip(leaves, stored, strict=True)
        ]
        return done, jax.tree.unflatten(structure, new)

    def keep(self, phase: str, done: int, total: int, state: State, metrics: Mapping[str, float]) -> None:
        """See ``Progress.keep``: metrics first; a resumed run drops those whose state is not there.

        Raises:
          UserError: the disk does not take it.
        """
        super().keep(phase, done, total, state, metrics)
        seconds = self._seconds + time.monotonic() - self._since
        if metrics and self._run:
            self._writer = self._writer or MetricsWriter(self._run, self._step)
            self._writer.write(self._step + 1, {**metrics, "seconds": seconds})
        self._step += bool(metrics)
        arrays = {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(state))}
        arrays |= {"done": np.array(done), "step": np.array(self._step), "seconds": np.array(seconds)}
        path = self._path(phase)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_arrays(path, arrays)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error

    def close(self) -> None:
        """Closes the files of metrics."""
        if self._writer:
            self._writer.close()

    def forget(self) -> None:
        """Deletes the states: training is done, and what it came to is saved."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, phase: str) -> Path:
        return self._folder / f"{phase.replace(' ', '-')}.npz"
