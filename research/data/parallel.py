"""Parallel text: pairs of lines from two files, from Multi30k, or from a set of the TFDS catalogue."""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.data.cache import build_once, cache_directory, content_hash
from research.data.object_store import UNREADABLE, is_file, located, opened, version
from research.errors import UserError, nearest

Pair = tuple[str, str]
"""A source line and its translation."""
_MISSING = object()


class ParallelSource(abc.ABC):
    """Where parallel text is from."""

    @abc.abstractmethod
    def fingerprint(self) -> list[object]:
        """Returns JSON-serialisable values that change when the text does."""

    @abc.abstractmethod
    def splits(self) -> list[str]:
        """Returns the names of the splits; "train" is one of them, and so is "valid" where there is one."""

    @abc.abstractmethod
    def pairs(self, split: str) -> Iterable[Pair]:
        """Returns the pairs of a split, in their order; UserError if they cannot be read."""


def lines_of(path: Path) -> Iterator[str]:
    """Yields the lines of a UTF-8 file, plain, gzip or xz by its suffix, without their ends.

    Lines end at LF alone (CR LF is taken as one end), never at the other separators of Unicode: those stand
    inside sentences, and to split there would shift one side against the other.

    Raises:
      UserError: the file cannot be read, or a line is not UTF-8 (file and line).
    """
    try:
        with opened(path) as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}, line {number} is not UTF-8 (byte {error.start} of the line); if it is "
                        "Latin-1, convert it with: iconv -f latin1 -t utf-8"
                    ) from None
    except UNREADABLE as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def words_of(line: str) -> list[str]:
    """Returns the words of a tokenised line, divided by spaces and tabs alone."""
    return [word for word in line.replace("\t", " ").split(" ") if word]


