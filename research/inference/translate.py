"""Translating lines of text: any number, any length, in their order."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from research.data.bitext import decode, encode
from research.data.parallel import words_of
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.inference.beam import DEAD, Beam, Decoder, Hypotheses, beam_search, forced_decoding
from research.inference.draws import Draws, random_search
from research.inference.soft_alignment import attention_of, of_words
from research.inference.splitting import split_words

CHUNK = 1024
"""Most lines read, sorted by length and translated before any is given out."""
_STEP = 8
"""Widths of batches are multiples of this: few compilations, little padding."""
_ROWS = 64
"""Most sentences in a batch."""
Line = TypeVar("Line")


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
    split: int = 0
    """Lines that were longer than the model takes: their parts were translated apart and joined."""
    truncated: int = 0
    """Parts of which only the beginning was translated: single words longer than the model takes."""


class Translator:
    """Translates with a model; compiled functions are kept from call to call."""

    def __init__(
        self,
        decoder: Decoder,
        params: Any,
        tokenizer: Tokenizer,
        *,
        context: int,
        search: Beam | Draws = Beam(),  # noqa: B008 (frozen)
        source_tokenizer: Tokenizer | None = None,
        longest: int | None = None,
        replace_unknown: bool = False,
    ) -> None:
        """Makes the translator; nothing is compiled yet.

        Args:
          decoder: the model; it tells its attention if the beam or ``replace_unknown`` needs it.
          params: its parameters.
          tokenizer: of the target.
          context: the most tokens of a source or a target, the end of text included.
          search: a beam that is searched, or how translations are drawn.
          source_tokenizer: of the source; None: that of the target.
          longest: the most tokens of a source that is translated in one piece; None: ``context``.
          replace_unknown: put the source word with most attention in the place of a word that the target's
            tokenizer does not have (Luong et al., 2015b; Jean et al., 2015).
        """
        self._decoder, self._params, self._tokenizer = decoder, params, tokenizer
        self._source_tokenizer = source_tokenizer or tokenizer
        self._context = context
        self._longest = min(context, longest or context)
        self._replaces = replace_unknown and tokenizer.unknown is not None
        self.counts = Counts()
        self._attention = attention_of(decoder)
        self._draws, self._seen = isinstance(search, Draws), 0
        ends = {"end": tokenizer.end_of_text, "start": tokenizer.start}
        self._search: Callable[[int], Any] = functools.cache(
            lambda slots: (
                random_search(decoder, search, slots=slots, **ends)
                if isinstance(search, Draws)
                else beam_search(decoder, search, slots=slots, **ends)
            )
        )

    def translate(
        self,
        lines: Iterable[str],
        *,
        first: int = CHUNK,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Iterator[list[Candidate]]:
        """Yields the candidates for each line, best first (at least one), in the order of the lines.

        Lines are read, and their translations given out, a chunk at a time. An empty line stays empty. What
        the chunks are changes no translation.

        Args:
          lines: the lines.
          first: lines of the first chunk; each chunk is twice as long as the one before, up to `CHUNK`.
          progress: called after each batch with the number of sentences that are done: of lines, or of parts
            of lines that are too long.
        """
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            progress(done)

        for chunk in chunks(lines, first):
            yield from self._chunk(chunk, count)

    def warnings(self) -> Iterator[str]:
        """Yields a line for each way in which lines were too long, with their number by ``counts``."""
        if self.counts.split:
            yield (
                f"warning: {self.counts.split:,} lines were translated in parts, cut where sentences or "
                f"clauses end: they exceed the {self._longest:,} tokens that it has learned"
            )
        if self.counts.truncated:
            yield (
                f"warning: of {self.counts.truncated:,} words or lines without spaces only the beginning was "
                f"translated: they exceed the {self._context:,} tokens of model.context"
            )

    def score(self, pairs: Iterable[tuple[str, str]]) -> Iterator[float]:
        """Yields the natural log-probability of each target line given its source line (forced decoding).

        Raises:
          UserError: a line is longer than the model takes.
        """
        run, pairs = forced_decoding(self._decoder), iter(pairs)
        number = 0
        while chunk := list(itertools.islice(pairs, _ROWS)):
            tokenizers = (self._source_tokenizer, self._tokenizer)
            sides = [encode(t, side) for t, side in zip(tokenizers, zip(*chunk, strict=True), strict=True)]
            for line, pair in enumerate(zip(*sides, strict=True), start=number + 1):
                for name, tokens in zip(("source", "target"), pair, strict=True):
                    if len(tokens) >= self._context:
                        raise UserError(
                            f"line {line} of the {name} has {len(tokens) + 1} tokens with the end of text; "
                            f"the model takes {self._context} (model.context)"
                        )
            longest = [max(map(len, side)) + 1 for side in sides]
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

    def _chunk(self, lines: Sequence[str], count: Callable[[int], None]) -> list[list[Candidate]]:
        parts = self._parts(lines)
        found = iter(self._translated([part for line in parts for part in line], count))
        self.counts.lines += len(lines)
        return [_joined([next(found) for _ in line]) for line in parts]

    def _parts(self, lines: Sequence[str]) -> list[list[str]]:
        """Returns each line in parts that the model takes: nearly always one."""
        parts = [[line] for line in lines]
        for i, tokens in enumerate(encode(self._source_tokenizer, lines)):
            if len(tokens) < self._longest:
                continue
            words = words_of(lines[i])
            sizes = [len(tokens) for tokens in encode(self._source_tokenizer, words)]
            pieces = split_words(words, sizes, self._longest - 1)
            parts[i] = [" ".join(piece) for piece in pieces]
            self.counts.split += len(pieces) > 1
        return parts

    def _translated(self, lines: Sequence[str], count: Callable[[int], None]) -> list[list[Candidate]]:
        """Returns the candidates of each line; of one that is too long, of its beginning.

        ``count`` is given the number of lines of each batch when it is done.
        """
        if self._replaces:  # attention is of these words: no other spaces may have tokens of their own
            lines = [" ".join(words_of(line)) for line in lines]
        sources = encode(self._source_tokenizer, lines)
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
                numbers = [self._seen + i for i in part]
                batch = self._batch([lines[i] for i in part], [sources[i] for i in part], width, numbers)
                for i, candidates in zip(part, batch, strict=True):
                    found[i] = candidates
                count(len(part))
        self._seen += len(lines)
        return found

    def _batch(
        self, lines: Sequence[str], sources: Sequence[Sequence[int]], width: int, numbers: Sequence[int]
    ) -> list[list[Candidate]]:
        # Rows in powers of two, so that batches of any size compile few programs; an added one ends at once.
        rows = 1 << (len(sources) - 1).bit_length()
        end = self._source_tokenizer.end_of_text
        padded = np.full((rows, width), end, np.int32)
        lengths, limits = np.ones(rows, np.int32), np.ones(rows, np.int32)
        for i, source in enumerate(sources):
            padded[i, : len(source)] = source
            lengths[i] = len(source) + 1
            limits[i] = min(_longest(len(source) + 1), self._context)
        search = self._search(min(_longest(width), self._context))
        arrays = [jnp.asarray(x) for x in (padded, lengths, limits)]
        if self._draws:
            arrays.append(jnp.asarray([*numbers, *[0] * (rows - len(numbers))], jnp.uint32))
        found: Hypotheses = jax.tree.map(np.asarray, search(self._params, *arrays))
        texts = self._texts(lines, found, arrays[0], arrays[1])
        return [self._candidates(found, i, texts[i]) for i in range(len(sources))]

    def _texts(
        self, lines: Sequence[str], found: Hypotheses, source: Array, lengths: Array
    ) -> list[list[str]]:
        """Returns the text of every hypothesis of every line."""
        tokens = [[list(itertools.takewhile(self._goes_on, h.tolist())) for h in row] for row in found.tokens]
        texts = [[decode(self._tokenizer, hypothesis) for hypothesis in row] for row in tokens[: len(lines)]]
        unknown = self._tokenizer.unknown
        for place in range(found.tokens.shape[1]) if self._replaces else ():
            if not any(unknown in row[place] for row in tokens[: len(lines)]):
                continue
            begun = np.roll(found.tokens[:, place], 1, axis=1)
            begun[:, 0] = self._tokenizer.start
            weights = np.asarray(self._attention(self._params, source, lengths, jnp.asarray(begun)))
            for i, line in enumerate(lines):
                if unknown in tokens[i][place]:
                    texts[i][place] = self._replaced(line, tokens[i][place], weights[i])
        return texts

    def _replaced(
        self, line: str, tokens: Sequence[int], weights: Float[np.ndarray, "length source_length"]
    ) -> str:
        """Returns the text of tokens with source words in the place of words that have an unknown part."""
        words = words_of(line)
        sizes = [len(pieces) for pieces in encode(self._source_tokenizer, words)]
        target: list[list[int]] = []
        for token in tokens:
            if not target or self._tokenizer.begins_word(token):
                target.append([])
            target[-1].append(token)
        # A line that was cut off has fewer pieces than its words.
        attention = of_words(weights, sizes, [len(pieces) for pieces in target])
        return " ".join(
            words[int(attention[j].argmax())]
            if self._tokenizer.unknown in pieces
            else decode(self._tokenizer, pieces)
            for j, pieces in enumerate(target)
        )

    def _candidates(self, found: Hypotheses, row: int, texts: Sequence[str]) -> list[Candidate]:
        scored = zip(texts, found.scores[row], found.log_probabilities[row], strict=True)
        return [
            Candidate(text, float(score), float(total)) for text, score, total in scored if score > DEAD / 2
        ]

    def _goes_on(self, token: int) -> bool:
        return token != self._tokenizer.end_of_text


def chunks(lines: Iterable[Line], first: int) -> Iterator[list[Line]]:
    """Yields lines in chunks of ``first``, twice as many, and so on up to `CHUNK`.

    If reading them raises a UserError, the lines before it come first.
    """
    lines, size = iter(lines), first
    while True:
        chunk: list[Line] = []
        try:
            chunk.extend(itertools.islice(lines, size))
        except UserError:
            yield chunk
            raise
        if not chunk:
            return
        yield chunk
        size = min(2 * size, CHUNK)


def _joined(parts: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """Returns the candidates of a line, given those of its parts: the best joined, then the second best …"""
    if len(parts) == 1:
        return list(parts[0])
    return [
        Candidate(
            " ".join(one.text for one in ones if one.text),
            sum(one.score for one in ones),
            sum(one.log_probability or 0.0 for one in ones),
        )
        for ones in zip(*parts, strict=False)
    ]


def _width(length: int) -> int:
    """Returns the width of the batch for a source of ``length`` tokens."""
    return -(-length // _STEP) * _STEP


def _longest(length: int) -> int:
    """Returns the most target tokens for a source of ``length``, both with the end of text."""
    return 2 * length + 10
