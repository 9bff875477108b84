"""Where prepared data is kept on disk: directories that are built once, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from research.errors import UserError


def cache_directory() -> Path:
    """Returns the cache's root: ``$HEADWAY_CACHE``, ``$XDG_CACHE_HOME/headway`` or ``~/.cache/headway``."""
    if root := os.environ.get("HEADWAY_CACHE"):
        return Path(root).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "headway"


def content_hash(*parts: object) -> str:
    """Returns a short hash of JSON-serialisable ``parts``, for use as a file name."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()


def build_once(directory: Path, build: Callable[[Path], None]) -> Path:
    """Returns ``directory``, first filling it with ``build(temporary directory)`` unless it exists.

    The temporary directory is renamed into place when it is complete, so a crash leaves nothing half-made,
    and of several processes building the same thing at once the first to finish wins.

    Raises:
      UserError: the directory cannot be written.
    """
    if directory.is_dir():
        return directory
    temporary = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}")
    try:
        try:
            temporary.mkdir(parents=True)
            build(temporary)
            with contextlib.suppress(FileExistsError):
                _rename(temporary, directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot write prepared data to {directory}: {error.strerror or error}; "
            "name another place with the environment variable HEADWAY_CACHE"
        ) from error
    return directory


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if target.is_dir():  # another process was faster; which errno says so depends on the file system
            raise FileExistsError(target) from None
        raise
