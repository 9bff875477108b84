"""Text for language modelling: the description that names it and the tokens it becomes."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from research.data.cache import build_once, cache_directory, content_hash
from research.data.documents import Corpus, Source
from research.data.object_store import is_file
from research.data.stream import StreamWriter, TokenStream
from research.data.tokenizer import Tokenizer, cut
from research.errors import UserError, nearest

_FORMAT = 2
"""Part of every cache key: raise it when what is cached changes."""
_SOURCES = ("standard-library", "python-prose", "files", "tfds:NAME")
_CHUNK = 1 << 22
"""Characters tokenised and written at once."""
_SAMPLE = 1 << 11
"""Bytes of training text per token of the vocabulary that a tokenizer is trained on, at most."""


@dataclasses.dataclass(frozen=True)
class PreparedText:
    """Text as tokens.

    Attributes:
      tokenizer: made it, and turns it back.
      train: training tokens.
      valid: validation tokens.
      valid_path: file with the validation text, documents end to end.
      length: tokens in a row.
      batch: rows in a step.
    """

    tokenizer: Tokenizer
    train: TokenStream
    valid: TokenStream
    valid_path: Path
    length: int
    batch: int

    def files(self) -> dict[str, str]:
        """Returns what a run must keep to read its text again: contents by file name."""
        splits = {"train": self.train, "valid": self.valid}
        sizes = {name: {"tokens": len(text), "bytes": text.bytes} for name, text in splits.items()}
        return self.tokenizer.files(sizes)

    def train_batches(self, *, seed: int, process_index: int, process_count: int) -> Any:
        """Returns endless shuffled batches, a Grain iterator (see `research.data.packing.train_batches`)."""
        from research.data.packing import train_batches

        share = {"process_index": process_index, "process_count": process_count}
        return train_batches(self.train, length=self.length, batch=self.batch, seed=seed, **share)

    def valid_batches(
        self, *, limit: int | None = None, process_index: int, process_count: int
    ) -> Sequence[Any]:
        """Returns the validation batches, in order, at most ``limit``."""
        from research.data.packing import valid_batches

        share = {"process_index": process_index, "process_count": process_count}
        return valid_batches(self.valid, length=self.length, batch=self.batch, limit=limit, **share)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns "loss" in nats per token and "bits_per_byte" of the text, from a model's sums.

        Bits per byte count every token, the end-of-text tokens included, over the UTF-8 bytes of the text.
        """
        nats = sums["loss"] / sums["weight"]
        return {"loss": nats, "bits_per_byte": nats / math.log(2) * self.valid.targets_per_byte}


@dataclasses.dataclass(frozen=True)
class HeldOutText:
    """Where text is from, and which part of it is held out for validation."""

    source: str = "standard-library"
    """Where the text is from: "standard-library", "python-prose", "files" (needs path), or "tfds:NAME"."""
    path: str | None = None
    """Text for source "files": a file, directory, glob, or .jsonl; plain, .gz or .xz."""
    field: str = "text"
    """Field that holds the text, in JSONL lines and TFDS examples."""
    split: Literal["documents", "tail"] = "documents"
    """What validation holds out: whole documents, or the last part of each document's characters."""
    valid_fraction: float = 0.1
    """Share of the text held out for validation (sources with a validation split of their own use that)."""

    def problems(self) -> Iterator[str]:
        """Yields what does not fit together, each as one clear sentence."""
        if self.source not in _SOURCES[:-1] and not self.source.startswith("tfds:"):
            yield f"data.source {self.source!r} is unknown{nearest(self.source, _SOURCES)}"
        if self.path is not None and self.source != "files":
            yield f"data.path is for data.source 'files', not for {self.source!r}; add --data.source files"

    def open(self, report: Callable[[str], None]) -> LazyCorpus:
        """Returns the text, to be read when it is needed; UserError if there is no such source."""
        return LazyCorpus(_source(self), report)

    def identity(self, source: Source) -> list[object]:
        """Returns JSON-serialisable values that change when the text or what is held out of it does."""
        return [_FORMAT, source.name, source.fingerprint(), self.split, self.valid_fraction]

    def texts(self, corpus: Corpus) -> Iterator[tuple[Literal["train", "valid"], str]]:
        """Yields (split, text) for every document or part of one, empty ones left out."""
        own = corpus.valid is not None
        for document in corpus.train:
            text = document["text"]
            if own:
                pieces = {"train": text}
            elif self.split == "documents":
                pieces = {"valid" if _share(document["path"]) < self.valid_fraction else "train": text}
            else:
                cut = int(len(text) * (1 - self.valid_fraction))
                pieces = {"train": text[:cut], "valid": text[cut:]}
            yield from ((part, piece) for part, piece in pieces.items() if piece)  # type: ignore[misc]
        yield from (("valid", document["text"]) for document in corpus.valid or () if document["text"])

    def nothing_left(self, purpose: str) -> UserError:
        """Returns the error for a split that is empty."""
        advice = "for few documents use --data.split tail" if self.split == "documents" else "add text"
        return UserError(
            f'no text is left for {purpose} by data.split "{self.split}" with data.valid_fraction '
            f"{self.valid_fraction:g}; {advice}"
        )


