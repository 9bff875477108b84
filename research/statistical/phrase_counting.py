"""Phrase tables counted on disk: as ``phrase_table.build`` counts them, in as much memory as is allowed.

Occurrences of phrase pairs are extracted from some thousand sentence pairs at a time and written to files;
DuckDB aggregates these within its limit, and writes the table. What grows with the text is the text itself
and a few numbers for each of its words; the occurrences, hundreds for each sentence pair, do not stay.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from research.data.replacing import replacing
from research.errors import UserError
from research.statistical.bitext import Side, encode
from research.statistical.phrase_table import (
    COUNTS,
    ORIENTATION_PRIOR,
    REORDERING,
    SCORES,
    Phrases,
    discount,
    good_turing,
    lexical_weights,
    texts_of,
    word_factors,
)
from research.statistical.phrases import Links, extract, number_phrases

if TYPE_CHECKING:
    import duckdb

_SENTENCES = 2000
"""Sentence pairs to extract from at a time."""


def write_counted(
    source: Sequence[Sequence[str]],
    target: Sequence[Sequence[str]],
    links: Links,
    how: Phrases,
    path: Path,
    *,
    report: Callable[[str], None] = lambda message: None,
    sentences: int = _SENTENCES,
) -> None:
    """Writes the phrase table of an aligned bitext, as ``phrase_table.write_table`` does.

    Args:
      source: words of the source sentences (f).
      target: words of their translations (e).
      links: the word alignment.
      how: what is extracted and how it is scored; ``memory`` bounds what DuckDB takes.
      path: file to write, whole or not at all; intermediate files lie in a directory beside it.
      report: called with a line about each stage.
      sentences: sentence pairs to extract from at a time.

    Raises:
      UserError: DuckDB is not installed, its memory or the disk is not enough, or there are no links.
    """
    try:
        import duckdb
    except ModuleNotFoundError:
        raise UserError('phrases.memory needs DuckDB: pip install -e ".[disk]"') from None
    with tempfile.TemporaryDirectory(prefix=path.name, dir=path.parent) as folder:
        found = _write_occurrences(Path(folder), source, target, links, how.longest, sentences)
        if not found:
            raise UserError("the word alignment has no links: there are no phrases to learn from it")
        report(f"{found:,} occurrences of phrase pairs")
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{int(1024 * (how.memory or 1))}MiB",
            "temp_directory": str(Path(folder) / "spilled"),
            "threads": len(os.sched_getaffinity(0)),
            "preserve_insertion_order": False,
        }
        file = str(Path(folder) / "counts.duckdb")
        try:
            with replacing(path) as temporary, duckdb.connect(file, config=settings) as database:
                pairs = _count(database, Path(folder))
                _write(database, how.smoothing, pairs, temporary)
        except duckdb.Error as error:
            first = str(error).splitlines()[0]
            raise UserError(f"counting phrases within phrases.memory {how.memory} GiB: {first}") from error
    report(f"{pairs:,} phrase pairs")


def _write_occurrences(
    folder: Path,
    source: Sequence[Sequence[str]],
    target: Sequence[Sequence[str]],
    links: Links,
    longest: int,
    sentences: int,
) -> int:
    """Writes a Parquet file for each part of the bitext, and returns how many occurrences there are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sides = (encode(source), encode(target))
    factors = word_factors(*sides, links)
    total = 0
    for number, (f, e, own, of_words) in enumerate(_parts(sides, links, factors, sentences)):
        found = extract(f, e, own, longest)
        columns: dict[str, Any] = {}
        for name, side, start, length in (
            ("source", f, found.source, found.source_length),
            ("target", e, found.target, found.target_length),
        ):
            numbering = number_phrases(side, longest)
            texts = texts_of(side, numbering, numbering.numbers[length - 1, start])
            words = pa.array([" ".join(phrase) for phrase in texts.phrases], pa.string())
            columns[name] = pa.DictionaryArray.from_arrays(pa.array(texts.codes, pa.int32()), words)
        columns["lex_f"], columns["lex_e"] = lexical_weights(found, of_words)
        columns |= {"before": found.before, "after": found.after}
        pq.write_table(pa.table(columns), folder / f"part-{number}.parquet", compression="zstd")
        total += len(found.source)
    return total


