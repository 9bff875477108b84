"""Text for masked language modelling: the description that names it, and the rows it becomes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from research.data.cache import build_once, cache_directory, content_hash
from research.data.masked_rows import MaskedBatches, PackedRows, PairRows, train_batches
from research.data.masking import Kinds, Masking
from research.data.object_store import is_file
from research.data.sentences import Sentences
from research.data.text import HeldOutText, LazyCorpus, sample
from research.data.wordpiece import MaskingTokenizer
from research.errors import UserError, nearest

_FORMAT = 1
"""Part of every cache key: raise it when what is cached changes."""
VALIDATION = Masking(rate=0.15, unit="tokens", masked=1.0, random=0.0)
"""What is predicted in validation, whatever the training: so that runs compare, and no token gives itself
away by having been left as it was."""


@dataclasses.dataclass(frozen=True)
class PreparedMaskedText:
    """Text as rows of tokens.

    Attributes:
      tokenizer: made the tokens, and turns them back.
      train: training rows.
      valid: validation rows.
      data: the description.
    """

    tokenizer: MaskingTokenizer
    train: PackedRows | PairRows
    valid: PackedRows | PairRows
    data: MaskedText

    @property
    def kinds(self) -> Kinds:
        """What masking must know of the vocabulary."""
        return Kinds(self.tokenizer.mask, self.tokenizer.special, self.tokenizer.continues)

    def files(self) -> dict[str, str]:
        """Returns what a run must keep to read its text again: contents by file name."""
        return self.tokenizer.files({"train": {"rows": len(self.train)}, "valid": {"rows": len(self.valid)}})

    def train_batches(self, *, seed: int, process_index: int, process_count: int) -> Any:
        """Returns endless shuffled batches, masked anew each time: a Grain iterator."""
        share = {"process_index": process_index, "process_count": process_count}
        batch = self.data.batch
        return train_batches(self.train, self.data.how, self.kinds, batch=batch, seed=seed, **share)

    def valid_batches(
        self, *, limit: int | None = None, process_index: int, process_count: int
    ) -> Sequence[Any]:
        """Returns the validation batches, in order, at most ``limit``; the same gaps every time."""
        share = {"process_index": process_index, "process_count": process_count}
        batch = self.data.batch
        return MaskedBatches(self.valid, VALIDATION, self.kinds, batch=batch, limit=limit, **share)

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns "loss" in nats per predicted token, "accuracy", and those of pairs, from a model's sums.

        Raises:
          UserError: there was no token to predict.
        """
        if not sums["weight"]:
            raise UserError(
                "the validation text has no token that can be hidden: all are special, such as "
                f"{self.tokenizer.name_of(self.tokenizer.unknown)} for what the vocabulary lacks"
            )
        found = {name: sums[name] / sums["weight"] for name in ("loss", "accuracy")}
        pairs = (name for name in ("pair_loss", "pair_accuracy") if name in sums)
        return {**found, **{name: sums[name] / sums["pairs"] for name in pairs}}


