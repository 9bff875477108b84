"""Parallel text for translation: the description that names it and the pairs of token lists it becomes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.data.buckets import Bucket, OrderedPairBatches, PairBatch, TokenPairs, plan, train_batches
from research.data.cache import build_once, cache_directory, content_hash
from research.data.parallel import Pair, ParallelSource, ParallelText
from research.data.tokenizer import Tokenizer
from research.errors import UserError, nearest

_FORMAT = 1
"""Part of every cache key: raise it when what is cached changes."""
_BATCH = 1 << 14
"""Pairs tokenised at once."""


@dataclasses.dataclass(frozen=True)
class PreparedBitext:
    """Parallel text as tokens.

    Attributes:
      tokenizer: made the tokens of both sides.
      train: training pairs.
      valid: validation pairs.
      buckets: shapes of batches.
    """

    tokenizer: Tokenizer
    train: TokenPairs
    valid: TokenPairs
    buckets: tuple[Bucket, ...]

    def files(self) -> dict[str, str]:
        """Returns what a run must keep to read its text again: contents by file name."""
        return {Tokenizer.FILE: self.tokenizer.to_json()}

    def train_batches(self, *, seed: int, process_index: int, process_count: int) -> Any:
        """Returns endless shuffled batches, a Grain iterator (see `research.data.buckets.train_batches`)."""
        share = {"process_index": process_index, "process_count": process_count}
        return train_batches(self.train, self.buckets, seed=seed, **share)

    def valid_batches(
        self, *, limit: int | None = None, process_index: int, process_count: int
    ) -> Sequence[PairBatch]:
        """Returns the validation batches, in order, at most ``limit``."""
        batches = OrderedPairBatches(self.valid, self.buckets, share=(process_index, process_count))
        return batches if limit is None else [batches[i] for i in range(min(limit, len(batches)))]

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns "loss" in nats per target token and "bits_per_byte" of the target text."""
        nats = sums["loss"] / sums["weight"]
        per_byte = self.valid.target_tokens / self.valid.target_bytes
        return {"loss": nats, "bits_per_byte": nats / math.log(2) * per_byte}


@dataclasses.dataclass
class Cleaning:
    """Counts of what was kept and what was left out of the training text, by reason."""

    kept: int = 0
    empty: int = 0
    duplicate: int = 0
    long: int = 0
    ratio: int = 0

    def __str__(self) -> str:
        left_out = {
            name: count for name, count in dataclasses.asdict(self).items() if name != "kept" and count
        }
        counts = ", ".join(f"{count:,} {name}" for name, count in left_out.items())
        return f"{self.kept:,} training pairs; left out: {counts or 'none'}"


