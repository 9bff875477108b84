"""Phrase tables: which phrases translate which, four scores of each pair, and how it reorders.

Koehn, Och & Marcu (2003). p(f|e) and p(e|f) are relative frequencies, or smoothed ones (Foster, Kuhn &
Johnson, 2006); lex is the product over the words of one phrase of the mean of w(word | linked word), of the
occurrence where it is highest. Reordering is that of Koehn et al. (2005), half a count added to each
orientation.

Phrases are numbered, so that counting is sorting integers; nothing is ever looked up by text. What does not
fit into memory is counted on disk (``phrase_counting``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64

from research.data.replacing import replacing
from research.errors import UserError
from research.statistical.bitext import Side, encode
from research.statistical.phrases import Links, Numbering, Occurrences, extract, number_phrases
from research.statistical.significance import significance

SCORES = ("p(f|e)", "lex(f|e)", "p(e|f)", "lex(e|f)")
"""Columns of ``PhraseTable.scores``; f is the source, e the target."""
REORDERING = tuple(
    f"{o} {side}" for side in ("before", "after") for o in ("monotone", "swap", "discontinuous")
)
"""Columns of ``PhraseTable.reordering``."""
ORIENTATION_PRIOR = 0.5
"""Added to the count of each orientation."""
COUNTS = 10
"""Counts above this need no Good-Turing smoothing."""

Phrase = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Phrases:
    """How phrase pairs are extracted and scored."""

    longest: int = 7
    """Most words of a phrase, on either side."""
    smoothing: Literal["none", "good-turing", "kneser-ney"] = "none"
    """Smoothing of p(f|e) and p(e|f)."""
    significance: Literal["any", "alpha-epsilon", "alpha+epsilon"] = "any"
    """Drop pairs that may co-occur by chance, by Fisher's exact test (Johnson et al., 2007); alpha is the
    significance of a pair both sides of which occur in a single sentence pair: "alpha-epsilon" keeps these,
    "alpha+epsilon" drops them."""
    memory: float | None = None
    """GiB that counting on disk may take (extra "disk"); none: count in memory."""

    def validate(self) -> None:
        """Raises UserError where a setting makes no sense."""
        if self.longest < 1:
            raise UserError(f"phrases.longest {self.longest}: at least 1")
        if self.memory is not None and not 0.1 <= self.memory < np.inf:
            raise UserError(f"phrases.memory {self.memory}: at least 0.1, in GiB")
        if self.memory is not None and self.significance != "any":
            raise UserError("phrases.significance is computed in memory: leave out phrases.memory")


@dataclasses.dataclass(frozen=True, eq=False)
class PhraseTable:
    """Phrase pairs, those of one source phrase together, the likeliest translation first.

    Attributes:
      sources: the rows (first, one past the last) of each source phrase.
      targets: target phrase of each row.
      scores: natural logarithms, in the order of ``SCORES``.
      reordering: natural logarithms of probabilities, in the order of ``REORDERING``.
    """

    sources: dict[Phrase, tuple[int, int]]
    targets: list[Phrase]
    scores: Float32[np.ndarray, "rows 4"]
    reordering: Float32[np.ndarray, "rows 6"]


def build(
    source: Sequence[Sequence[str]],
    target: Sequence[Sequence[str]],
    links: Links,
    how: Phrases = Phrases(),
    *,
    report: Callable[[str], None] = lambda message: None,
) -> PhraseTable:
    """Returns the phrase table of an aligned bitext.

    Args:
      source: words of the source sentences (f).
      target: words of their translations (e).
      links: the word alignment.
      how: what is extracted and how it is scored.
      report: called with a line about each stage.

    Raises:
      UserError: no phrase pair is consistent with the alignment.
    """
    f, e = encode(source), encode(target)
    found = extract(f, e, links, how.longest)
    if not len(found.source):
        raise UserError("the word alignment has no links: there are no phrases to learn from it")
    f_numbers, e_numbers = number_phrases(f, how.longest), number_phrases(e, how.longest)
    report(f"{len(found.source):,} occurrences of phrase pairs")
    pairs = _group(found, f_numbers, e_numbers)
    if how.significance != "any":
        values = significance(f_numbers, e_numbers, f, e, pairs.source, pairs.target)
        alpha = np.log(len(source))
        kept = values > alpha + 0.01 if how.significance == "alpha+epsilon" else values >= alpha - 0.01
        report(f"{kept.sum():,} of {len(kept):,} phrase pairs are significant")
    else:
        kept = np.ones(len(pairs.source), bool)
    lexical = lexical_weights(found, word_factors(f, e, links))
    scores = np.stack(
        [
            np.log(_conditional(pairs.counts, pairs.source, pairs.target, how.smoothing)),
            np.maximum.reduceat(lexical[0][pairs.order], pairs.first),
            np.log(_conditional(pairs.counts, pairs.target, pairs.source, how.smoothing)),
            np.maximum.reduceat(lexical[1][pairs.order], pairs.first),
        ],
        axis=1,
    )
    reordering = np.concatenate(
        [_orientations(values[pairs.order], pairs) for values in (found.before, found.after)], axis=1
    )
    order = np.flatnonzero(kept)
    order = order[np.lexsort((-scores[order, 2], pairs.source[order]))]
    report(f"{len(order):,} phrase pairs")
    return _table(
        texts_of(f, f_numbers, pairs.source[order]),
        texts_of(e, e_numbers, pairs.target[order]),
        scores[order].astype(np.float32),
        reordering[order].astype(np.float32),
    )


class _Pairs(NamedTuple):
    """Different phrase pairs.

    Attributes:
      source: number of the source phrase.
      target: number of the target phrase.
      counts: occurrences.
      order: the occurrences, those of one pair together.
      first: where in ``order`` each pair's begin.
    """

    source: Int64[np.ndarray, " pairs"]
    target: Int64[np.ndarray, " pairs"]
    counts: Int64[np.ndarray, " pairs"]
    order: Int64[np.ndarray, " occurrences"]
    first: Int64[np.ndarray, " pairs"]


def _group(found: Occurrences, source: Numbering, target: Numbering) -> _Pairs:
    f = source.numbers[found.source_length - 1, found.source]
    e = target.numbers[found.target_length - 1, found.target]
    keys = f * len(target.length) + e
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    counts = np.diff(np.append(first, len(keys)))
    source_phrase, target_phrase = np.divmod(keys[first], len(target.length))
    return _Pairs(source_phrase, target_phrase, counts, order, first)


def _conditional(count: np.ndarray, of: np.ndarray, given: np.ndarray, smoothing: str) -> np.ndarray:
    """Returns p(of | given) of pairs with these counts.

    Args:
      count: occurrences of each pair.
      of: number of one phrase of each pair.
      given: number of the other.
      smoothing: "none", "good-turing" or "kneser-ney".
    """
    total = np.bincount(given, count)[given]
    if smoothing == "good-turing":
        return _good_turing(count) / total
    if smoothing == "kneser-ney":
        less = discount(*(int((count == n).sum()) for n in (1, 2)))
        different = np.bincount(given)[given]  # pairs that each given phrase is in
        lower = np.bincount(of)[of] / len(of)
        return (count - less) / total + less * different / total * lower
    return count / total


def _good_turing(count: np.ndarray) -> np.ndarray:
    """Returns the adjusted counts of pairs."""
    adjusted = good_turing(np.bincount(np.minimum(count, COUNTS + 2), minlength=COUNTS + 3))
    return np.where(count <= COUNTS, adjusted[np.minimum(count, COUNTS)], count)


def good_turing(n: Int64[np.ndarray, " counts"]) -> Float64[np.ndarray, " adjusted"]:
    """Returns (c + 1) n(c + 1) / n(c) for counts c of up to ``COUNTS``, never more than c.

    Args:
      n: how many pairs have each count, 0..COUNTS + 1 at least.
    """
    adjusted = np.arange(COUNTS + 2, dtype=np.float64)
    for c in range(1, COUNTS + 1):
        if n[c] and n[c + 1]:
            adjusted[c] = min((c + 1) * n[c + 1] / n[c], c)
    return adjusted


def discount(once: int, twice: int) -> float:
    """Returns what Kneser-Ney smoothing takes from each count, of how many pairs occur once and twice."""
    return once / (once + 2 * twice) if once and twice else 0.5


def lexical_weights(
    found: Occurrences, factors: tuple[Float64[np.ndarray, " tokens"], Float64[np.ndarray, " target_tokens"]]
) -> tuple[Float64[np.ndarray, " occurrences"], Float64[np.ndarray, " occurrences"]]:
    """Returns ln lex(f|e) and ln lex(e|f) of every occurrence.

    A word's links lie within the phrase pair, or outside of it altogether: its factor is the same in every
    phrase that it is in, and a phrase's weight a difference of running sums.

    Args:
      found: the occurrences.
      factors: of the words of both sides, from ``word_factors``.
    """
    weights = []
    for of_words, start, length in (
        (factors[0], found.source, found.source_length),
        (factors[1], found.target, found.target_length),
    ):
        running = np.append(0.0, np.cumsum(np.log(of_words)))
        weights.append(running[start + length] - running[start])
    return weights[0], weights[1]


def word_factors(
    source: Side, target: Side, links: Links
) -> tuple[Float64[np.ndarray, " tokens"], Float64[np.ndarray, " target_tokens"]]:
    """Returns, of each word of both sides, the mean of w(word | word) over the words that it is linked to."""
    f, e = source.starts[links.pair] + links.source, target.starts[links.pair] + links.target
    return _word_factors(source, f, target, e), _word_factors(target, e, source, f)


def _word_factors(side: Side, own: np.ndarray, other_side: Side, other: np.ndarray) -> np.ndarray:
    """Returns, of each token, the mean of w(its word | word) over the words that it is linked to; a token
    without links is linked to the empty word."""
    words, given = side.tokens[own], other_side.tokens[other].astype(np.int64)
    _, inverse, counts = np.unique(given * len(side.words) + words, return_inverse=True, return_counts=True)
    w = counts[inverse] / np.bincount(given, minlength=len(other_side.words))[given]
    linked = np.bincount(own, minlength=len(side.tokens))
    alone = side.tokens[linked == 0]
    of_empty = np.bincount(alone, minlength=len(side.words)) / max(len(alone), 1)
    total = np.bincount(own, w, minlength=len(side.tokens))
    return np.where(linked > 0, total / np.maximum(linked, 1), of_empty[side.tokens])


def _orientations(values: np.ndarray, pairs: _Pairs) -> Float64[np.ndarray, "pairs 3"]:
    counts = [np.add.reduceat(values == o, pairs.first, dtype=np.float64) for o in range(3)]
    smoothed = np.stack(counts, axis=1) + ORIENTATION_PRIOR
    return np.log(smoothed / (pairs.counts[:, None] + 3 * ORIENTATION_PRIOR))


class Texts(NamedTuple):
    """A column of phrases.

    Attributes:
      phrases: different ones.
      codes: which of them each row has.
    """

    phrases: list[Phrase]
    codes: np.ndarray


def texts_of(side: Side, numbering: Numbering, numbers: np.ndarray) -> Texts:
    """Returns the phrases with these numbers."""
    different, codes = np.unique(numbers, return_inverse=True)
    spans = zip(numbering.first[different].tolist(), numbering.length[different].tolist(), strict=True)
    words = [side.words[token] for token in side.tokens.tolist()]
    return Texts([tuple(words[first : first + n]) for first, n in spans], codes)


def _table(sources: Texts, targets: Texts, scores: np.ndarray, reordering: np.ndarray) -> PhraseTable:
    """Returns the table of rows, those of one source phrase being together."""
    firsts = np.flatnonzero(np.diff(sources.codes, prepend=-1))
    spans = zip(firsts.tolist(), [*firsts[1:].tolist(), len(scores)], strict=True)
    ranges = dict(
        zip([sources.phrases[code] for code in sources.codes[firsts].tolist()], spans, strict=False)
    )
    return PhraseTable(ranges, [targets.phrases[code] for code in targets.codes.tolist()], scores, reordering)


def write_table(table: PhraseTable, path: Path) -> None:
    """Writes a table as Parquet, whole or not at all; columns: source, target, ``SCORES``, ``REORDERING``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sources = [
        " ".join(phrase) for phrase, (first, last) in table.sources.items() for _ in range(first, last)
    ]
    columns = {
        "source": pa.array(sources),
        "target": pa.array([" ".join(phrase) for phrase in table.targets]),
    }
    for names, values in ((SCORES, table.scores), (REORDERING, table.reordering)):
        columns |= {name: pa.array(values[:, i]) for i, name in enumerate(names)}
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def read_table(path: Path) -> PhraseTable:
    """Reads a table.

    Raises:
      UserError: the file cannot be read, is no Parquet file, or lacks a column (named).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"cannot read the phrase table {path}: {str(error).splitlines()[0]}") from error
    if missing := [
        name for name in ("source", "target", *SCORES, *REORDERING) if name not in found.column_names
    ]:
        raise UserError(f"the phrase table {path} has no column {missing[0]!r}")
    for name in ("source", "target", *SCORES, *REORDERING):
        column, is_text = found.column(name), name in ("source", "target")
        right = pa.types.is_string(column.type) if is_text else pa.types.is_floating(column.type)
        if not right or column.null_count:
            wanted, holds = (
                "text" if is_text else "numbers",
                f"gaps in {column.type}" if right else column.type,
            )
            raise UserError(f"the phrase table {path}: column {name!r} should be {wanted}, it has {holds}")

    def texts(name: str) -> Texts:
        column = found.column(name).combine_chunks().dictionary_encode()
        phrases = [tuple(text.split(" ")) for text in column.dictionary.to_pylist()]
        return Texts(phrases, column.indices.to_numpy())

    scores, reordering = (
        np.stack([found.column(name).to_numpy().astype(np.float32) for name in names], axis=1)
        for names in (SCORES, REORDERING)
    )
    return _table(texts("source"), texts("target"), scores, reordering)
