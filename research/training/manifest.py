"""What the files of a checkpoint were when it was written, so that damage is found out."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from research.errors import UserError
from research.training.run_directory import RunDirectory, write_atomically

_MANIFEST = "manifest.json"
_WINDOW = 1 << 25
_THREADS = 2


def write_manifest(folder: Path) -> None:
    """Writes sizes and checksums of the files of a checkpoint, which are on the disk when it returns."""
    for _, path in _files(folder).values():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    write_atomically(folder / _MANIFEST, json.dumps(dict(_fingerprints(folder)), indent=1))


@contextlib.contextmanager
def watched(directory: RunDirectory, step: int) -> Iterator[None]:
    """Looks for damage while a checkpoint is read within, so that the disk need give each byte but once.

    Raises:
      UserError: the checkpoint is damaged, whatever else that has led to.
    """

    def refuse(flaw: str | None) -> None:
        if flaw is not None:
            raise UserError(f"checkpoint {step} of {directory.path} is damaged ({flaw})") from None

    refuse(damage(directory, step, contents=False))  # a file that is cut short must not be mapped
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(damage, directory, step)
        try:
            yield
        except Exception:
            refuse(looking.result())
            raise
        refuse(looking.result())


def damage(directory: RunDirectory, step: int, *, contents: bool = True) -> str | None:
    """Returns what is wrong with the files of a checkpoint; None if they are as they were written.

    Args:
      directory: the run directory.
      step: the checkpoint.
      contents: whether to read the files; their names and sizes are looked at in any case.
    """
    folder = directory.checkpoints / str(step)
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{_MANIFEST} is missing"
    except ValueError:
        return f"{_MANIFEST} is not JSON"
    found = {name: size for name, (size, _) in _files(folder).items()}
    for name, (size, _) in manifest.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != size:
            return f"{name} has {found[name]} bytes instead of {size}"
    for name, fingerprint in _fingerprints(folder) if contents else ():
        if name in manifest and fingerprint != manifest[name]:
            return f"{name} has been altered"
    return None


def _files(folder: Path) -> dict[str, tuple[int, Path]]:
    """Returns size and path of every file of a checkpoint, but for those written after the manifest."""
    later = (_MANIFEST, f"{_MANIFEST}.tmp", "_CHECKPOINT_METADATA", "commit_success.txt")
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not (path.parent == folder and path.name in later)
    }


def _fingerprints(folder: Path) -> Iterator[tuple[str, list[int]]]:
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
