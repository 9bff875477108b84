"""Text files as documents: one file, a directory, a glob, or JSON lines; plain, gzip or xz."""

from __future__ import annotations

import dataclasses
import difflib
import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research.data.documents import Document, LocalSource
from research.data.object_store import (
    OPENERS,
    UNREADABLE,
    explained,
    is_object,
    located,
    objects,
    opened,
    version,
)
from research.errors import UserError, nearest


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds; UserError if it cannot be read, or is no JSON."""
    try:
        with explained(path):
            return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: it is not JSON") from error


@dataclasses.dataclass(frozen=True)
class TextFiles(LocalSource):
    """The files that ``path`` names; each is a document, or one per line of a ``.jsonl``."""

    path: str
    """A file, a directory (every file below it), or a glob (``**`` goes any depth); also of a bucket (gs://)."""
    field: str = "text"
    """Field that holds the text in JSON lines."""
    name = "files"

    def fingerprint(self) -> list[object]:
        """Returns the field, and name, size and modification time (or generation) of each file."""
        path = located(self.path)
        if is_object(path):
            versions = objects(path)
            return [self.field, [(key, *versions[file]) for key, file in self.files()]]
        return [self.field, [(key, *version(file)) for key, file in self.files()]]

    def files(self) -> list[tuple[str, Path]]:
        """Returns (document path, file), sorted; document paths are relative, so splits survive a move.

        Raises:
          UserError: there is no such file, or nothing in the directory or glob.
        """
        path = located(self.path)
        if is_object(path):
            return _objects_below(path)
        if path.is_file():
            return [(_key(Path(path.name)), path)]
        if path.is_dir():
            root, found = path, [p for p in path.rglob("*") if not _hidden(p.relative_to(path))]
        elif glob.has_magic(self.path):
            root = _fixed(path)
            found = [Path(p) for p in glob.glob(str(path), recursive=True)]
        else:
            raise UserError(f"no file, directory or glob {self.path!r} (--data.path)" + _beside(path))
        files = sorted((_key(p.relative_to(root)), p) for p in found if p.is_file())
        if not files:
            raise UserError(f"there are no files in {self.path!r} (--data.path)")
        return files

    def documents(self) -> Iterator[Document]:
        """Yields the documents; files without text are left out.

        Raises:
          UserError: a file cannot be read, is not UTF-8 or not valid JSON lines; or there is no text at all.
        """
        empty = True
        for key, file in self.files():
            for document in self._read(key, file):
                if document["text"]:
                    empty = False
                    yield document
        if empty:
            raise UserError(f"{self.path} is empty: there is no text in it")

    def _read(self, key: str, file: Path) -> Iterator[Document]:
        compression = file.suffix if file.suffix in OPENERS else ""
        jsonl = file.name.removesuffix(compression).endswith(".jsonl")
        try:
            with opened(file) as stream:
                if not jsonl:
                    yield {"path": key, "text": _decode(stream.read(), file)}
                    return
                offset = 0
                for number, line in enumerate(stream, start=1):
                    # A byte-order mark, of Windows, is no part of JSON.
                    if text := _decode(line, file, number, offset).removeprefix("\ufeff").strip():
                        yield {"path": f"{key}:{number}", "text": self._field(text, f"{file}, line {number}")}
                    offset += len(line)
        except UNREADABLE as error:
            raise UserError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error

    def _field(self, line: str, where: str) -> str:
        record = record_of(line, where)
        if self.field not in record:
            hint = nearest(self.field, record) if record else ""
            raise UserError(f"{where}: no field {self.field!r} (--data.field)" + hint)
        text = record[self.field]
        if not isinstance(text, str):
            raise UserError(f"{where}: field {self.field!r} is a {type(text).__name__}, not text")
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
            raise UserError(
                f"{where}: field {self.field!r} is not valid Unicode (a lone surrogate)"
            ) from None
        return text


def record_of(line: str, where: str) -> dict[str, Any]:
    """Returns the object on a line of a ``.jsonl``; UserError, saying ``where``, if there is none."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond what Python takes
        raise UserError(f"{where}: JSON that cannot be read ({str(error).partition(';')[0]})") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: a {type(record).__name__}, where a JSON object should be")
    return record


def _decode(data: bytes, file: Path, line: int = 1, offset: int = 0) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise UserError(
            f"{file} is not UTF-8 at byte {offset + error.start} (line {line}); "
            "if it is Latin-1, convert it with: iconv -f latin1 -t utf-8"
        ) from None


def _key(path: Path) -> str:
    """Returns a relative path as the name of a document; bytes that are not UTF-8 are written as \\xff."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _fixed(path: Path) -> Path:
    """Returns the part of a glob that is no pattern."""
    pattern = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
    return path.parents[len(path.parts) - 1 - pattern]


def _objects_below(path: Path) -> list[tuple[str, Path]]:
    """Returns what `TextFiles.files` does, of a bucket."""
    found = list(objects(path))
    if not found:
        raise UserError(f"there are no objects {str(path)!r} (--data.path)")
    if found == [path]:
        return [(path.name, path)]
    root = _fixed(path) if glob.has_magic(str(path)) else path
    keys = ((file.relative_to(root), file) for file in found)
    return sorted((key.as_posix(), file) for key, file in keys if not _hidden(key) or root != path)


def _beside(path: Path) -> str:
    """Returns a hint at the nearest name in the directory where ``path`` should be."""
    if not path.parent.is_dir():
        return f"; nor is there a directory {str(path.parent)!r}"
    close = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    return f"; did you mean {str(path.parent / close[0])!r}?" if close else ""
