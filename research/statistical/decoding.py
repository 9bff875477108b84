"""Phrase-based translation of any number of sentences, in their order, in several processes."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from research.statistical.language_model import LanguageModel
from research.statistical.n_best import derivations, features, n_best
from research.statistical.phrase_table import PhraseTable
from research.statistical.stack_decoder import Search, search
from research.statistical.translation_options import (
    FEATURES,
    PhraseOptions,
    SentenceOptions,
    collect,
    weight_vector,
)

_SHARE = 16
"""Sentences handed to a process at a time."""
_WORTHWHILE = 64
"""Fewer sentences are decoded before another process has started."""


@dataclasses.dataclass(frozen=True, eq=False)
class Translation:
    """A translation and how it was derived.

    Attributes:
      phrases: first source word, the word after the last, and target words of each phrase, in target order.
      score: weighted sum of the features.
      features: their values, in the order of ``FEATURES``.
    """

    phrases: tuple[tuple[int, int, tuple[str, ...]], ...]
    score: float
    features: Float64[np.ndarray, " features"]

    @property
    def words(self) -> tuple[str, ...]:
        """Words of the translation."""
        return tuple(word for _, _, words in self.phrases for word in words)


_EMPTY = Translation((), 0.0, np.zeros(len(FEATURES)))


@dataclasses.dataclass(frozen=True, eq=False)
class PhraseDecoder:
    """A phrase-based model and how to search.

    Attributes:
      table: the phrase table.
      model: the language model.
      weights: weight of each of ``FEATURES``.
      search: how far to search.
    """

    table: PhraseTable
    model: LanguageModel
    weights: Mapping[str, float]
    search: Search = dataclasses.field(default_factory=Search)

    def translate(
        self,
        sentences: Sequence[Sequence[str]],
        *,
        n_best: int = 1,
        processes: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Translation]]:
        """Returns the ``n_best`` best different translations of each sentence (or fewer), best first.

        A sentence without words has one translation, without words.

        Args:
          sentences: source words of each.
          n_best: how many translations of each, at least 1.
          processes: how many to use; default: as many as there are cores. More than one are started anew, so
            a script that calls this needs ``if __name__ == "__main__"``.
          progress: called with the number of sentences that are done, now and then.

        Raises:
          UserError: a weight or a setting of the search is wrong.
        """
        options = collect(sentences, self.table, self.model)
        return decode(
            sentences,
            options,
            self.model,
            self.weights,
            self.search,
            n_best=n_best,
            processes=processes,
            progress=progress,
        )


def decode(
    sentences: Sequence[Sequence[str]],
    options: PhraseOptions,
    model: LanguageModel,
    weights: Mapping[str, float],
    how: Search,
    *,
    n_best: int = 1,
    processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[Translation]]:
    """Translates as `PhraseDecoder.translate` does, from options already collected (for other weights, say).

    Raises:
      UserError: a weight or a setting of the search is wrong.
    """
    how.validate()
    vector = weight_vector(weights)
    best = options.best(vector, how.options)
    found: list[list[Translation]] = []
    task = _Task(model, vector, how, n_best)
    for share in _mapped(task, _shares([s for s in sentences if len(s)], best), len(sentences), processes):
        found.extend([one.translation(best.targets) for one in candidates] for candidates in share)
        if progress is not None:
            progress(len(found))
    rest = iter(found)
    return [next(rest) if len(sentence) else [_EMPTY] for sentence in sentences]


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
    """A translation as rows of the options of all sentences."""

    rows: list[int]
    starts: list[int]
    ends: list[int]
    score: float
    features: np.ndarray

    def translation(self, targets: list[tuple[str, ...]]) -> Translation:
        spans = zip(self.starts, self.ends, self.rows, strict=True)
        phrases = tuple((start, end, targets[row]) for start, end, row in spans)
        return Translation(phrases, self.score, self.features)


_Share = list[tuple[SentenceOptions, list[tuple[str, ...]]]]


def _shares(sentences: Sequence[Sequence[str]], options: PhraseOptions) -> Iterator[_Share]:
    """Yields the options of a few sentences at a time, with their words."""
    for begin in range(0, len(sentences), _SHARE):
        share = [options.of(sentence) for sentence in sentences[begin : begin + _SHARE]]
        yield [(one, [options.targets[row] for row in one.rows.tolist()]) for one in share]


@dataclasses.dataclass(frozen=True, eq=False)
class _Task:
    """What is the same for all sentences."""

    model: LanguageModel
    weights: np.ndarray
    how: Search
    n_best: int

    def __call__(self, share: _Share) -> list[list[_Found]]:
        return [self._sentence(*one) for one in share]

    def _sentence(self, options: SentenceOptions, targets: list[tuple[str, ...]]) -> list[_Found]:
        with self.model.temporary():
            lattice = search(options, self.model, self.weights, self.how)
        paths = [next(derivations(lattice))] if self.n_best == 1 else n_best(lattice, self.n_best, targets)
        values = features(lattice, options, paths)
        start, end, found = options.start[options.span], options.end[options.span], []
        for path, vector in zip(paths, values, strict=True):
            option = lattice.option[path]
            rows = options.rows[option].tolist()
            score = float(vector @ self.weights)
            found.append(_Found(rows, start[option].tolist(), end[option].tolist(), score, vector))
        return found


def _mapped(
    task: _Task, shares: Iterator[_Share], sentences: int, processes: int | None
) -> Iterator[list[list[_Found]]]:
    """Yields the result of every share, in order."""
    processes = processes or len(os.sched_getaffinity(0))
    if processes == 1 or sentences < _WORTHWHILE:
        yield from map(task, shares)
        return
    # Not forked: threads of JAX may hold locks.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        processes, context, initializer=_start, initargs=(task,)
    ) as pool:
        yield from pool.map(_run, shares)


_task: _Task


def _start(task: _Task) -> None:
    """Prepares a process: Ctrl-C is the parent's business, and nothing outlives the parent."""
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(share: _Share) -> list[list[_Found]]:
    return _task(share)