def _parts(
    sides: tuple[Side, Side],
    links: Links,
    factors: tuple[Float64[np.ndarray, " tokens"], Float64[np.ndarray, " target_tokens"]],
    sentences: int,
) -> Iterator[tuple[Side, Side, Links, tuple[np.ndarray, np.ndarray]]]:
    """Yields parts of a bitext with their links and the factors of their words; those without links are left
    out."""
    for first in range(0, len(sides[0].lengths), sentences):
        last = min(first + sentences, len(sides[0].lengths))
        own = slice(*np.searchsorted(links.pair, [first, last]))
        if own.start == own.stop:
            continue
        words = [slice(int(side.starts[first]), int(side.starts[last])) for side in sides]
        f, e = (
            Side(side.words, side.tokens[part], side.starts[first : last + 1] - part.start)
            for side, part in zip(sides, words, strict=True)
        )
        of_words = (factors[0][words[0]], factors[1][words[1]])
        yield f, e, Links(links.pair[own] - first, links.source[own], links.target[own]), of_words


def _count(database: duckdb.DuckDBPyConnection, folder: Path) -> int:
    """Makes the tables of pairs and of the phrases of either side, and returns the number of pairs."""
    orientations = ", ".join(
        f"count(*) FILTER ({side} = {code}) AS {side}_{code}"
        for side in ("before", "after")
        for code in range(3)
    )
    database.execute(
        f"""CREATE TABLE pairs AS SELECT source, target, count(*) AS n, max(lex_f) AS lex_f,
        max(lex_e) AS lex_e, {orientations} FROM read_parquet(?) GROUP BY source, target""",
        [str(folder / "part-*.parquet")],
    )
    for side in ("source", "target"):
        database.execute(
            f"CREATE TABLE of_{side} AS SELECT {side}, sum(n)::BIGINT AS n, count(*) AS different "
            f"FROM pairs GROUP BY {side}"
        )
    return _number(database, "SELECT count(*) FROM pairs")


def _number(database: duckdb.DuckDBPyConnection, query: str) -> int:
    row = database.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def _conditional(of: str, given: str, smoothing: str, pairs: int, n: np.ndarray) -> str:
    """Returns p(of | given) as an expression, ``phrase_table``'s; n has how many pairs have each count."""
    if smoothing == "good-turing":
        cases = " ".join(f"WHEN {c} THEN {float(good_turing(n)[c])!r}" for c in range(1, COUNTS + 1))
        return f"(CASE p.n {cases} ELSE p.n::DOUBLE END) / {given}.n"
    if smoothing == "kneser-ney":
        less = discount(int(n[1]), int(n[2]))
        return (
            f"((p.n - {less!r}) / {given}.n + {less!r} * {given}.different / {given}.n "
            f"* ({of}.different / {pairs}::DOUBLE))"
        )
    return f"(p.n / {given}.n::DOUBLE)"


def _write(database: duckdb.DuckDBPyConnection, smoothing: str, pairs: int, path: Path) -> None:
    """Writes the table: the pairs of one source phrase together, the likeliest first."""
    n = np.array([_number(database, f"SELECT count(*) FROM pairs WHERE n = {c}") for c in range(COUNTS + 2)])
    f_given_e = _conditional("of_source", "of_target", smoothing, pairs, n)
    e_given_f = _conditional("of_target", "of_source", smoothing, pairs, n)
    values = dict(zip(SCORES, (f"ln({f_given_e})", "lex_f", f"ln({e_given_f})", "lex_e"), strict=True))
    counts = [f"{side}_{code}" for side in ("before", "after") for code in range(3)]
    for name, count in zip(REORDERING, counts, strict=True):
        values[name] = f"ln((p.{count} + {ORIENTATION_PRIOR}) / (p.n + {3 * ORIENTATION_PRIOR}))"
    columns = ", ".join(f'({value})::FLOAT AS "{name}"' for name, value in values.items())
    file = str(path).replace("'", "''")
    database.execute(
        f"""COPY (SELECT p.source AS source, p.target AS target, {columns} FROM pairs AS p
        JOIN of_source ON p.source = of_source.source JOIN of_target ON p.target = of_target.target
        ORDER BY p.source, {e_given_f} DESC, p.target) TO '{file}' (FORMAT parquet, COMPRESSION zstd)"""
    )
