"""Translating lines of text with a phrase-based model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from research.data.parallel import words_of
from research.inference.translate import CHUNK, Candidate, Counts, chunks
from research.statistical.decoding import PhraseDecoder


class PhraseTranslator:
    """Translates lines, whose words are divided by spaces, into ``candidates`` different lines each."""

    def __init__(self, decoder: PhraseDecoder, candidates: int = 1) -> None:
        self._decoder, self._candidates = decoder, candidates
        self.counts = Counts()

    def translate(
        self,
        lines: Iterable[str],
        *,
        first: int = CHUNK,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Iterator[list[Candidate]]:
        """Yields the candidates for each line, in their order; see `Translator.translate`."""
        before = 0
        for chunk in chunks(lines, first):
            found = self._decoder.translate(
                [words_of(line) for line in chunk],
                n_best=self._candidates,
                progress=lambda done, before=before: progress(before + done),  # type: ignore[misc]
            )
            before += len(chunk)
            self.counts.lines += len(chunk)
            for translations in found:
                yield [Candidate(" ".join(one.words), one.score, None) for one in translations]

    def warnings(self) -> Iterator[str]:
        """Yields nothing: lines may have any length."""
        return iter(())
