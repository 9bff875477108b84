"""Files in Google Cloud Storage, named gs://bucket/name: as paths, opened, and what the store refuses.

Listing and opening is gcsfs's (an extra), by way of which etils, and so Orbax and JAX, do it as well.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import gzip
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from research.errors import UserError, unwrapped

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
"""What opens compressed files, by suffix."""
UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""What reading a file may raise, a damaged compressed one too."""
_URL = re.compile(r"([a-z][a-z0-9+]+):/+([^/]+)(.*)", re.DOTALL)  # a Path has one slash only


def is_object(path: object) -> bool:
    """Returns whether a path lies in a bucket: gs://bucket/name."""
    return re.match("gs:/+[^/]", str(path)) is not None


def located(path: str | os.PathLike[str]) -> Path:
    """Returns a path, of the file system or of a bucket (etils.epath, which has the methods of Path).

    Raises:
      UserError: it is that of a store which is not supported, gcsfs is not installed, or ~USER is nobody.
    """
    found = _URL.match(str(path))
    if found is None:
        try:
            return Path(path).expanduser()
        except RuntimeError:
            raise UserError(f"{path}: there is no user {Path(path).parts[0][1:]!r}") from None
    scheme, bucket, name = found.groups()
    if scheme != "gs":
        raise UserError(
            f"{path}: of object stores gs:// alone is known; mount this one and name the directory"
        )
    filesystem()
    from etils import epath

    return cast(Path, epath.Path(f"gs://{bucket}{name}"))


def is_file(path: str | os.PathLike[str]) -> bool:
    """Returns whether there is a file; of a bucket always True, for opening it will say what is wrong."""
    place = located(path)
    return is_object(place) or place.is_file()


@functools.cache
def filesystem() -> Any:
    """Returns fsspec's view of Google Cloud Storage, which keeps no listings; ``UserError`` without gcsfs."""
    # By default gcsfs asks by gRPC what kind of bucket it is, which takes rights that nothing here needs.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import gcsfs  # noqa: F401
    except ImportError as error:
        raise UserError('gs:// needs gcsfs, which is not installed: pip install -e ".[gcs]"') from error
    import logging

    import fsspec

    # They log as well what they raise.
    for name in ("gcsfs", "google.auth"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Others (TensorStore, other hosts) write what it would remember as absent; this holds for etils as well.
    for name in ("gs", "gcs"):
        fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem("gs")


def check_bucket(path: Path) -> None:
    """Asks for the bucket of a path, as Orbax will; ``UserError`` if there is none, or it may not be used."""
    from google.cloud import storage

    bucket = re.split("/+", str(path))[1]
    with explained(path):
        storage.Client().get_bucket(bucket, timeout=20, retry=None)


def objects(path: Path) -> dict[Path, list[object]]:
    """Returns the files that an object, a prefix (all below it) or a glob names, with size and generation.

    Raises:
      UserError: the store refuses.
    """
    from etils import epath

    with explained(path):
        if glob.has_magic(str(path)):
            found = filesystem().glob(str(path), detail=True)
        else:
            found = filesystem().find(str(path), detail=True)
    infos = {name: info for name, info in found.items() if info["type"] == "file"}
    return {
        cast(Path, epath.Path(f"gs://{name}")): [info["size"], str(info["generation"])]
        for name, info in sorted(infos.items())
        if not name.endswith("/")  # what consoles make to show an empty folder
    }


def version(file: Path) -> list[object]:
    """Returns what changes when a file does: size, and time of modification or the object's generation.

    Raises:
      UserError: the store refuses.
    """
    if not is_object(file):
        stat = file.stat()
        return [stat.st_size, stat.st_mtime_ns]
    with explained(file):
        info = filesystem().info(str(file))
    return [info["size"], str(info["generation"])]


@contextlib.contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading bytes, plain, gzip or xz by its suffix.

    Raises:
      UserError: the store refuses; OSError, EOFError and LZMAError as they are where it is no object.
    """
    opener = OPENERS.get(file.suffix)
    if not is_object(file):
        with (opener or open)(file, "rb") as stream:
            yield stream
        return
    with explained(file), filesystem().open(str(file), "rb") as plain:
        if opener is None:
            yield plain
        else:
            with opener(plain, "rb") as stream:
                yield stream


@contextlib.contextmanager
def explained(path: object) -> Iterator[None]:
    """Turns what the store of ``path`` refuses, or fails to do, into a ``UserError`` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        line = refusal(error, path)
        if line is None:
            raise
        raise UserError(line) from error


def refusal(error: BaseException, path: object) -> str | None:
    """Returns what a store refused, looking through wrapping errors, and the command that mends it.

    None if it is something else, or if ``path`` is no object.
    """
    found = _URL.match(str(path))
    if found is None or found[1] != "gs":
        return None
    for seen in unwrapped(error):
        if (line := _refusal(seen, found[2])) is not None:
            return f"gs://{found[2]}{found[3]}: {line}"
    return None


def unreachable(error: BaseException) -> str | None:
    """Returns why a store does not answer, or fails by itself; None if it is something else."""
    for seen in unwrapped(error):
        text, kind, module = str(seen), type(seen).__name__, type(seen).__module__.split(".")[0]
        code = getattr(seen, "code", None)
        fails = "UNAVAILABLE" in text or code == 429 or (isinstance(code, int) and 500 <= code < 600)
        lost = isinstance(seen, (ConnectionError, TimeoutError)) or kind == "TransportError"
        if fails or lost or module in ("aiohttp", "requests", "urllib3"):
            return (text.splitlines() or [kind])[0][:200]
    return None


def _refusal(error: BaseException, bucket: str) -> str | None:
    text, kind, code = str(error), type(error).__name__, getattr(error, "code", None)
    credentials = type(error).__module__.startswith("google.auth") and kind != "TransportError"
    if credentials or code == 401 or "UNAUTHENTICATED" in text:
        return (
            "no credentials that the store accepts; log in with: gcloud auth application-default login (or"
            " give the machine a service account)"
        )
    if code == 403 or "PERMISSION_DENIED" in text or text.startswith("Forbidden"):
        return f"no permission{_denied(text, bucket)}"
    if code == 404 or "bucket does not exist" in text:
        return f"there is no bucket {bucket!r}; make it with: gcloud storage buckets create gs://{bucket}"
    if isinstance(error, FileNotFoundError):
        return f"no such object; what is there is told by: gcloud storage ls gs://{bucket}"
    if reason := unreachable(error):
        return f"the store cannot be reached ({reason}); mend the network and run the same command again"
    return None


def _denied(text: str, bucket: str) -> str:
    """Returns which permission is lacking, if the store says so, and the command that grants it."""
    right = re.search(r"storage\.(\w+)\.(\w+)", text)
    account = re.search(r"([\w.+-]+@[\w.-]+\.\w+) does not have", text)
    role = "objectUser"
    if right and right[1] == "buckets":
        role = "legacyBucketReader"
    elif right and right[2] in ("get", "list"):
        role = "objectViewer"
    who = "user:YOU@EXAMPLE.COM (or serviceAccount:…)"
    if account:
        who = ("serviceAccount:" if account[1].endswith(".gserviceaccount.com") else "user:") + account[1]
    lacking = f" ({right[0]})" if right else ""
    return (
        f"{lacking}; granted by: gcloud storage buckets add-iam-policy-binding gs://{bucket}"
        f" --role=roles/storage.{role} --member={who}"
    )
