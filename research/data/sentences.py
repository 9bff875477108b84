"""Documents as sentences of tokens, and rows packed of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Integer

from research.data.tokenizer import Tokenizer

_BORDER = re.compile(
    r"(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)"
    r"(?:(?<=[.!?])|(?<=[.!?][\"')\]\u201d\u2019]))\s+(?=[\"'(\[\u201c\u2018]?[A-Z])|\n[ \t]*\n\s*"
)
"""White space between sentences, or an empty line."""
_CHUNK = 1 << 13
"""Sentences tokenised at once."""
_SLACK = 32
"""A document is cut at the end of a sentence if that leaves less than this part of a row empty."""


def split_sentences(text: str) -> list[str]:
    """Returns the sentences of English text, by punctuation and empty lines; none is empty."""
    return [sentence for sentence in _BORDER.split(text) if sentence and not sentence.isspace()]


@dataclasses.dataclass(frozen=True, eq=False)
class Sentences:
    """Documents of sentences of tokens, laid end to end.

    Attributes:
      tokens: uint16, or uint32 where the vocabulary needs it; no special tokens between sentences.
      sentences: index of the first token of each sentence, and at the end the number of tokens.
      documents: index of the first sentence of each document, and at the end the number of sentences.
    """

    tokens: Integer[np.ndarray, " tokens"]
    sentences: Int64[np.ndarray, " borders"]
    documents: Int64[np.ndarray, " borders"]

    @classmethod
    def of(cls, texts: Iterable[str], tokenizer: Tokenizer) -> Sentences:
        """Returns the tokens of documents."""
        tokens: list[np.ndarray] = [np.zeros(0, np.uint32)]
        lengths: list[int] = []
        documents = [0]
        dtype = np.uint16 if tokenizer.vocabulary <= 1 << 16 else np.uint32
        for text in texts:
            sentences = split_sentences(text)
            for start in range(0, len(sentences), _CHUNK):
                encoded = [ids for ids in tokenizer.encode_batch(sentences[start : start + _CHUNK]) if ids]
                tokens += [np.array([i for ids in encoded for i in ids], dtype)]
                lengths += map(len, encoded)
            if len(lengths) > documents[-1]:
                documents.append(len(lengths))
        borders = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return cls(np.concatenate(tokens).astype(dtype), borders.astype(np.int64), np.array(documents))

    def save(self, directory: Path) -> None:
        """Writes the arrays to a new ``directory``."""
        directory.mkdir()
        for field in dataclasses.fields(self):
            np.save(directory / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def open(cls, directory: Path) -> Sentences:
        """Memory-maps what ``save`` wrote."""
        names = (field.name for field in dataclasses.fields(cls))
        return cls(*(np.load(directory / f"{name}.npy", mmap_mode="r") for name in names))

    def alone(self) -> Sentences:
        """Returns the same sentences, each a document of its own."""
        return dataclasses.replace(self, documents=np.arange(len(self.sentences)))

    def pieces(self, room: int, continues: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yields (begin, end) tokens of documents cut into pieces of at most ``room`` tokens.

        A cut comes at the end of a sentence where one is near, otherwise between words.
        """
        for document in range(len(self.documents) - 1):
            first, last = self.documents[document], self.documents[document + 1]
            borders = self.sentences[first : last + 1]
            begin, end = int(borders[0]), int(borders[-1])
            while end - begin > room:
                cut = int(borders[np.searchsorted(borders, begin + room, side="right") - 1])
                if begin + room - cut > room // _SLACK:
                    cut = begin + room
                    while cut > begin + room // 2 and continues[self.tokens[cut]]:
                        cut -= 1
                yield begin, cut
                begin = cut
            if end > begin:
                yield begin, end


def pack(sizes: Int64[np.ndarray, " pieces"], room: int) -> list[list[int]]:
    """Returns which pieces share a row of ``room`` tokens: best fit, longest first."""
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(room + 1)]  # by room that is left
    there = 0  # bit n: some row has n left
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        if fitting := there >> size:
            left = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[left].pop()
            if not open_rows[left]:
                there &= ~(1 << left)
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(piece)
        open_rows[left - size].append(row)
        there |= 1 << (left - size)
    return rows
