"""Translating lines of text with a phrase-based model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from research.data.parallel import words_of
from research.inference.translate import Candidate, Counts
from research.statistical.decoding import PhraseDecoder

_CHUNK = 1024
"""Lines read and translated before any is given out."""


class PhraseTranslator:
    """Translates lines, whose words are divided by spaces, into ``candidates`` different lines each."""

    def __init__(self, decoder: PhraseDecoder, candidates: int = 1) -> None:
        self._decoder, self._candidates = decoder, candidates
        self.counts = Counts()

    def translate(self, lines: Iterable[str]) -> Iterator[list[Candidate]]:
        """Yields the candidates for each line, best first (at least one), in the order of the lines.

        Lines are read, and their translations given out, a chunk at a time. An empty line stays empty.
        """
        lines = iter(lines)
        while chunk := list(itertools.islice(lines, _CHUNK)):
            found = self._decoder.translate([words_of(line) for line in chunk], n_best=self._candidates)
            self.counts.lines += len(chunk)
            for translations in found:
                yield [Candidate(" ".join(one.words), one.score, None) for one in translations]
