"""The files of checkpoints, on a disk and in a bucket: which are committed, and whether they are whole.

On a disk a checkpoint is written under another name, and renamed when it is complete. An object store has no
renaming: there a checkpoint counts as soon as its commit_success.txt is there, which Orbax writes last.
"""

from __future__ import annotations

import abc
import contextlib
import json
import mmap
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from research.data.object_store import explained, filesystem, is_object
from research.data.replacing import write_atomically

MANIFEST = "manifest.json"
_COMMITTED = "commit_success.txt"
_LATER = (MANIFEST, f"{MANIFEST}.tmp", "_CHECKPOINT_METADATA", _COMMITTED)
"""Files that are written after the manifest."""
_WINDOW = 1 << 25
"""Bytes that are mapped at once."""
_THREADS = 2
"""Files read at once."""


def files_of(checkpoints: Path) -> CheckpointFiles:
    """Returns the files of a directory of checkpoints."""
    return InBucket(checkpoints) if is_object(checkpoints) else OnDisk(checkpoints)


class CheckpointFiles(abc.ABC):
    """The files of a directory of checkpoints, one folder each, named by the step."""

    def __init__(self, checkpoints: Path) -> None:
        self._checkpoints = checkpoints

    @abc.abstractmethod
    def steps(self) -> list[int]:
        """Returns the steps whose checkpoints are committed, ascending."""

    @abc.abstractmethod
    def seal(self, step: int) -> None:
        """Makes a checkpoint that is not yet committed durable, and writes its manifest."""

    @abc.abstractmethod
    def manifest(self, step: int) -> str | None:
        """Returns the manifest of a checkpoint; None if there is none."""

    @abc.abstractmethod
    def sizes(self, step: int) -> dict[str, int]:
        """Returns the sizes in bytes of a checkpoint's files, but for those written after the manifest."""

    @abc.abstractmethod
    def fingerprints(self, step: int) -> Iterator[tuple[str, list[Any]]]:
        """Yields name, and size in bytes with a checksum, of the files that ``sizes`` has."""

    @abc.abstractmethod
    def set_aside(self, step: int) -> None:
        """Moves a checkpoint to the folder damaged/ of the run."""

    def damage(self, step: int, *, contents: bool = True) -> str | None:
        """Returns what is wrong with the files of a checkpoint; None if they are as they were written.

        Args:
          step: the checkpoint.
          contents: whether to compare checksums; names and sizes are looked at in any case.
        """
        text = self.manifest(step)
        if text is None:
            return f"{MANIFEST} is missing"
        try:
            manifest = json.loads(text)
        except ValueError:
            return f"{MANIFEST} is not JSON"
        found = self.sizes(step)
        for name, (size, _) in manifest.items():
            if name not in found:
                return f"{name} is missing"
            if found[name] != size:
                return f"{name} has {found[name]} bytes instead of {size}"
        for name, fingerprint in self.fingerprints(step) if contents else ():
            if name in manifest and fingerprint != manifest[name]:
                return f"{name} has been altered"
        return None


class OnDisk(CheckpointFiles):
    """Files of a file system."""

    def steps(self) -> list[int]:
        """See ``CheckpointFiles.steps``."""
        if not self._checkpoints.is_dir():
            return []
        return sorted(int(entry.name) for entry in self._checkpoints.iterdir() if entry.name.isdecimal())

    def seal(self, step: int) -> None:
        """See ``CheckpointFiles.seal``."""
        folders = (self._checkpoints / str(step), *self._checkpoints.glob(f"{step}.*tmp*"))
        folder = next(folder for folder in folders if folder.is_dir())
        for _, path in _files(folder).values():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        write_atomically(folder / MANIFEST, json.dumps(dict(_checksums(folder)), indent=1))

    def manifest(self, step: int) -> str | None:
        """See ``CheckpointFiles.manifest``."""
        try:
            return (self._checkpoints / str(step) / MANIFEST).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def sizes(self, step: int) -> dict[str, int]:
        """See ``CheckpointFiles.sizes``."""
        return {name: size for name, (size, _) in _files(self._checkpoints / str(step)).items()}

    def fingerprints(self, step: int) -> Iterator[tuple[str, list[Any]]]:
        """See ``CheckpointFiles.fingerprints``; the checksum is CRC-32."""
        return _checksums(self._checkpoints / str(step))

    def set_aside(self, step: int) -> None:
        """See ``CheckpointFiles.set_aside``."""
        folder = self._checkpoints.parent / "damaged"
        folder.mkdir(exist_ok=True)
        names = (f"{step}" if not i else f"{step}-{i}" for i in range(1000))
        target = next(folder / name for name in names if not (folder / name).exists())
        (self._checkpoints / str(step)).rename(target)