@dataclasses.dataclass(frozen=True)
class Bitext(ParallelText):
    """Parallel text, how it is cut into tokens, and how pairs become batches."""

    tokenizer: str = "bpe"
    """"bpe" (byte-level, trained on both sides of the training text), or the path of a tokenizer.json."""
    start: str | None = None
    """Token that every target begins with ("<pad>" in Marian and T5); default: the end-of-text token."""
    length: int = 64
    """Longest sentence, in tokens with the end of text; longer training pairs are left out (and counted)."""
    ratio: float | None = 9.0
    """Largest ratio of the lengths of a training pair, in tokens; default: any."""
    batch_tokens: int = 4096
    """Tokens of a batch on either side, padding included, over all devices."""
    buckets: int = 6
    """Shapes of batches, by length; each is compiled once."""
    rows_multiple: int = 8
    """Pairs of a batch come in multiples of this, so that they divide over devices."""

    @property
    def batch(self) -> int:
        """What the rows of every batch are a multiple of."""
        return self.rows_multiple

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a batch on either side, padding included, over all devices."""
        return self.batch_tokens

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Returns shape and dtype of the arrays of a batch of the longest pairs, over all devices."""
        rows = max(self.batch_tokens // self.length // self.rows_multiple, 1) * self.rows_multiple
        return {
            name: ((rows, self.length), "float32" if name == "weights" else "int32")
            for name in PairBatch.__annotations__
        }

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        """Returns the tokenizer that a run keeps in ``directory``."""
        return Tokenizer.load(directory / Tokenizer.FILE).beginning_with(self.start)

    def problems(self) -> Iterator[str]:
        """Yields what does not fit together, each as one clear sentence."""
        for name in ("source", "target", "valid_source", "valid_target"):
            if getattr(self, name) is not None and self.corpus not in ("files", "test"):
                yield (
                    f"data.{name} is for data.corpus 'files', not for {self.corpus!r}; "
                    "add --data.corpus files"
                )
        if self.rows_multiple * self.length > self.batch_tokens:
            yield (
                f"data.batch_tokens {self.batch_tokens} has no room for {self.rows_multiple} pairs "
                f"(data.rows_multiple) of data.length {self.length}; the least that has is "
                f"{self.rows_multiple * self.length}"
            )

    def prepare(
        self,
        *,
        vocabulary: int,
        tokenizer: Tokenizer | None = None,
        report: Callable[[str], None] = lambda message: None,
    ) -> PreparedBitext:
        """Returns the text as tokens; each stage is done once and cached on disk (see `research.data.cache`).

        Args:
          vocabulary: rows of the model's embedding; a tokenizer trained here is trained to fit.
          tokenizer: use this one (a run's own) instead of the one described.
          report: receives a line before each stage that takes time, and what cleaning left out.

        Raises:
          UserError: the text cannot be read or holds too little, or the tokenizer does not fit.
        """
        self._check(tokenizer)
        text = self.open()
        split = [_FORMAT, text.fingerprint(), "valid" in text.splits() or self.valid_fraction]
        if tokenizer is None and self.tokenizer == "bpe":
            directory = build_once(
                cache_directory() / "tokenizers" / content_hash("bitext", split, vocabulary),
                lambda d: self._train_tokenizer(text, vocabulary, report).save(d / Tokenizer.FILE),
            )
            tokenizer = Tokenizer.load(directory / Tokenizer.FILE)
        elif tokenizer is None:
            tokenizer = Tokenizer.load(self.tokenizer)
        tokenizer.check_fits(vocabulary)
        made_by = tokenizer.beginning_with(self.start)
        key = content_hash("bitext", split, self.length, self.ratio, made_by.digest(), made_by.start)
        directory = build_once(
            cache_directory() / "tokens" / key, lambda d: self._tokenise(text, made_by, d, report)
        )
        report((directory / "cleaning.txt").read_text())
        train, valid = (TokenPairs.open(directory / name) for name in ("train", "valid"))
        widths = np.concatenate([train.widths(), valid.widths()])
        buckets = plan(widths, count=self.buckets, tokens=self.batch_tokens, multiple=self.rows_multiple)
        return PreparedBitext(tokenizer, train, valid, tuple(buckets))

    def _check(self, tokenizer: Tokenizer | None) -> None:
        if tokenizer is None and self.tokenizer != "bpe" and not Path(self.tokenizer).is_file():
            raise UserError(
                f"data.tokenizer {self.tokenizer!r} is no file and no kind of tokenizer"
                + nearest(self.tokenizer, ("bpe",))
            )

    def _train_tokenizer(
        self, text: ParallelSource, vocabulary: int, report: Callable[[str], None]
    ) -> Tokenizer:
        report(f"training a joint byte-level BPE tokenizer of {vocabulary} tokens")
        train, _ = self.training_pairs(text)
        return Tokenizer.train_bpe((spaced(line) for pair in train for line in pair), vocabulary)

    def _tokenise(
        self, text: ParallelSource, tokenizer: Tokenizer, directory: Path, report: Callable[[str], None]
    ) -> None:
        report("tokenising")
        train, valid = self.training_pairs(text)
        counts = Cleaning()
        tokens = {"train": self._clean(train, tokenizer, counts), "valid": _tokens(valid, tokenizer)}
        sizes = {"train": 0, "valid": sum(len(line.encode()) for _, line in valid)}
        for name, found in tokens.items():
            if not (kept := list(found)):
                raise UserError(f"no pairs are left for data split {name!r}: {counts}")
            (directory / name).mkdir()
            sources, targets = zip(*kept, strict=True)
            pairs = TokenPairs.of(sources, targets, tokenizer.end_of_text, sizes[name], tokenizer.start)
            pairs.save(directory / name)
        (directory / "cleaning.txt").write_text(str(counts))

    def _clean(
        self, pairs: Iterable[Pair], tokenizer: Tokenizer, counts: Cleaning
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Yields the tokens of the pairs fit for training, counting the others by reason."""
        distinct: dict[Pair, None] = {}
        for pair in pairs:
            if not pair[0].strip() or not pair[1].strip():
                counts.empty += 1
            elif pair in distinct:
                counts.duplicate += 1
            else:
                distinct[pair] = None
        for source, target in _tokens(list(distinct), tokenizer):
            longer, shorter = max(len(source), len(target)), min(len(source), len(target))
            if longer + 1 > self.length:
                counts.long += 1
            elif self.ratio is not None and longer > self.ratio * shorter:
                counts.ratio += 1
            else:
                counts.kept += 1
                yield source, target


def spaced(line: str) -> str:
    """Returns the line with a space before it: a word has then the same tokens wherever it stands."""
    return f" {line.strip()}"


def encode(tokenizer: Tokenizer, lines: Sequence[str]) -> list[list[int]]:
    """Returns the tokens of each line, as translation models take them."""
    return tokenizer.encode_batch([spaced(line) for line in lines])


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Returns the line of ``ids``; a line break in it becomes a space."""
    return " ".join(tokenizer.decode(ids).split("\n")).strip()


def _tokens(pairs: Sequence[Pair], tokenizer: Tokenizer) -> Iterator[tuple[list[int], list[int]]]:
    for start in range(0, len(pairs), _BATCH):
        part = pairs[start : start + _BATCH]
        sides = (encode(tokenizer, side) for side in zip(*part, strict=True))
        yield from zip(*sides, strict=True)
