"""Word alignment of two files or two lists of sentences: from tokens to links."""

from __future__ import annotations

import dataclasses
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float16, Float32, Int32, Int64

from research.data.parallel import lines_of
from research.errors import UserError, nearest
from research.statistical import directional, estimators, fertility
from research.statistical.bitext import LONGEST, Bitext, make_bitext
from research.statistical.directional import Decision, Direction, links_of
from research.statistical.iterations import SILENT, Progress
from research.statistical.symmetrization import SYMMETRIZATIONS, Link

MODELS = ("joint", *directional.SCHEDULES, *fertility.SCHEDULES)
"""What can align: both directions trained to agree, or each by itself, with a model of ``directional`` or of
``fertility``."""

Report = Callable[[str], None]


def _silent(message: str) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Aligner:
    """How to align.

    Attributes:
      model: one of ``MODELS``.
      symmetrize: how to combine two directions that were trained apart, a name of ``SYMMETRIZATIONS``; "" is
        intersection, and all that the joint model takes, which has one answer.
      threshold: a link of the joint model needs a product of both directions' posteriors above this.
      prior: Dirichlet prior of the lexical tables; None: the joint model's own, and else none.
      keep_case: whether words that differ only in case are different words.
    """

    model: str = "joint"
    symmetrize: str = ""
    threshold: float = 0.25
    prior: float | None = None
    keep_case: bool = False

    def validate(self) -> None:
        """Checks the description.

        Raises:
          UserError: a name is unknown, a number out of range, or a setting is of another model.
        """
        if self.model not in MODELS:
            raise UserError(f"unknown model {self.model!r}{nearest(self.model, MODELS)}")
        if self.symmetrize and self.symmetrize not in SYMMETRIZATIONS:
            raise UserError(
                f"unknown symmetrization {self.symmetrize!r}{nearest(self.symmetrize, SYMMETRIZATIONS)}"
            )
        if self.symmetrize and self.model == "joint":
            raise UserError(
                "the joint model's links are symmetric: --symmetrize goes with --model "
                + ", ".join(MODELS[1:])
            )
        if not 0 <= self.threshold < 1:
            raise UserError(f"threshold {self.threshold} is not between 0 and 1")
        if self.prior is not None and not 0 < self.prior < np.inf:
            raise UserError(f"prior {self.prior} is not positive")


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    """The links of a bitext, in the order of its sentence pairs.

    Attributes:
      starts: where the links of each pair begin, and, last, where they end.
      source: source position of each link, from 0.
      target: target position.
      probability: product of both directions' posteriors.
      empty: pairs with a side that has no words: no links.
      too_long: pairs with a side of more than ``LONGEST`` words: no links.
    """

    starts: Int64[np.ndarray, " pairs_and_end"]
    source: Int32[np.ndarray, " links"]
    target: Int32[np.ndarray, " links"]
    probability: Float32[np.ndarray, " links"]
    empty: int
    too_long: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def links(self, pair: int) -> list[Link]:
        """Returns the links (i, j) of one sentence pair, in order."""
        part = slice(self.starts[pair], self.starts[pair + 1])
        return list(zip(self.source[part].tolist(), self.target[part].tolist(), strict=True))

    def lines(self, *, probabilities: bool = False) -> Iterator[str]:
        """Yields each pair's links as ``i-j i-j ...``, or as ``i-j:probability ...``."""
        for pair in range(len(self)):
            texts = [f"{i}-{j}" for i, j in self.links(pair)]
            if probabilities:
                part = self.probability[self.starts[pair] : self.starts[pair + 1]]
                texts = [f"{text}:{p:.4f}" for text, p in zip(texts, part, strict=True)]
            yield " ".join(texts)


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained aligner.

    Attributes:
      aligner: how it was trained.
      words: words of both sides, by number.
      entries: source and target word of each pair of words that it has seen together.
      tables: what it has learnt (see ``estimators``).
    """

    aligner: Aligner
    words: tuple[list[str], list[str]]
    entries: tuple[Int32[np.ndarray, " entries"], Int32[np.ndarray, " entries"]]
    tables: estimators.Tables


def align(
    source: Sequence[Sequence[str]],
    target: Sequence[Sequence[str]],
    aligner: Aligner = Aligner(),
    *,
    mesh: Mesh | None = None,
    progress: Progress = SILENT,
) -> Alignment:
    """Aligns the words of sentence pairs, learning from these alone: ``train`` without what was learnt."""
    return train(source, target, aligner, mesh=mesh, progress=progress)[1]


def train(
    source: Sequence[Sequence[str]],
    target: Sequence[Sequence[str]],
    aligner: Aligner = Aligner(),
    *,
    mesh: Mesh | None = None,
    progress: Progress = SILENT,
) -> tuple[Trained, Alignment]:
    """Learns to align from sentence pairs, and aligns them.

    Args:
      source: source sentences as words; a side without words, or with more than ``LONGEST``, has no links.
      target: target sentences.
      aligner: how.
      mesh: devices to share the work out to (``em.device_mesh``); default: all.
      progress: is told of every iteration.

    Raises:
      UserError: there are more sentences on one side, no pair to learn from, or the description is wrong.
    """
    aligner.validate()
    text = _Text(source, target, aligner.keep_case)
    bitext = text.bitext()
    progress.report(
        f"{len(bitext):,} sentence pairs, {len(bitext.source.tokens):,} and {len(bitext.target.tokens):,} "
        f"words, {bitext.entries:,} pairs of words"
    )
    if aligner.model == "joint":
        tables, links = estimators.fit_joint(bitext, aligner.prior, mesh, progress)
        columns = _above(bitext, links, aligner.threshold)
    else:
        tables, both = estimators.fit_directions(bitext, aligner.model, aligner.prior, mesh, progress)
        columns = _symmetrized(bitext, both, aligner)
    words = (bitext.source.words, bitext.target.words)
    trained = Trained(aligner, words, (bitext.entry_source, bitext.entry_target), tables)
    return trained, text.alignment(bitext, columns)


def apply(
    trained: Trained,
    source: Sequence[Sequence[str]],
    target: Sequence[Sequence[str]],
    *,
    mesh: Mesh | None = None,
) -> Alignment:
    """Aligns the words of sentence pairs by what was learnt from others.

    Args:
      trained: from ``train``.
      source: as in ``train``.
      target: as in ``train``.
      mesh: devices to share the work out to; default: all.

    Raises:
      UserError: there are more sentences on one side, or no pair that can be aligned.
    """
    aligner = trained.aligner
    text = _Text(source, target, aligner.keep_case)
    bitext = text.bitext(trained.words)
    known = (len(trained.words[0]), len(trained.words[1]))
    tables = estimators.move(trained.tables, trained.entries, known, bitext)
    if aligner.model == "joint":
        links = estimators.apply_joint(tables, bitext, aligner.prior, mesh)
        return text.alignment(bitext, _above(bitext, links, aligner.threshold))
    both = estimators.apply_directions(tables, bitext, aligner.model, mesh)
    return text.alignment(bitext, _symmetrized(bitext, both, aligner))


_Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Sentence pair, source and target position, and probability of each link."""


