"""The English prose that ships with Python: a corpus of a few megabytes that is on every machine."""

from __future__ import annotations

import ast
import dataclasses
import html.parser
import re
from collections.abc import Iterator
from pathlib import Path

from research.data.documents import Document
from research.data.standard_library import StandardLibrary

_COMMENT = re.compile(r"[ \t]*#+!?[ \t]?(.*)")
_SENTENCE = re.compile(r"[A-Za-z][a-z]+ [a-z]+ .*[a-z][.:?!]$")
"""What a comment must end as, so that it is taken for prose and not for code that was switched off."""
_TEXTS = ("LICENSE.txt", "email/architecture.rst", "idlelib/*.txt", "idlelib/help.html")


@dataclasses.dataclass(frozen=True)
class PythonProse(StandardLibrary):
    """Docstrings and comments of the standard library, the language reference of ``pydoc``, IDLE's help, and
    the licence.

    One document per file: its texts in order, with an empty line between them.
    """

    name = "python-prose"

    def documents(self) -> Iterator[Document]:
        """Yields the documents; files that are not UTF-8, are no Python, or hold no prose are left out."""
        for path in self._paths():
            try:
                source = (self.root / path).read_bytes().decode("utf-8")
                texts = docstrings(source) + comments(source)
            except (UnicodeDecodeError, SyntaxError, ValueError):
                continue
            if path.endswith("pydoc_data/topics.py"):
                texts = self.topics(source)
            if texts:
                yield {"path": path, "text": "\n\n".join(texts)}
        for file in (file for pattern in _TEXTS for file in sorted(self.root.glob(pattern))):
            text = file.read_text(encoding="utf-8", errors="replace")
            if file.suffix == ".html":
                text = without_markup(text)
            yield {"path": Path(file).relative_to(self.root).as_posix(), "text": text}


def docstrings(source: str) -> list[str]:
    """Returns the docstrings of a Python file in order; SyntaxError or ValueError if it is none."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return [text for node in nodes if (text := ast.get_docstring(node))]


def comments(source: str) -> list[str]:
    """Returns the comments of a Python file that stand on lines of their own and read as sentences."""
    found, block = [], []
    for line in [*source.split("\n"), ""]:
        if match := _COMMENT.fullmatch(line):
            block.append(match[1])
        elif block:
            text = "\n".join(block).strip()
            if _SENTENCE.search(" ".join(text.split())):
                found.append(text)
            block = []
    return found


def without_markup(page: str) -> str:
    """Returns the text of an HTML page."""
    parser = _Texts()
    parser.feed(page)
    parser.close()
    return "".join(parser.texts)


class _Texts(html.parser.HTMLParser):
    """Collects what stands between tags."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def handle_data(self, data: str) -> None:
        """Keeps a text."""
        self.texts.append(data)
