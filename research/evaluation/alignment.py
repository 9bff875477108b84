"""Alignment error rate: links against a gold standard with sure and possible links.

Precision, recall and AER of links A against sure links S and possible links P, which contain S (Och & Ney,
2003, section 5.1):

    precision = |A & P| / |A|    recall = |A & S| / |S|    AER = 1 - (|A & S| + |A & P|) / (|A| + |S|)

A link is a pair (i, j) of a source and a target position, from 0.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Sequence

from research.errors import UserError

Link = tuple[int, int]

_PHARAOH = re.compile(r"([0-9]+)-([0-9]+)(?::[0-9.eE+-]+)?")
_COMPACT = re.compile(r"([1-9][0-9]*)([-p])([1-9][0-9]*)")


@dataclasses.dataclass(frozen=True)
class Gold:
    """The links of one sentence pair: sure ones, and possible ones, which include the sure."""

    sure: frozenset[Link]
    possible: frozenset[Link]


@dataclasses.dataclass(frozen=True)
class AlignmentScore:
    """Precision, recall and alignment error rate as fractions, of how many links and sentence pairs."""

    precision: float
    recall: float
    aer: float
    links: int
    pairs: int


def alignment_score(links: Sequence[Collection[Link]], gold: Sequence[Gold]) -> AlignmentScore:
    """Scores the links of all sentence pairs together; no links at all have precision 1.

    Raises:
      UserError: there are fewer or more sentence pairs than the gold standard has, or it has no sure links.
    """
    if len(links) != len(gold):
        raise UserError(f"links for {len(links)} sentence pairs, but gold links for {len(gold)}")
    found = sum(len(set(a)) for a in links)
    sure = sum(len(g.sure) for g in gold)
    if not sure:
        raise UserError("the gold standard has no sure links: recall and AER are not defined")
    in_sure = sum(len(g.sure.intersection(a)) for a, g in zip(links, gold, strict=True))
    in_possible = sum(len(g.possible.intersection(a)) for a, g in zip(links, gold, strict=True))
    return AlignmentScore(
        precision=in_possible / found if found else 1.0,
        recall=in_sure / sure,
        aer=1 - (in_sure + in_possible) / (found + sure),
        links=found,
        pairs=len(gold),
    )


def score_line(score: AlignmentScore) -> str:
    """Returns a score for a reader."""
    return (
        f"precision {100 * score.precision:.2f} %, recall {100 * score.recall:.2f} %, AER "
        f"{100 * score.aer:.2f} % ({score.links:,} links in {score.pairs:,} sentence pairs)"
    )


def parse_links(
    lines: Iterable[str], name: str, lengths: Sequence[tuple[int, int]] | None = None
) -> list[set[Link]]:
    """Reads links as ``headway align`` writes them: ``i-j`` or ``i-j:probability``, from 0, a line for each
    sentence pair.

    Args:
      lines: the lines.
      name: where they are from, for messages.
      lengths: source and target words of the sentence pairs, which no link may leave.

    Raises:
      UserError: a line cannot be read, names a word that its sentence does not have, or there are not as many
        as sentence pairs.
    """
    found: list[set[Link]] = []
    for number, line in enumerate(lines, start=1):
        found.append(set())
        for text in line.split():
            match = _PHARAOH.fullmatch(text)
            if not match:
                raise UserError(f"{name}, line {number}: {text!r} is no link: expected i-j, from 0")
            found[-1].add((int(match[1]), int(match[2])))
        if lengths is not None and number <= len(lengths):
            source, target = lengths[number - 1]
            outside = [link for link in found[-1] if link[0] >= source or link[1] >= target]
            if outside:
                raise UserError(
                    f"{name}, line {number}: link {outside[0][0]}-{outside[0][1]} is outside its sentence "
                    f"pair, which has {source} source and {target} target words (links count from 0)"
                )
    if lengths is not None and len(found) != len(lengths):
        raise UserError(
            f"{name} has {len(found):,} lines of links, and the text {len(lengths):,} sentence pairs"
        )
    return found


def parse_gold(
    lines: Iterable[str], name: str, lengths: Sequence[tuple[int, int]] | None = None
) -> list[Gold]:
    """Reads a gold standard, in either form; positions in it count from 1.

    One line for each sentence pair, of links ``i-j`` (sure) and ``ipj`` (possible); or one line for each
    link, ``NUMBER i j [S|P]``, as the shared task of 2003 has it, with sentence pairs numbered from 1.

    Args:
      lines: the lines, with or without their ends.
      name: where they are from, for messages.
      lengths: source and target words of the sentence pairs, which no link may leave.

    Raises:
      UserError: a line cannot be read, or names a word that its sentence does not have.
    """
    rows = [line.split() for line in lines]
    filled = next((row for row in rows if row), [])
    numbered = len(filled) in (3, 4) and all(part.isdecimal() for part in filled[:3])
    links = _numbered(rows, name) if numbered else _compact(rows, name)
    count = max((pair for _, pair, _, _ in links), default=0) + 1 if numbered else len(rows)
    if lengths is not None and count > len(lengths):
        raise UserError(f"{name}: gold links for {count} sentence pairs, but there are {len(lengths)}")
    if lengths is not None and not numbered and count < len(lengths):
        raise UserError(
            f"{name}: gold links for {count} sentence pairs, but there are {len(lengths)}; "
            f"head -n {count} keeps the first {count}"
        )
    sure: list[set[Link]] = [set() for _ in range(count if lengths is None else len(lengths))]
    possible: list[set[Link]] = [set() for _ in sure]
    for line, pair, (i, j), is_sure in links:
        if lengths is not None and not (0 <= i < lengths[pair][0] and 0 <= j < lengths[pair][1]):
            source, target = lengths[pair]
            raise UserError(
                f"{name}, line {line}: link {i + 1}-{j + 1} is outside its sentence pair, which has "
                f"{source} source and {target} target words"
            )
        possible[pair].add((i, j))
        if is_sure:
            sure[pair].add((i, j))
    return [Gold(frozenset(s), frozenset(p)) for s, p in zip(sure, possible, strict=True)]


def _compact(rows: list[list[str]], name: str) -> list[tuple[int, int, Link, bool]]:
    links = []
    for pair, row in enumerate(rows):
        for text in row:
            match = _COMPACT.fullmatch(text)
            if not match:
                raise UserError(
                    f"{name}, line {pair + 1}: {text!r} is no link: expected i-j (sure) or ipj "
                    "(possible), from 1"
                )
            links.append((pair + 1, pair, (int(match[1]) - 1, int(match[3]) - 1), match[2] == "-"))
    return links


def _numbered(rows: list[list[str]], name: str) -> list[tuple[int, int, Link, bool]]:
    links = []
    for line, row in enumerate(rows, start=1):
        if not row:
            continue
        numbers, kind = row[:3], row[3:]
        if (
            len(numbers) < 3
            or not all(n.isdecimal() and int(n) for n in numbers)
            or kind not in ([], ["S"], ["P"])
        ):
            raise UserError(
                f"{name}, line {line}: expected NUMBER i j [S|P], from 1, found {' '.join(row)!r}"
            )
        pair, i, j = (int(number) - 1 for number in numbers)
        links.append((line, pair, (i, j), kind != ["P"]))
    return links