class InBucket(CheckpointFiles):
    """Objects. The store keeps a checksum of each (CRC-32C), so that nothing is read to compare them."""

    def steps(self) -> list[int]:
        """See ``CheckpointFiles.steps``."""
        with explained(self._checkpoints):
            found = filesystem().glob(f"{self._checkpoints}/*/{_COMMITTED}")
        names = (name.split("/")[-2] for name in found)
        return sorted(int(name) for name in names if name.isdecimal())

    def seal(self, step: int) -> None:
        """See ``CheckpointFiles.seal``."""
        with explained(self._checkpoints):
            text = json.dumps(dict(self.fingerprints(step)), indent=1)
            filesystem().pipe(f"{self._checkpoints}/{step}/{MANIFEST}", text.encode())

    def manifest(self, step: int) -> str | None:
        """See ``CheckpointFiles.manifest``."""
        with explained(self._checkpoints), contextlib.suppress(FileNotFoundError):
            return filesystem().cat(f"{self._checkpoints}/{step}/{MANIFEST}").decode(errors="replace")
        return None

    def sizes(self, step: int) -> dict[str, int]:
        """See ``CheckpointFiles.sizes``."""
        return {name: size for name, (size, _) in self.fingerprints(step)}

    def fingerprints(self, step: int) -> Iterator[tuple[str, list[Any]]]:
        """See ``CheckpointFiles.fingerprints``."""
        folder = f"{self._checkpoints}/{step}/".removeprefix("gs://")
        with explained(self._checkpoints):
            found = filesystem().find(folder, detail=True)
        for path, info in sorted(found.items()):
            name = path.removeprefix(folder)
            if name not in _LATER:
                yield name, [info["size"], info["crc32c"]]

    def set_aside(self, step: int) -> None:
        """See ``CheckpointFiles.set_aside``."""
        folder = f"{self._checkpoints.parent}/damaged"
        names = (f"{step}" if not i else f"{step}-{i}" for i in range(1000))
        with explained(self._checkpoints):
            target = next(f"{folder}/{name}" for name in names if not filesystem().exists(f"{folder}/{name}"))
            filesystem().mv(f"{self._checkpoints}/{step}", target, recursive=True)


def _files(folder: Path) -> dict[str, tuple[int, Path]]:
    """Returns size and path of every file of a checkpoint, but for those written after the manifest."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not (path.parent == folder and path.name in _LATER)
    }


def _checksums(folder: Path) -> Iterator[tuple[str, list[Any]]]:
    """Yields name, and size in bytes with CRC-32, of every file of a checkpoint."""
    files = _files(folder)
    with ThreadPoolExecutor(_THREADS) as pool:
        checksums = pool.map(_checksum, [path for _, path in files.values()])
        for (name, (size, _)), checksum in zip(files.items(), checksums, strict=True):
            yield name, [size, checksum]


def _checksum(path: Path) -> int:
    """Returns the CRC-32 of a file, mapped in parts: to read it is to copy it, which takes longer."""
    checksum = 0
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for start in range(0, size, _WINDOW):
            length = min(_WINDOW, size - start)
            with mmap.mmap(file.fileno(), length, prot=mmap.PROT_READ, offset=start) as window:
                checksum = zlib.crc32(window, checksum)
    return checksum