@dataclasses.dataclass(frozen=True)
class TextData(HeldOutText):
    """Text, how it is cut into tokens, and how tokens become batches."""

    tokenizer: str = "bpe"
    """"bpe" (byte-level, trained on the training text), "characters", or the path of a tokenizer.json."""
    length: int = 256
    """Tokens in a training sequence."""
    batch: int = 32
    """Sequences in a step, over all devices."""

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Returns shape and dtype of the arrays of a batch, over all devices."""
        rows = (self.batch, self.length)
        integers = dict.fromkeys(("tokens", "targets", "segments", "positions"), (rows, "int32"))
        return {**integers, "weights": (rows, "float32")}

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a batch, over all devices."""
        return self.batch * self.length

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        """Returns the tokenizer that a run keeps in ``directory``."""
        return Tokenizer.load(directory / Tokenizer.FILE)

    def prepare(
        self,
        *,
        vocabulary: int,
        tokenizer: Tokenizer | None = None,
        report: Callable[[str], None] = lambda message: None,
    ) -> PreparedText:
        """Returns the text as tokens; each stage is done once and cached on disk (see `research.data.cache`).

        Args:
          vocabulary: rows of the model's embedding; a tokenizer trained here is trained to fit.
          tokenizer: use this one (a run's own) instead of the one described.
          report: receives a line before each stage that takes time.

        Raises:
          UserError: the source cannot be read or holds too little, or the tokenizer does not fit.
        """
        self._check(tokenizer)
        corpus = self.open(report)
        split = self.identity(corpus.source)
        if tokenizer is None and self.tokenizer in ("bpe", "characters"):
            key = content_hash(split, self.tokenizer, vocabulary if self.tokenizer == "bpe" else None)
            directory = build_once(
                cache_directory() / "tokenizers" / key,
                lambda d: self._train(corpus, vocabulary, report).save(d / Tokenizer.FILE),
            )
            tokenizer = Tokenizer.load(directory / Tokenizer.FILE)
        elif tokenizer is None:
            tokenizer = Tokenizer.load(self.tokenizer)
        tokenizer.check_fits(vocabulary)
        made_by = tokenizer
        key = content_hash(split, tokenizer.digest())
        directory = build_once(
            cache_directory() / "tokens" / key, lambda d: self._tokenise(corpus, made_by, d, report)
        )
        train, valid = (TokenStream.open(directory / name) for name in ("train", "valid"))
        return PreparedText(
            tokenizer, train, valid, directory / "valid" / "text.bin", self.length, self.batch
        )

    def _check(self, tokenizer: Tokenizer | None) -> None:
        if not 0 < self.valid_fraction < 1:
            raise UserError(f"data.valid_fraction is {self.valid_fraction}; it should be between 0 and 1")
        for name, value in (("length", self.length), ("batch", self.batch)):
            if value < 1:
                raise UserError(f"data.{name} is {value}; it should be at least 1")
        named = tokenizer is None and self.tokenizer not in ("bpe", "characters")
        if named and not is_file(self.tokenizer):
            hint = nearest(self.tokenizer, ("bpe", "characters"))
            raise UserError(f"data.tokenizer {self.tokenizer!r} is no file and no kind of tokenizer{hint}")

    def _train(self, corpus: LazyCorpus, vocabulary: int, report: Callable[[str], None]) -> Tokenizer:
        if self.tokenizer == "characters":
            return Tokenizer.characters(text for _, text in self.texts(corpus.get()))
        size = corpus.get().bytes
        report(f"training a byte-level BPE tokenizer of {vocabulary} tokens")
        texts = (text for part, text in self.texts(corpus.get()) if part == "train")
        pieces = (piece for text in texts for piece in cut(text))
        # Each token of two and more bytes is somewhere in the text; room for more would be taken in vain.
        return Tokenizer.train_bpe(sample(pieces, size, vocabulary), min(vocabulary, size + 257))

    def _tokenise(
        self, corpus: LazyCorpus, tokenizer: Tokenizer, directory: Path, report: Callable[[str], None]
    ) -> None:
        texts = self.texts(corpus.get())
        report("tokenising")
        with (
            StreamWriter(directory / "train", tokenizer) as train,
            StreamWriter(directory / "valid", tokenizer, keep_text=True) as valid,
        ):
            for chunk in _chunks(texts, tokenizer):
                train.write(chunk["train"])
                valid.write(chunk["valid"])
        for purpose, writer in (("training", train), ("validation", valid)):
            if not writer.bytes:
                raise self.nothing_left(purpose)


