"""Parallel text for translation: the description that names it and the pairs of token lists it becomes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.data.buckets import (
    Bucket,
    OrderedPairBatches,
    PairBatch,
    TokenPairs,
    padding,
    plan,
    train_batches,
)
from research.data.cache import build_once, cache_directory, content_hash
from research.data.object_store import is_file
from research.data.parallel import Pair, ParallelSource, ParallelText
from research.data.tokenizer import Tokenizer
from research.errors import UserError, nearest

Ids = tuple[list[int], list[int]]
"""Tokens of a source and of its target."""
_FORMAT = 2
"""Part of every cache key: raise it when what is cached changes."""
SOURCE_TOKENIZER = "source_tokenizer.json"
"""Name, in a run directory, of the tokenizer of the source, where it has one of its own."""
KINDS = {"bpe": Tokenizer.train_bpe, "unigram": Tokenizer.train_unigram}
"""Kinds of tokenizers that are trained here, by the name that descriptions have for them."""
_BATCH = 1 << 14
"""Pairs tokenised at once."""
_WAYS = 16
"""Ways in which a training pair is cut, with BPE-dropout."""


@dataclasses.dataclass(frozen=True)
class PreparedBitext:
    """Parallel text as tokens.

    Attributes:
      tokenizer: made the tokens of the targets.
      source_tokenizer: made the tokens of the sources; the same object where both sides share one.
      train: training pairs.
      valid: validation pairs.
      buckets: shapes of batches.
    """

    tokenizer: Tokenizer
    source_tokenizer: Tokenizer
    train: TokenPairs
    valid: TokenPairs
    buckets: tuple[Bucket, ...]

    def files(self) -> dict[str, str]:
        """Returns what a run must keep to read its text again: contents by file name."""
        splits = {"train": self.train, "valid": self.valid}
        sizes = {name: {"pairs": len(text), "tokens": len(text.target)} for name, text in splits.items()}
        files = self.tokenizer.files(sizes)
        if self.source_tokenizer is not self.tokenizer:
            files[SOURCE_TOKENIZER] = self.source_tokenizer.to_json()
        return files

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
        """Returns "loss" in nats and "bits_per_token", of a target token, and "bits_per_byte" of the text."""
        nats = sums["loss"] / sums["weight"]
        bits = nats / math.log(2)
        per_byte = self.valid.target_tokens / max(self.valid.target_bytes, 1)
        return {"loss": nats, "bits_per_token": bits, "bits_per_byte": bits * per_byte}


@dataclasses.dataclass
class Cleaning:
    """Counts of what was kept and what was left out of the text, by reason."""

    kept: int = 0
    empty: int = 0
    duplicate: int = 0
    long: int = 0
    ratio: int = 0
    valid: int = 0
    """Validation pairs that were kept."""
    valid_long: int = 0
    """Validation pairs that were left out; only their length is a reason."""

    def __str__(self) -> str:
        reasons = ("empty", "duplicate", "long", "ratio")
        counts = ", ".join(f"{getattr(self, name):,} {name}" for name in reasons if getattr(self, name))
        valid = f"; {self.valid:,} validation pairs; left out: {self.valid_long:,} long"
        told = f"{self.kept:,} training pairs; left out: {counts or 'none'}"
        return told + valid * bool(self.valid_long)


@dataclasses.dataclass(frozen=True)
class Bitext(ParallelText):
    """Parallel text, how it is cut into tokens, and how pairs become batches."""

    tokenizer: str = "bpe"
    """"bpe" (byte-level) or "unigram", trained on the training text, or the path of a tokenizer.json."""
    source_tokenizer: str | None = None
    """A tokenizer of the source's own, of the same choices; each is then trained on its side alone, and
    model.source_vocabulary goes with it. Default: one for both sides."""
    start: str | None = None
    """Token that every target begins with ("<pad>" in Marian and T5); default: the end-of-text token."""
    bpe_dropout: float = 0.0
    """Probability with which BPE passes over a merge (Provilkov et al., 2020: 0.1): each training pair is
    then cut in several ways, and an epoch has each of them once."""
    length: int = 64
    """Longest sentence, in tokens with the end of text; longer pairs are left out of training and validation
    (and counted)."""
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
        """Tokens of a batch of the longest pairs on either side, padding included, over all devices."""
        return math.prod(self.shapes()["tokens"][0])

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Returns shape and dtype of the arrays of a batch of the longest pairs, over all devices."""
        rows = max(self.batch_tokens // self.length // self.rows_multiple, 1) * self.rows_multiple
        return {
            name: ((rows, self.length), "float32" if name == "weights" else "int32")
            for name in PairBatch.__annotations__
        }

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        """Returns the tokenizer of the target that a run keeps in ``directory``."""
        return Tokenizer.load(directory / Tokenizer.FILE).beginning_with(self.start)

    def load_source_tokenizer(self, directory: Path) -> Tokenizer:
        """Returns the tokenizer of the source that a run keeps in ``directory``."""
        own = self.source_tokenizer is not None
        return Tokenizer.load(directory / SOURCE_TOKENIZER) if own else self.load_tokenizer(directory)

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
        source_vocabulary: int | None = None,
        report: Callable[[str], None] = lambda message: None,
    ) -> PreparedBitext:
        """Returns the text as tokens; each stage is done once and cached on disk (see `research.data.cache`).

        Args:
          vocabulary: rows of the model's embedding; a tokenizer trained here is trained to fit.
          source_vocabulary: rows of the embedding of the source, where that has a tokenizer of its own.
          report: receives a line before each stage that takes time, and what cleaning left out.

        Raises:
          UserError: the text cannot be read or holds too little, or the tokenizer does not fit.
        """
        text = self.open()
        split = [_FORMAT, text.fingerprint(), "valid" in text.splits() or self.valid_fraction]
        made = functools.partial(self._tokenizer, text, split, report=report)
        if self.source_tokenizer is None:
            target = source = made("tokenizer", vocabulary, (0, 1))
        else:
            target = made("tokenizer", vocabulary, (1,))
            source = made("source_tokenizer", source_vocabulary or vocabulary, (0,))
        target = target.beginning_with(self.start)
        if source.end_of_text != target.end_of_text:
            raise UserError(
                f"data.source_tokenizer ends a text with token {source.end_of_text}, data.tokenizer with "
                f"{target.end_of_text}; they must have it in one place"
            )
        made_by = [target.digest(), target.start]
        made_by += [source.digest()] * (source is not target)
        made_by += [self.bpe_dropout] * (self.bpe_dropout > 0)
        key = content_hash("bitext", split, self.length, self.ratio, *made_by)
        directory = build_once(
            cache_directory() / "tokens" / key, lambda d: self._tokenise(text, (source, target), d, report)
        )
        report((directory / "cleaning.txt").read_text())
        train, valid = (TokenPairs.open(directory / name) for name in ("train", "valid"))
        widths = np.concatenate([train.widths(), valid.widths()])
        buckets = plan(widths, count=self.buckets, tokens=self.batch_tokens, multiple=self.rows_multiple)
        shapes = ", ".join(f"{bucket.rows} x {bucket.width}" for bucket in buckets)
        report(f"batches of {shapes} tokens a side; {padding(train, buckets):.1%} of it is padding")
        return PreparedBitext(target, source, train, valid, tuple(buckets))

    def _tokenizer(
        self,
        text: ParallelSource,
        split: list[object],
        field: str,
        vocabulary: int,
        sides: tuple[int, ...],
        *,
        report: Callable[[str], None],
    ) -> Tokenizer:
        """Returns the tokenizer of a field, read, or trained on sides of the training text, at most once."""
        described = getattr(self, field)
        if described not in KINDS:
            if not is_file(described):
                raise UserError(
                    f"data.{field} {described!r} is no file and no kind of tokenizer"
                    + nearest(described, KINDS)
                )
            found = Tokenizer.load(described)
        else:

            def train(directory: Path) -> None:
                name = {(0, 1): "joint", (0,): "source", (1,): "target"}[sides]
                report(f"training a {name} {described} tokenizer of {vocabulary} tokens")
                pairs, _ = self.training_pairs(text)
                if not pairs:
                    raise UserError("the training text is empty: there is nothing to train a tokenizer on")
                lines = (spaced(pair[side]) for pair in pairs for side in sides)
                KINDS[described](lines, vocabulary).save(directory / Tokenizer.FILE)

            # A joint BPE tokenizer has the key that it always had.
            how = [] if described == "bpe" and len(sides) == 2 else [described, *sides]
            key = content_hash("bitext", split, vocabulary, *how)
            found = Tokenizer.load(build_once(cache_directory() / "tokenizers" / key, train) / Tokenizer.FILE)
        if found.vocabulary > vocabulary:
            raise UserError(
                f"data.{field} has {found.vocabulary} tokens, and model."
                f"{field.replace('tokenizer', 'vocabulary')} is {vocabulary}; it must be as many or more"
            )
        return found

    def _tokenise(
        self,
        text: ParallelSource,
        tokenizers: tuple[Tokenizer, Tokenizer],
        directory: Path,
        report: Callable[[str], None],
    ) -> None:
        report("tokenising")
        train, valid = self.training_pairs(text)
        counts, size = Cleaning(), 0
        clean = self._clean(train, tokenizers, counts)
        if self.bpe_dropout:
            report(f"cutting each pair in {_WAYS} ways")
            clean = self._cut(clean, tokenizers)
        kept: dict[str, list[Ids]] = {"train": [ids for _, ids in clean], "valid": []}
        for (_, line), ids in zip(valid, _tokens(valid, tokenizers), strict=True):
            if self._is_long(ids):
                counts.valid_long += 1
            else:
                kept["valid"].append(ids)
                size += len(line.encode())
        counts.valid, sizes, tokenizer = len(kept["valid"]), {"train": 0, "valid": size}, tokenizers[1]
        for name, found in kept.items():
            if not found:
                raise UserError(f"no pairs are left for data split {name!r}: {counts}")
            (directory / name).mkdir()
            sources, targets = zip(*found, strict=True)
            pairs = TokenPairs.of(sources, targets, tokenizer.end_of_text, sizes[name], tokenizer.start)
            pairs.save(directory / name)
        (directory / "cleaning.txt").write_text(str(counts))

    def _clean(
        self, pairs: Iterable[Pair], tokenizers: tuple[Tokenizer, Tokenizer], counts: Cleaning
    ) -> Iterator[tuple[Pair, Ids]]:
        """Yields the pairs fit for training and their tokens, counting the others by reason."""
        distinct: dict[Pair, None] = {}
        for pair in pairs:
            if not pair[0].strip() or not pair[1].strip():
                counts.empty += 1
            elif pair in distinct:
                counts.duplicate += 1
            else:
                distinct[pair] = None
        for pair, (source, target) in zip(distinct, _tokens(list(distinct), tokenizers), strict=True):
            longer, shorter = max(len(source), len(target)), min(len(source), len(target))
            if self._is_long((source, target)):
                counts.long += 1
            elif self.ratio is not None and longer > self.ratio * shorter:
                counts.ratio += 1
            else:
                counts.kept += 1
                yield pair, (source, target)

    def _cut(
        self, pairs: Iterable[tuple[Pair, Ids]], tokenizers: tuple[Tokenizer, Tokenizer]
    ) -> Iterator[tuple[Pair, Ids]]:
        """Yields each pair in several ways of BPE-dropout; one that is too long as it was."""
        segmenters = [tokenizer.segmenter(self.bpe_dropout) for tokenizer in tokenizers]
        for pair, whole in pairs:
            sides = (s.ways(spaced(side), _WAYS) for s, side in zip(segmenters, pair, strict=True))
            for ids in zip(*sides, strict=True):
                yield pair, whole if self._is_long(ids) else ids

    def _is_long(self, sides: Ids) -> bool:
        """Returns whether a side, with its end of text, has more tokens than ``length``."""
        return max(map(len, sides)) + 1 > self.length


def spaced(line: str) -> str:
    """Returns the line with a space before it: a word has then the same tokens wherever it stands."""
    return f" {line.strip()}"


def encode(tokenizer: Tokenizer, lines: Sequence[str]) -> list[list[int]]:
    """Returns the tokens of each line, as translation models take them."""
    return tokenizer.encode_batch([spaced(line) for line in lines])


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Returns the line of ``ids``; a line break in it becomes a space."""
    return " ".join(tokenizer.decode(ids).split("\n")).strip()


def _tokens(pairs: Sequence[Pair], tokenizers: tuple[Tokenizer, Tokenizer]) -> Iterator[Ids]:
    for start in range(0, len(pairs), _BATCH):
        part = pairs[start : start + _BATCH]
        sides = (encode(t, side) for t, side in zip(tokenizers, zip(*part, strict=True), strict=True))
        yield from zip(*sides, strict=True)
