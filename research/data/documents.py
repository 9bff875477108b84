"""What a source of text is: something that can be identified, and yields documents."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Iterator
from typing import TypedDict


class Document(TypedDict):
    """One document: nothing attends across its borders."""

    path: str
    """Name of the document within its source; decides the split it falls into."""
    text: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """All documents of a source, read from disk whenever they are iterated.

    Attributes:
      train: documents.
      valid: documents of the source's own validation split, if it has one.
      bytes: approximate size of ``train``.
    """

    train: Iterable[Document]
    valid: Iterable[Document] | None
    bytes: int


class Source(abc.ABC):
    """Where text is from."""

    name: str
    """Name in messages."""

    @abc.abstractmethod
    def fingerprint(self) -> list[object]:
        """Returns JSON-serialisable values that change when the text does."""

    @abc.abstractmethod
    def corpus(self) -> Corpus:
        """Opens the documents, preparing them on first use; UserError if they cannot be read."""


class LocalSource(Source):
    """Text on this machine, copied on first use into a TFDS data set in the cache."""

    @abc.abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yields the documents in a fixed order."""

    def corpus(self) -> Corpus:
        """Opens the copy of the documents, making it on first use; UserError if they cannot be read."""
        from research.data.builder import local_corpus  # TFDS takes half a second to import

        return local_corpus(self)
