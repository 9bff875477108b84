"""The ARPA format of back-off models: text, one n-gram a line, logarithms to base 10."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from research.data.parallel import lines_of
from research.data.replacing import replacing
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
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
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
        probabilities, words, backoffs = lines.take(size, n)
        if n == 1:
            ids = _vocabulary(words.to_pylist())
            known = pa.array(list(ids))
        rows = pc.index_in(words, known)
        if rows.null_count:
            word = words.filter(rows.is_null())[0].as_py()
            raise UserError(f"{path}: the word {word!r} of the {n}-grams is no 1-gram")
        found.append(Ngrams(rows.to_numpy().reshape(-1, n), probabilities * _LN10, backoffs * _LN10))
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

    def take(self, count: int, n: int) -> tuple[np.ndarray, pa.Array, np.ndarray]:
        """Returns log10 p, words (n for each) and log10 backoff of the next ``count`` lines: n-grams."""
        lines = list(itertools.islice(self._lines, count))
        first, self.number = self.number + 1, self.number + len(lines)
        if len(lines) < count:
            raise UserError(
                f"{self.path} is cut short: of {count:,} {n}-grams that its header promises "
                f"{len(lines):,} are there"
            )
        if not count:
            return np.empty(0), pa.array([], pa.string()), np.empty(0)
        try:
            probabilities, texts, backoffs = _columns(lines)
            words = pc.split_pattern(texts, " ")
            if not (pc.all(pc.equal(pc.list_value_length(words), n)).as_py() and (probabilities <= 0).all()):
                raise ValueError("a line is wrong")
        except ValueError:  # pyarrow's are as well
            for self.number, line in enumerate(lines, start=first):
                if not _is_ngram(line, n):
                    raise self.error(
                        f"expected log10 p, {n} words and perhaps a weight, found {line[:60]!r}"
                    ) from None
            raise
        return probabilities, words.flatten(), backoffs

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.number += 1
            yield line


def _columns(lines: list[str]) -> tuple[np.ndarray, pa.Array, np.ndarray]:
    """Returns log10 p, words and log10 backoff (or 0) of lines; ValueError if one is wrong."""
    whole = "\n".join(line if line.count("\t") == 2 else f"{line}\t0" for line in lines) + "\n"
    names, floating = ("p", "text", "backoff"), pa.float64()
    found = pa.csv.read_csv(
        pa.BufferReader(whole.encode()),
        pa.csv.ReadOptions(column_names=names, block_size=1 << 24),
        pa.csv.ParseOptions(delimiter="\t", quote_char=False),
        pa.csv.ConvertOptions(
            column_types={"p": floating, "text": pa.string(), "backoff": floating}, null_values=[]
        ),
    ).combine_chunks()
    if len(found) != len(lines):
        raise ValueError("an empty line")
    p, text, backoff = (found.column(name).combine_chunks() for name in names)
    return p.to_numpy(), text, backoff.to_numpy()


def _is_ngram(line: str, n: int) -> bool:
    columns = line.split("\t")
    try:
        return (
            float(columns[0]) <= 0 and len(columns[1].split(" ")) == n and math.isfinite(float(*columns[2:]))
        )
    except (ValueError, IndexError, TypeError):
        return False


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