def text_record(sides: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """Returns what identifies texts, given as words, as JSON: sentences, words and a checksum of each."""
    figures = {}
    for name, sentences in sides.items():
        checksum = hashlib.sha256()
        for number, words in enumerate(sentences):
            checksum.update(("\n" * (number > 0) + " ".join(words)).encode())
        figures[name] = {
            "sentences": len(sentences),
            "words": sum(map(len, sentences)),
            "sha256": checksum.hexdigest(),
        }
    return json.dumps(figures, indent=2) + "\n"


def paired(left: Iterator[str], right: Iterator[str], names: tuple[object, object]) -> Iterator[Pair]:
    """Yields the pairs of two texts, line by line; UserError if one has more lines (both counts are told)."""
    for number, pair in enumerate(itertools.zip_longest(left, right, fillvalue=_MISSING)):
        if _MISSING in pair:
            here = [number + (side is not _MISSING) for side in pair]
            counts = [n + sum(1 for _ in rest) for n, rest in zip(here, (left, right), strict=True)]
            raise UserError(
                f"{names[0]} has {counts[0]} lines and {names[1]} {counts[1]}: line n of one must be the "
                "translation of line n of the other"
            )
        yield pair  # type: ignore[misc]  # both are text here


def aligned(source: Path, target: Path) -> Iterator[Pair]:
    """Yields the pairs of two line-aligned files.

    Raises:
      UserError: a file cannot be read, or their numbers of lines differ.
    """
    return paired(lines_of(source), lines_of(target), (source, target))


@dataclasses.dataclass(frozen=True)
class ParallelFiles(ParallelSource):
    """Two line-aligned files per split; plain, .gz or .xz."""

    files: dict[str, tuple[str, str]]
    """Split -> (source file, target file)."""

    def fingerprint(self) -> list[object]:
        """Returns name and version of each file; UserError if there is no such file."""
        stats = []
        for split, paths in self.files.items():
            for path in paths:
                if not is_file(path):
                    raise UserError(f"no file {path!r} (the {split} text)")
                stats.append([split, str(Path(path)), *version(located(path))])
        return ["files", stats]

    def splits(self) -> list[str]:
        """Returns the names of the splits."""
        return list(self.files)

    def pairs(self, split: str) -> Iterable[Pair]:
        """Returns the pairs of a split."""
        source, target = map(located, self.files[split])
        return aligned(source, target)


@dataclasses.dataclass(frozen=True)
class _Records:
    """Pairs of a TFDS data source, decoded as they are read."""

    records: Sequence[dict[str, Any]]
    pair: Callable[[dict[str, Any]], tuple[bytes, bytes] | None]

    def __iter__(self) -> Iterator[Pair]:
        for i in range(len(self.records)):
            if (pair := self.pair(self.records[i])) is not None:
                yield pair[0].decode("utf-8"), pair[1].decode("utf-8")


@dataclasses.dataclass(frozen=True)
class Multi30kText(ParallelSource):
    """Multi30k (Elliott et al., 2016), from a directory that holds it or else from its public address."""

    source: str
    """Language of the source: "en", "de", "fr" or "cs"."""
    target: str
    """Language of the target."""
    directory: str | None
    """Where the files already are."""
    tokenised: bool
    """The owners' lower-cased, normalised, tokenised form, on which most figures are published."""

    def fingerprint(self) -> list[object]:
        """Returns what identifies the text: of a directory its files; ``UserError`` if it lacks one."""
        from research.data.multi30k import local_file

        found: list[object] = ["multi30k", self.source, self.target, self.tokenised]
        if self.directory is None:
            return found
        for split in self.splits():
            for language in (self.source, self.target):
                file = local_file(self.directory, split, language, tokenised=self.tokenised)
                found.append([str(file.absolute()), *version(file)])
        return found

    def splits(self) -> list[str]:
        """Returns the names of the splits: training, validation and those tests that have both languages."""
        from research.data.multi30k import splits

        return splits((self.source, self.target))

    def pairs(self, split: str) -> Iterable[Pair]:
        """Returns the pairs of a split, from the data set's copy in the cache."""
        from research.data.builder import prepare
        from research.data.multi30k import ADDRESS, Multi30k

        languages = (self.source, self.target)
        directory = cache_directory() / "sources" / content_hash("multi30k", 1, self.fingerprint())

        def make(data_dir: Path) -> Multi30k:
            return Multi30k(
                languages=languages, directory=self.directory, tokenised=self.tokenised, data_dir=data_dir
            )

        place = self.directory or ADDRESS
        build_once(
            directory, lambda d: prepare(make(d), f"multi30k from {place}", quiet=bool(self.directory))
        )
        return _Records(make(directory).as_data_source(split), lambda r: (r[self.source], r[self.target]))


@dataclasses.dataclass(frozen=True)
class NamedTranslation(ParallelSource):
    """A translation set of the TFDS catalogue: "wmt14_translate/de-en", "ted_multi_translate" …"""

    name: str
    source: str
    target: str

    def fingerprint(self) -> list[object]:
        """Returns the full name and version, and the languages; ``UserError`` if it lacks one of them."""
        builder = self._builder()
        self._pair(builder)  # before anything is downloaded
        return [builder.info.full_name, self.source, self.target]

    def splits(self) -> list[str]:
        """Returns the names of the splits, the validation split as "valid".

        The data set is downloaded and prepared on first use.
        """
        return [_OUR_NAMES.get(split, split) for split in self._prepared().info.splits]

    def pairs(self, split: str) -> Iterable[Pair]:
        """Returns the pairs of a split."""
        builder = self._prepared()
        theirs = next(name for name in builder.info.splits if _OUR_NAMES.get(name, name) == split)
        return _Records(builder.as_data_source(theirs), self._pair(builder))

    def _builder(self) -> Any:
        from research.data.builder import named_builder

        return named_builder(self.name)

    def _prepared(self) -> Any:
        from research.data.builder import prepare

        builder = self._builder()
        prepare(builder, f"tfds:{self.name}")
        return builder

    def _pair(self, builder: Any) -> Callable[[dict[str, Any]], tuple[bytes, bytes] | None]:
        """Returns how a record becomes a pair; None where it lacks one of the languages."""
        import tensorflow_datasets as tfds

        for name, feature in (("", builder.info.features), *builder.info.features.items()):
            several = isinstance(feature, tfds.features.TranslationVariableLanguages)
            if several or isinstance(feature, tfds.features.Translation):
                self._check(feature.languages)
                return functools.partial(_pair, name=name, several=several, wanted=(self.source, self.target))
        raise UserError(f"tfds:{self.name} is no translation set: it has no pair of languages")

    def _check(self, languages: Iterable[str]) -> None:
        for language in (self.source, self.target):
            if language not in languages:
                raise UserError(
                    f"tfds:{self.name} has no language {language!r}{nearest(language, languages)}"
                )


def _pair(
    record: dict[str, Any], *, name: str, several: bool, wanted: tuple[str, str]
) -> tuple[bytes, bytes] | None:
    """Returns the pair in a record's field (or itself): language -> text, or ``several`` in two lists."""
    fields = record[name] if name else record
    if several:
        languages = [language.decode() for language in fields["language"]]
        fields = dict(zip(languages, fields["translation"], strict=True))
    source, target = (fields.get(language) for language in wanted)
    return None if source is None or target is None else (source, target)


_OUR_NAMES = {"validation": "valid", "val": "valid"}


@dataclasses.dataclass(frozen=True)
class ParallelText:
    """Parallel text: where it is from and what is held out of it."""

    corpus: str = "multi30k"
    """Where the text is from: "multi30k", "files" (needs source and target), "test" (files as well, but with
    nothing to train on), or "tfds:NAME"."""
    source_language: str = "en"
    """Language translated from."""
    target_language: str = "de"
    """Language translated into."""
    source: str | None = None
    """File of source lines for corpus "files"; plain, .gz or .xz."""
    target: str | None = None
    """File of their translations, line by line."""
    valid_source: str | None = None
    """File of source lines for validation; default: the last valid_fraction of the training pairs."""
    valid_target: str | None = None
    """File of their translations."""
    valid_fraction: float = 0.02
    """Share of the pairs held out where there is no validation text."""
    directory: str | None = None
    """Where Multi30k's files already are; default: they are downloaded."""
    tokenised: bool = False
    """Multi30k in its owners' lower-cased tokenised form, on which most figures are published."""

    def open(self) -> ParallelSource:
        """Returns the text that the description names; UserError where it does not hold together."""
        if self.corpus == "multi30k":
            return Multi30kText(self.source_language, self.target_language, self.directory, self.tokenised)
        if self.corpus.startswith("tfds:"):
            name = self.corpus.removeprefix("tfds:")
            return NamedTranslation(name, self.source_language, self.target_language)
        if self.corpus not in ("files", "test"):
            choices = ("multi30k", "files", "test", "tfds:NAME")
            raise UserError(f"data.corpus {self.corpus!r} is unknown{nearest(self.corpus, choices)}")
        if self.source is None or self.target is None:
            raise UserError(f'data.corpus "{self.corpus}" needs --data.source FILE and --data.target FILE')
        if self.corpus == "test":
            return ParallelFiles({"test": (self.source, self.target)})
        files = {"train": (self.source, self.target)}
        if (self.valid_source is None) != (self.valid_target is None):
            raise UserError("data.valid_source and data.valid_target go together; one of them is missing")
        if self.valid_source is not None and self.valid_target is not None:
            files["valid"] = (self.valid_source, self.valid_target)
        return ParallelFiles(files)

    def training_pairs(self, text: ParallelSource) -> tuple[list[Pair], list[Pair]]:
        """Returns the pairs for training and for validation, as they are; ``UserError`` if there are none."""
        if "train" not in text.splits():
            raise UserError(f'data.corpus "{self.corpus}" has nothing to train on')
        train = list(text.pairs("train"))
        if "valid" in text.splits():
            return train, list(text.pairs("valid"))
        held_out = max(1, round(len(train) * self.valid_fraction))
        return train[:-held_out], train[-held_out:]
