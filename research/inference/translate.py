"""Translating lines of text: any number, any length, in their order."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.data.bitext import decode, encode
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.inference.beam import DEAD, Beam, Decoder, Hypotheses, beam_search, forced_decoding

_CHUNK = 1024
"""Lines read, sorted by length and translated before any is given out."""
_STEP = 8
"""Widths of batches are multiples of this: few compilations, little padding."""
_ROWS = 64
"""Most sentences in a batch."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One translation of a line."""

    text: str
    score: float
    """What candidates are ordered by: see `Beam`."""
    log_probability: float | None
    """Natural logarithm of the probability of the tokens; None of models that have none."""


@dataclasses.dataclass
class Counts:
    """What happened on the way."""

    lines: int = 0
    truncated: int = 0
    """Lines of which only the beginning was translated, for they were longer than the model takes."""


class Translator:
    """Translates with a model; compiled functions are kept from call to call."""

    def __init__(
        self, decoder: Decoder, params: Any, tokenizer: Tokenizer, *, context: int, beam: Beam | None = None
    ) -> None:
        """``context``: the most tokens of a source or a target, the end of text included."""
        self._decoder, self._params, self._tokenizer = decoder, params, tokenizer
        self._context, self._beam = context, beam or Beam()
        self.counts = Counts()
        self._search: Callable[[int], Any] = functools.cache(
            lambda slots: beam_search(
                decoder, self._beam, slots=slots, end=tokenizer.end_of_text, start=tokenizer.start
            )
        )

    def translate(self, lines: Iterable[str]) -> Iterator[list[Candidate]]:
        """Yields the candidates for each line, best first (at least one), in the order of the lines.

        Lines are read, and their translations given out, a chunk at a time. An empty line stays empty.
        """
        lines = iter(lines)
        while chunk := list(itertools.islice(lines, _CHUNK)):
            yield from self._chunk(chunk)

    def score(self, pairs: Iterable[tuple[str, str]]) -> Iterator[float]:
        """Yields the natural log-probability of each target line given its source line (forced decoding).

        Raises:
          UserError: a line is longer than the model takes.
        """
        run, pairs = forced_decoding(self._decoder), iter(pairs)
        number = 0
        while chunk := list(itertools.islice(pairs, _ROWS)):
            sides = [encode(self._tokenizer, side) for side in zip(*chunk, strict=True)]
            longest = [max(map(len, side)) + 1 for side in sides]
            if max(longest) > self._context:
                raise UserError(
                    f"one of the lines {number + 1}-{number + len(chunk)} has {max(longest)} tokens; the "
                    f"model takes {self._context} (model.context)"
                )
            end, rows = self._tokenizer.end_of_text, 1 << (len(chunk) - 1).bit_length()
            source = np.full((rows, _width(longest[0])), end, np.int32)
            target = np.full((rows, _width(longest[1] + 1)), end, np.int32)
            target[:, 0] = self._tokenizer.start
            lengths = np.ones((2, rows), np.int32)
            for i, (ours, theirs) in enumerate(zip(*sides, strict=True)):
                source[i, : len(ours)], target[i, 1 : len(theirs) + 1] = ours, theirs
                lengths[:, i] = len(ours) + 1, len(theirs) + 2
            arrays = (jnp.asarray(x) for x in (source, lengths[0], target, lengths[1]))
            yield from np.asarray(run(self._params, *arrays))[: len(chunk)].tolist()
            number += len(chunk)

    def _chunk(self, lines: Sequence[str]) -> list[list[Candidate]]:
        self.counts.lines += len(lines)
        sources = encode(self._tokenizer, lines)
        found: list[list[Candidate]] = [[Candidate("", 0.0, 0.0)] for _ in lines]
        order = sorted((i for i, line in enumerate(lines) if line.strip()), key=lambda i: len(sources[i]))
        for i in order:
            if len(sources[i]) >= self._context:
                self.counts.truncated += 1
                sources[i] = sources[i][: self._context - 1]
        for width, members in itertools.groupby(order, key=lambda i: _width(len(sources[i]) + 1)):
            same = list(members)
            for start in range(0, len(same), _ROWS):
                part = same[start : start + _ROWS]
                for i, candidates in zip(part, self._batch([sources[i] for i in part], width), strict=True):
                    found[i] = candidates
        return found

    def _batch(self, sources: Sequence[Sequence[int]], width: int) -> list[list[Candidate]]:
        # Rows in powers of two, so that batches of any size compile few programs; an added one ends at once.
        rows = 1 << (len(sources) - 1).bit_length()
        end = self._tokenizer.end_of_text
        padded = np.full((rows, width), end, np.int32)
        lengths, limits = np.ones(rows, np.int32), np.ones(rows, np.int32)
        for i, source in enumerate(sources):
            padded[i, : len(source)] = source
            lengths[i] = len(source) + 1
            limits[i] = min(_longest(len(source) + 1), self._context)
        search = self._search(min(_longest(width), self._context))
        arrays = (jnp.asarray(x) for x in (padded, lengths, limits))
        found: Hypotheses = jax.tree.map(np.asarray, search(self._params, *arrays))
        return [self._candidates(found, i) for i in range(len(sources))]

    def _candidates(self, found: Hypotheses, row: int) -> list[Candidate]:
        candidates = []
        for tokens, score, total in zip(*(part[row] for part in found), strict=True):
            if score > DEAD / 2:
                text = decode(self._tokenizer, itertools.takewhile(self._goes_on, tokens.tolist()))
                candidates.append(Candidate(text, float(score), float(total)))
        return candidates

    def _goes_on(self, token: int) -> bool:
        return token != self._tokenizer.end_of_text


def _width(length: int) -> int:
    """Returns the width of the batch for a source of ``length`` tokens."""
    return -(-length // _STEP) * _STEP


def _longest(length: int) -> int:
    """Returns the most target tokens for a source of ``length``, both with the end of text."""
    return 2 * length + 10
