"""The text of the Python standard library that runs this: a corpus that is on every machine."""

from __future__ import annotations

import ast
import dataclasses
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from research.data.documents import Document, LocalSource
from research.errors import UserError

_TOPICS = "pydoc_data/topics.py"
_NO_TEXT = {"__pycache__", "site-packages", "dist-packages", "encodings", "test", "tests", "idle_test"}
"""Left out: installed packages, tests (some distributions strip them) and tables of characters."""
_TABLES = {"html/entities.py"}


@dataclasses.dataclass(frozen=True)
class StandardLibrary(LocalSource):
    """Sources of the standard library, and the prose of the language reference that ``pydoc`` carries.

    One document per file; its path is relative to the library.
    """

    root: Path = dataclasses.field(default_factory=lambda: Path(sysconfig.get_path("stdlib")))
    """Directory of the library."""
    name = "standard-library"

    def fingerprint(self) -> list[object]:
        """Returns what identifies the text: version, and name, size and modification time of each file."""
        stats = [(path, (self.root / path).stat()) for path in self._paths()]
        return [platform.python_version(), [(path, s.st_size, s.st_mtime_ns) for path, s in stats]]

    def documents(self) -> Iterator[Document]:
        """Yields the documents, sorted by path; a file that is not UTF-8 is left out."""
        for path in self._paths():
            try:
                text = (self.root / path).read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                continue
            yield {"path": path, "text": "\n".join(self.topics(text)) if path == _TOPICS else text}

    @staticmethod
    def topics(source: str) -> list[str]:
        """Returns the texts in ``topics = {name: text}``, which the file holds as escaped string literals."""
        for statement in ast.parse(source).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
                return list(ast.literal_eval(statement.value).values())
        return [source]

    def _paths(self) -> list[str]:
        paths = []
        for directory, names, files in os.walk(self.root):
            names[:] = [n for n in names if n not in _NO_TEXT]
            files = [f for f in files if f.endswith(".py") and not f.startswith("_sysconfigdata")]
            paths += [Path(directory, f).relative_to(self.root).as_posix() for f in files]
        if not paths:
            raise UserError(
                f"no Python sources in {self.root}; use --data.source files --data.path TEXT instead"
            )
        return sorted(set(paths) - _TABLES)
