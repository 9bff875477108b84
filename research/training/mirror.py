"""The small files of a run in a bucket: read, and appended to, in a copy on this machine.

An object cannot be appended to. So description, metrics, tokenizer and event files are written to a directory
of this machine, and copied to the bucket before each checkpoint is committed there: a checkpoint never lacks
the metrics that led to it.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from research.data.object_store import explained, filesystem

_OWN = ("lock",)


class Mirror:
    """A copy of a run's small files on this machine.

    Args:
      local: directory of the copy.
      place: directory of the run in the bucket, gs://bucket/name.
    """

    def __init__(self, local: Path, place: Path) -> None:
        self.local, self.place = local, place
        self._there: dict[str, tuple[int, int]] = {}  # what is in the bucket as it is here: size, time

    def names(self) -> list[str]:
        """Returns the names of the run's files and folders in the bucket; ``UserError`` if it refuses."""
        with explained(self.place), contextlib.suppress(FileNotFoundError):
            found = filesystem().ls(str(self.place), detail=False)
            return sorted({path.rstrip("/").rsplit("/", 1)[-1] for path in found})
        return []

    def fetch(self) -> None:
        """Makes the copy what the bucket has, but for folders; ``UserError`` if that refuses."""
        for entry in self.local.iterdir():
            if entry.name not in _OWN:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        with explained(self.place), contextlib.suppress(FileNotFoundError):
            for info in filesystem().ls(str(self.place), detail=True):
                name = info["name"].rsplit("/", 1)[-1]
                if info["type"] == "file" and name:
                    (self.local / name).write_bytes(filesystem().cat(info["name"]))
                    self._there[name] = self._state(name)

    def publish(self) -> None:
        """Copies to the bucket what has changed here since it was copied; ``UserError`` if that refuses."""
        for path in sorted(self.local.rglob("*")):
            name = path.relative_to(self.local).as_posix()
            if not path.is_file() or name in _OWN or name.endswith(".tmp"):
                continue
            state = self._state(name)
            if self._there.get(name) != state:
                with explained(self.place):
                    filesystem().pipe(f"{self.place}/{name}", path.read_bytes())
                self._there[name] = state

    def _state(self, name: str) -> tuple[int, int]:
        stat = (self.local / name).stat()
        return stat.st_size, stat.st_mtime_ns
