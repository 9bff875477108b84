"""What a source of text is: something that can be identified, and yields documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Protocol, TypedDict


class Document(TypedDict):
    """One document: nothing attends across its borders, and nothing else is cut up between the splits."""

    path: str
    """Name of the document within its source; decides the split it falls into."""
    text: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """All documents of a source.

    Attributes:
      train: documents; can be iterated again and again, and reads them from disk as it goes.
      valid: documents of the source's own validation split, if it has one.
      bytes: approximate size of ``train``.
    """

    train: Iterable[Document]
    valid: Iterable[Document] | None
    bytes: int


class LocalSource(Protocol):
    """Text on this machine, to be copied into a TFDS data set by `research.data.builder`."""

    @property
    def name(self) -> str:
        """Name in messages."""

    def fingerprint(self) -> list[object]:
        """Returns JSON-serialisable values that change when the text does."""

    def documents(self) -> Iterator[Document]:
        """Yields the documents in a fixed order."""
