"""Token streams: documents as one flat, memory-mapped array of tokens."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Int64, Integer

from research.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class TokenStream:
    """Documents laid end to end: ``<eot> document 1 <eot> document 2 <eot> ... <eot>``.

    Input i is tokens[i] and its target is tokens[i + 1]; input i belongs to the document that the <eot> at or
    before it opens. So every target is real, no token is wasted, and no prediction needs another document.

    Attributes:
      tokens: uint16, or uint32 where the vocabulary needs it.
      starts: index of the <eot> that opens each document, ascending; starts[0] is 0.
      bytes: length of the text in UTF-8 bytes.
    """

    tokens: Integer[np.ndarray, " tokens"]
    starts: Int64[np.ndarray, " documents"]
    bytes: int

    def __len__(self) -> int:
        """Number of (input, target) pairs: the targets are all tokens and one <eot> after each document."""
        return len(self.tokens) - 1

    @property
    def targets_per_byte(self) -> float:
        """Targets per UTF-8 byte: bits per byte = bits per target * this."""
        return len(self) / self.bytes

    @classmethod
    def open(cls, directory: Path) -> TokenStream:
        """Memory-maps what `StreamWriter` wrote in ``directory``."""
        meta = json.loads((directory / "stream.json").read_text())
        tokens = np.memmap(directory / "tokens.bin", dtype=meta["dtype"], mode="r")
        starts = np.memmap(directory / "starts.bin", dtype=np.int64, mode="r")
        return cls(np.asarray(tokens), np.asarray(starts), meta["bytes"])


class StreamWriter:
    """Writes a `TokenStream`, batch by batch of documents; a context manager."""

    def __init__(self, directory: Path, tokenizer: Tokenizer, *, keep_text: bool = False) -> None:
        """Starts a stream in a new ``directory``; ``keep_text`` also writes the text, as text.bin."""
        directory.mkdir()
        self._tokenizer = tokenizer
        self._directory = directory
        self._dtype = np.dtype(np.uint16 if tokenizer.vocabulary <= 1 << 16 else np.uint32)
        self._tokens = open(directory / "tokens.bin", "wb")  # noqa: SIM115
        self._starts = open(directory / "starts.bin", "wb")  # noqa: SIM115
        self._text = open(directory / "text.bin", "wb") if keep_text else None  # noqa: SIM115
        self.length = 0
        self.bytes = 0

    def write(self, pieces: Sequence[tuple[str, bool]]) -> None:
        """Appends (text, whether it opens a document), texts that do not go on with the document before."""
        ids = self._tokenizer.encode_batch([text for text, _ in pieces])
        for (text, opens), encoded in zip(pieces, ids, strict=True):
            if opens:
                self._starts.write(np.int64(self.length).tobytes())
                encoded = [self._tokenizer.end_of_text, *encoded]
            data = text.encode()
            self._tokens.write(np.array(encoded, self._dtype).tobytes())
            if self._text:
                self._text.write(data)
            self.length += len(encoded)
            self.bytes += len(data)

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tokens.write(np.array([self._tokenizer.end_of_text], self._dtype).tobytes())
        for file in (self._tokens, self._starts, self._text):
            if file:
                file.close()
        meta = {"dtype": self._dtype.name, "bytes": self.bytes}
        (self._directory / "stream.json").write_text(json.dumps(meta))