class _Text:
    """Sentence pairs, and which of them can be aligned."""

    def __init__(
        self, source: Sequence[Sequence[str]], target: Sequence[Sequence[str]], keep_case: bool
    ) -> None:
        if len(source) != len(target):
            raise UserError(
                f"{len(source):,} source and {len(target):,} target sentences: line n of one must be a "
                "translation of line n of the other"
            )
        self.sides, self.keep_case = (source, target), keep_case
        shorter = np.array([min(len(e), len(f)) for e, f in zip(source, target, strict=True)], np.int64)
        longer = np.array([max(len(e), len(f)) for e, f in zip(source, target, strict=True)], np.int64)
        self.kept = np.flatnonzero((shorter > 0) & (longer <= LONGEST))
        self.empty = int((shorter == 0).sum())
        self.too_long = int(((shorter > 0) & (longer > LONGEST)).sum())
        if not len(self.kept):
            raise UserError(
                f"there is nothing to align: of {len(source):,} sentence pairs {self.empty:,} have an empty "
                f"side and {self.too_long:,} more than {LONGEST} words"
            )

    def bitext(self, words: tuple[Sequence[str], Sequence[str]] = ((), ())) -> Bitext:
        """Returns what can be aligned; ``words`` have their numbers already."""
        source, target = ([self._words(side[k]) for k in self.kept.tolist()] for side in self.sides)
        return make_bitext(source, target, words)

    def _words(self, sentence: Sequence[str]) -> Sequence[str]:
        return sentence if self.keep_case else [sys.intern(word.lower()) for word in sentence]

    def alignment(self, bitext: Bitext, columns: _Columns) -> Alignment:
        """Returns links of all sentence pairs, in their order."""
        pair, i, j, probability = columns
        pair = self.kept[bitext.order[pair]]
        order = np.lexsort((j, i, pair))
        starts = np.searchsorted(pair[order], np.arange(len(self.sides[0]) + 1)).astype(np.int64)
        links = (i[order].astype(np.int32), j[order].astype(np.int32), probability[order].astype(np.float32))
        return Alignment(starts, *links, empty=self.empty, too_long=self.too_long)