@dataclasses.dataclass(frozen=True)
class MaskedText(HeldOutText):
    """Text, how it is cut into rows of tokens, and which of them are predicted.

    Rows are packed: each holds one or more pieces, [CLS] piece [SEP], each read alone; a piece is a document
    or a sentence, or as much of one as a row holds. Without packing each holds one piece, and padding. With
    pairs, a row is [CLS] a [SEP] b [SEP].
    """

    tokenizer: str = "wordpiece"
    """"wordpiece" (trained on the training text), or the path of a tokenizer.json with a mask token."""
    lowercase: bool = True
    """Whether a tokenizer that is trained throws case and accents away."""
    length: int = 128
    """Tokens in a row."""
    batch: int = 256
    """Rows in a step, over all devices."""
    pieces: Literal["documents", "sentences"] = "documents"
    """What is read alone. Sentences: for a model that will be asked about single ones."""
    packed: bool = True
    """Whether pieces share rows; not for attention that reads a row as one document."""
    rate: float = 0.15
    """Share of the tokens of a row that are predicted; validation always has 0.15."""
    unit: Literal["tokens", "words", "spans"] = "tokens"
    """What is chosen as a whole: single tokens, words, or spans of words."""
    masked: float = 0.8
    """Share of the predicted tokens that [MASK] replaces; validation always has 1."""
    random: float = 0.1
    """Share of the predicted tokens that a random token replaces; the rest stay as they are."""
    pairs: Literal["none", "next", "order"] = "none"
    """"next": half of the rows end with sentences of another document (BERT); "order": in half of them the
    two parts are exchanged (ALBERT). Which is to be told from [CLS]."""

    @property
    def how(self) -> Masking:
        """How training rows are masked."""
        return Masking(self.rate, self.unit, self.masked, self.random)

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Returns shape and dtype of the arrays of a batch, over all devices."""
        rows, chosen = (self.batch, self.length), (self.batch, self.how.most(self.length))
        integers = {
            **dict.fromkeys(("tokens", "positions", "segments"), (rows, "int32")),
            **dict.fromkeys(("selected", "targets"), (chosen, "int32")),
        }
        pairs = {"types": (rows, "int32"), "pair": ((self.batch,), "int32")} if self.pairs != "none" else {}
        return {**integers, "weights": (chosen, "float32"), **pairs}

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a batch, over all devices."""
        return self.batch * self.length

    def load_tokenizer(self, directory: Path) -> MaskingTokenizer:
        """Returns the tokenizer that a run keeps in ``directory``."""
        return MaskingTokenizer.load(directory / MaskingTokenizer.FILE)

    def problems(self) -> Iterator[str]:
        """Yields what does not fit together, each as one clear sentence."""
        yield from super().problems()
        if self.masked + self.random > 1:
            yield f"data.masked {self.masked:g} and data.random {self.random:g} together are more than 1"
        if self.pairs != "none" and self.pieces != "documents":
            yield f'data.pairs "{self.pairs}" are made of documents: leave out data.pieces "{self.pieces}"'
        if self.pairs != "none" and not self.packed:
            yield f'data.pairs "{self.pairs}" has rows of its own: leave out data.packed false'
        if self.length < 8:
            yield f"data.length is {self.length}; it should be at least 8"

    def prepare(
        self,
        *,
        vocabulary: int,
        tokenizer: MaskingTokenizer | None = None,
        report: Callable[[str], None] = lambda message: None,
    ) -> PreparedMaskedText:
        """Returns the text as rows; each stage is done once and cached on disk (see `research.data.cache`).

        Args:
          vocabulary: rows of the model's embedding; a tokenizer trained here is trained to fit.
          tokenizer: use this one (a run's own) instead of the one described.
          report: receives a line before each stage that takes time, and how full the rows are.

        Raises:
          UserError: the source cannot be read or holds too little, or the tokenizer does not fit.
        """
        corpus = self.open(report)
        split = self.identity(corpus.source)
        made_by = tokenizer or self._tokenizer(corpus, split, vocabulary, report)
        made_by.check_fits(vocabulary)
        directory = build_once(
            cache_directory() / "tokens" / content_hash("sentences", _FORMAT, split, made_by.digest()),
            lambda d: self._tokenise(corpus, made_by, d, report),
        )
        train, valid = (self._rows(directory / name, made_by) for name in ("train", "valid"))
        if isinstance(train, PackedRows):
            report(f"{len(train):,} training rows, {100 * train.fill:.1f} % of them real tokens")
        return PreparedMaskedText(made_by, train, valid, self)

    def _rows(self, directory: Path, tokenizer: MaskingTokenizer) -> PackedRows | PairRows:
        text = Sentences.open(directory)
        if self.pairs != "none":
            return PairRows(text, tokenizer, self.length, other=self.pairs == "next")
        if self.pieces == "sentences":
            text = text.alone()
        of = [directory.parent.name, directory.name, self.length, self.pieces]
        key = content_hash("rows", _FORMAT, *of, *([] if self.packed else ["alone"]))
        rows = cache_directory() / "rows" / key
        return PackedRows.open(
            build_once(
                rows, lambda d: PackedRows.of(text, tokenizer, self.length, packed=self.packed).save(d)
            )
        )

    def _tokenizer(
        self, corpus: LazyCorpus, split: list[object], vocabulary: int, report: Callable[[str], None]
    ) -> MaskingTokenizer:
        if self.tokenizer != "wordpiece":
            if not is_file(self.tokenizer):
                hint = nearest(self.tokenizer, ("wordpiece",))
                raise UserError(
                    f"data.tokenizer {self.tokenizer!r} is no file and no kind of tokenizer{hint}"
                )
            return MaskingTokenizer.load(self.tokenizer)

        def train(directory: Path) -> None:
            report(f"training a WordPiece tokenizer of {vocabulary} tokens")
            texts = [text for part, text in self.texts(corpus.get()) if part == "train"]
            pieces = [piece for text in texts for piece in text.split("\n\n")]
            chosen = list(sample(pieces, sum(map(len, pieces)), vocabulary))
            made = MaskingTokenizer.train(chosen, vocabulary, lowercase=self.lowercase)
            made.save(directory / MaskingTokenizer.FILE)

        key = content_hash("wordpiece", _FORMAT, split, vocabulary, self.lowercase)
        return self.load_tokenizer(build_once(cache_directory() / "tokenizers" / key, train))

    def _tokenise(
        self, corpus: LazyCorpus, tokenizer: MaskingTokenizer, directory: Path, report: Callable[[str], None]
    ) -> None:
        report("tokenising")
        for part, purpose in (("train", "training"), ("valid", "validation")):
            texts = (text for name, text in self.texts(corpus.get()) if name == part)
            found = Sentences.of(texts, tokenizer)
            if not len(found.tokens):
                raise self.nothing_left(purpose)
            found.save(directory / part)
