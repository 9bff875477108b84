"""The ARPA format of back-off models: text, one n-gram a line, logarithms to base 10."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from research.data.parallel import lines_of
from research.errors import UserError
from research.statistical.ngram_model import SPECIAL, NgramModel, Ngrams, assemble

_LN10 = math.log(10)
_NEVER = -100.0
"""log10 p of the unknown word where a file has none, as KenLM reads it."""


def write_arpa(model: NgramModel, path: Path) -> None:
    """Writes a model, whole or not at all; logarithms have seven digits."""
    size = len(model.words)
    state, word = np.divmod(model.keys, size)
    parents, last = np.divmod(model.contexts, size)
    depth = model.depths
    names = [""] * len(depth)  # the words of each state, each followed by a space
    for number, (parent, of) in enumerate(zip(parents.tolist(), last.tolist(), strict=True), start=1):
        names[number] = f"{names[parent]}{model.words[of]} "
    orders = depth[state] + 1
    own = depth[model.following] == orders  # an n-gram that is a context itself has a weight
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        counts = np.bincount(orders, minlength=model.order + 1)
        file.write("\\data\\\n" + "".join(f"ngram {n}={counts[n]}\n" for n in range(1, model.order + 1)))
        for n in range(1, model.order + 1):
            file.write(f"\n\\{n}-grams:\n")
            at = np.flatnonzero(orders == n)
            columns = (
                (model.log_probabilities[at] / _LN10).tolist(),
                state[at].tolist(),
                word[at].tolist(),
                np.where(own[at], model.backoffs[model.following[at]] / _LN10, 0.0).tolist(),
            )
            for p, context, of, backoff in zip(*columns, strict=True):
                weight = f"\t{backoff:.7g}" if n < model.order else ""
                file.write(f"{p:.7g}\t{names[context]}{model.words[of]}{weight}\n")
        file.write("\n\\end\\\n")
    os.replace(temporary, path)


def read_arpa(path: Path) -> NgramModel:
    """Reads a model; plain, gzip or xz by the file's suffix.

    Raises:
      UserError: the file cannot be read, is no ARPA file, is cut short, or has a line that is wrong (named).
    """
    lines = _Lines(path)
    sizes = _header(lines)
    ids: dict[str, int] = {}
    found = []
    for n, size in enumerate(sizes, start=1):
        line = lines.next_with_text(f"\\{n}-grams:")
        if line != f"\\{n}-grams:":
            raise lines.error(f"expected \\{n}-grams:, found {line[:40]!r}")
        probabilities, texts, backoffs = lines.take(size, n, len(sizes))
        if n == 1:
            ids = _vocabulary([text[0] for text in texts])
        try:
            rows = np.array([[ids[word] for word in text] for text in texts], np.int32).reshape(-1, n)
        except KeyError as error:
            raise UserError(f"{path}: the word {error.args[0]!r} of the {n}-grams is no 1-gram") from None
        found.append(Ngrams(rows, np.array(probabilities) * _LN10, np.array(backoffs) * _LN10))
    if (line := lines.next_with_text("\\end\\")) != "\\end\\":
        raise lines.error(f"expected \\end\\, found {line[:40]!r}")
    return assemble(list(ids), [_complete(found[0], len(ids)), *found[1:]])


def _vocabulary(words: list[str]) -> dict[str, int]:
    ids = {word: id for id, word in enumerate(SPECIAL)}
    for word in words:
        ids.setdefault(word, len(ids))
    return ids


def _complete(unigrams: Ngrams, words: int) -> Ngrams:
    """Adds special words that the file lacks, which are never seen."""
    missing = np.setdiff1d(np.arange(words, dtype=np.int32), unigrams.rows)
    return Ngrams(
        np.concatenate([unigrams.rows, missing[:, None]]),
        np.concatenate([unigrams.log_probabilities, np.full(len(missing), _NEVER * _LN10)]),
        np.concatenate([unigrams.backoffs, np.zeros(len(missing))]),
    )


class _Lines:
    """The lines of a file, and where in it the reader is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        self._lines = lines_of(path)

    def error(self, what: str) -> UserError:
        return UserError(f"{self.path}, line {self.number}: {what}")

    def next_with_text(self, wanted: str) -> str:
        """Returns the next line that is not empty; UserError if there is none."""
        for line in self._lines:
            self.number += 1
            if line.strip():
                return line.strip()
        raise UserError(f"{self.path} is cut short: it ends at line {self.number}, before {wanted}")

    def take(self, count: int, n: int, order: int) -> tuple[list[float], list[list[str]], list[float]]:
        """Returns log10 p, words and log10 backoff of the next ``count`` lines, each an n-gram."""
        probabilities, texts, backoffs = [], [], []
        for line in itertools.islice(self._lines, count):
            self.number += 1
            columns = line.split("\t")
            words = columns[1].split(" ") if len(columns) > 1 else []
            try:
                probabilities.append(float(columns[0]))
                backoffs.append(float(columns[2]) if len(columns) > 2 else 0.0)
            except ValueError:
                words = []
            if len(words) != n or len(columns) > 3 or probabilities[-1] > 0:
                raise self.error(f"expected log10 p, {n} words and perhaps a weight, found {line[:60]!r}")
            texts.append(words)
        if len(texts) < count:
            raise UserError(
                f"{self.path} is cut short: of {count:,} {n}-grams that its header promises (up to order "
                f"{order}) {len(texts):,} are there"
            )
        return probabilities, texts, backoffs

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.number += 1
            yield line


def _header(lines: _Lines) -> list[int]:
    """Returns the number of n-grams of each order."""
    if lines.next_with_text("\\data\\") != "\\data\\":
        raise lines.error("expected \\data\\: this is no ARPA file")
    sizes: list[int] = []
    for line in lines:
        if not line.strip():
            break
        match = re.fullmatch(r"ngram (\d+) *= *(\d+)", line.strip())
        if not match or int(match[1]) != len(sizes) + 1:
            raise lines.error(f"expected 'ngram {len(sizes) + 1}=COUNT', found {line[:40]!r}")
        sizes.append(int(match[2]))
    if not sizes:
        raise UserError(f"{lines.path} is cut short: its header promises no n-grams")
    return sizes
