"""The description of a word aligner: what it learns from, and how."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from research.data.parallel import lines_of, words_of
from research.errors import UserError
from research.evaluation.alignment import Gold, parse_gold
from research.statistical.aligner import Aligner, read_sentences

_LONGEST = 100
"""Words of the longest training sentence of the shared task that is learnt from, as is usual."""


class Text(NamedTuple):
    """Sentence pairs as words, and gold links of the first of them, if there are any."""

    source: list[list[str]]
    target: list[list[str]]
    gold: list[Gold]


@dataclasses.dataclass(frozen=True)
class AlignedFiles:
    """Two files of tokenised sentences, line by line."""

    source: str | None = None
    """File of source sentences; plain, .gz or .xz."""
    target: str | None = None
    """File of their translations."""
    gold: str | None = None
    """File of gold links of all sentence pairs or the first ones, in the form of WPT or NAACL."""

    def read(self, report: Callable[[str], None] = lambda message: None) -> Text:
        """Returns the text; ``UserError`` if it cannot be read."""
        if self.source is None or self.target is None:
            raise UserError("an aligner learns from two files: --data.source FILE --data.target FILE")
        source, target = read_sentences(
            Path(self.source).expanduser(), Path(self.target).expanduser(), report
        )
        gold = [] if self.gold is None else _gold(Path(self.gold).expanduser(), source, target)
        return Text(source, target, gold)


@dataclasses.dataclass(frozen=True)
class Hansards:
    """English and French of the shared task of HLT-NAACL 2003, the test pairs first."""

    directory: str | None = None
    """Where test.en, test.fr, test.gold, train.part1.en.xz, train.part2.en.xz ... are."""
    pairs: int = 8000
    """How many of the training pairs to learn from; those with a side of over 100 words are left out."""

    def read(self, report: Callable[[str], None] = lambda message: None) -> Text:
        """Returns the text; ``UserError`` if it cannot be read."""
        del report
        if self.directory is None:
            raise UserError("--data.directory: where the files of the shared task are")
        if self.pairs < 0:
            raise UserError(f"--data.pairs {self.pairs}: at least 0")
        directory = Path(self.directory).expanduser()
        tests = [
            [words_of(line) for line in lines_of(directory / f"test.{language}")] for language in ("en", "fr")
        ]
        training = zip(*(self._training(directory, language) for language in ("en", "fr")), strict=True)
        kept = [pair for pair in training if all(len(side) <= _LONGEST for side in pair)]
        source, target = (test + [pair[k] for pair in kept] for k, test in enumerate(tests))
        return Text(source, target, _gold(directory / "test.gold", *tests))

    def _training(self, directory: Path, language: str) -> Iterator[list[str]]:
        parts = (lines_of(directory / f"train.part{number}.{language}.xz") for number in (1, 2))
        return map(words_of, itertools.islice(itertools.chain.from_iterable(parts), self.pairs))


@dataclasses.dataclass(frozen=True)
class WordAlignment:
    """One word aligner, described completely."""

    name: str
    """Name of the experiment; the default run directory is runs/NAME."""
    data: AlignedFiles | Hansards = dataclasses.field(default_factory=AlignedFiles)
    aligner: Aligner = dataclasses.field(default_factory=Aligner)

    def validate(self) -> None:
        """Raises UserError where a setting makes no sense."""
        self.aligner.validate()


def _gold(path: Path, source: list[list[str]], target: list[list[str]]) -> list[Gold]:
    """Returns gold links of the first sentence pairs, none of them outside its pair."""
    lines = list(lines_of(path))
    count = len(parse_gold(lines, str(path)))
    lengths = [(len(e), len(f)) for e, f in zip(source[:count], target, strict=False)]
    return parse_gold(lines, str(path), lengths)