def _above(bitext: Bitext, links: Float16[np.ndarray, " cells"], threshold: float) -> _Columns:
    cells = np.flatnonzero(links > np.float16(threshold))
    pair = np.searchsorted(bitext.cell_starts, cells, side="right") - 1
    i, j = np.divmod(cells - bitext.cell_starts[pair], bitext.target.lengths[pair])
    return pair, i, j, links[cells]


def _symmetrized(bitext: Bitext, both: Sequence[Decision], aligner: Aligner) -> _Columns:
    combine = SYMMETRIZATIONS[aligner.symmetrize or "intersection"]
    sides = [links_of(Direction(bitext, way == 1), decision.chosen) for way, decision in enumerate(both)]
    links = [(pair, *link) for pair, two in enumerate(zip(*sides, strict=True)) for link in combine(*two)]
    pair, i, j = np.array(links, np.int64).reshape(-1, 3).T
    cells = bitext.cell_starts[pair] + i * bitext.target.lengths[pair] + j
    return (
        pair,
        i,
        j,
        both[0].posterior[cells].astype(np.float32) * both[1].posterior[cells].astype(np.float32),
    )


def read_sentences(
    source: Path, target: Path, report: Report = _silent
) -> tuple[list[list[str]], list[list[str]]]:
    """Reads two files of tokenised sentences, one to a line, words divided by spaces or tabs alone.

    Args:
      source: a file, plain, gzip or xz by its suffix.
      target: the same for the other side.
      report: called with a line about what is odd: control characters.

    Raises:
      UserError: a file cannot be read or is not UTF-8, or both are the same text.
    """
    sides = []
    for path in (source, target):
        sentences = (line.replace("\t", " ").split(" ") for line in lines_of(path))
        # Interned: millions of tokens are few words, and a string is six times the size of a reference.
        sides.append([[sys.intern(word) for word in words if word] for words in sentences])
        odd = [number for number, words in enumerate(sides[-1], start=1) if _has_control(words)]
        if odd:
            report(
                f"{path}: control characters in {len(odd):,} lines, the first {odd[0]}; they stay in words"
            )
    if sides[0] == sides[1] and any(sides[0]):
        raise UserError(f"{source} and {target} are the same text: an alignment is between two languages")
    if len(sides[0]) != len(sides[1]):
        raise UserError(
            f"{source} has {len(sides[0]):,} lines and {target} {len(sides[1]):,}: line n of one must be a "
            "translation of line n of the other"
        )
    return sides[0], sides[1]


def _has_control(words: Iterable[str]) -> bool:
    return any(not word.isprintable() and _control(word) for word in words)


def _control(word: Collection[str]) -> bool:
    return any(unicodedata.category(character) == "Cc" for character in word)