class LazyCorpus:
    """Opens a source's documents when they are first needed: with all stages cached, they are not."""

    def __init__(self, source: Source, report: Callable[[str], None]) -> None:
        self.source, self._report = source, report
        self._corpus: Corpus | None = None

    def get(self) -> Corpus:
        """Returns the documents."""
        if self._corpus is None:
            self._report(f"reading {self.source.name}")
            self._corpus = self.source.corpus()
        return self._corpus


def sample(pieces: Iterable[str], size: int, vocabulary: int) -> Iterator[str]:
    """Yields what to train a tokenizer on: all of the pieces if they are few, else evenly spread ones.

    Args:
      pieces: the training text.
      size: how long it is in all, in bytes.
      vocabulary: tokens of the tokenizer.
    """
    keep = min(1.0, _SAMPLE * vocabulary / max(size, 1))
    yield from (piece for i, piece in enumerate(pieces) if math.floor(i * keep) > math.floor((i - 1) * keep))


def _source(data: HeldOutText) -> Source:
    # Imported here: a description must not cost the start-up time of what it may never use.
    if data.source == "standard-library":
        from research.data.standard_library import StandardLibrary

        return StandardLibrary()
    if data.source == "python-prose":
        from research.data.prose import PythonProse

        return PythonProse()
    if data.source == "files":
        from research.data.files import TextFiles

        if data.path is None:
            raise UserError(
                'data.source "files" needs --data.path FILE, DIRECTORY or GLOB; for Tiny Shakespeare: '
                "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
            )
        return TextFiles(data.path, data.field)
    if data.source.startswith("tfds:"):
        from research.data.builder import NamedDataset

        return NamedDataset(data.source.removeprefix("tfds:"), data.field)
    raise UserError(f"data.source {data.source!r} is unknown{nearest(data.source, _SOURCES)}")


def _share(path: str) -> float:
    """Returns a number in [0, 1), the same for the same path everywhere."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big") / 2**64


def _chunks(
    texts: Iterable[tuple[str, str]], tokenizer: Tokenizer
) -> Iterator[dict[str, list[tuple[str, bool]]]]:
    """Yields about `_CHUNK` characters at a time, by split: pieces, and whether each opens a document."""
    chunk: dict[str, list[tuple[str, bool]]] = {"train": [], "valid": []}
    size = 0
    for part, text in texts:
        for i, piece in enumerate(tokenizer.pieces(text)):
            chunk[part].append((piece, i == 0))
            size += len(piece)
            if size >= _CHUNK:
                yield chunk
                chunk, size = {"train": [], "valid": []}, 0
    yield chunk
