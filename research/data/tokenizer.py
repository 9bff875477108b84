"""Tokenizers: text to token ids and back, over the `tokenizers` library."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from research.data.bpe_dropout import Segmenter
from research.data.object_store import is_file, located, opened
from research.errors import UserError

END_OF_TEXT = "<|endoftext|>"
"""Separates documents in tokenizers trained here, as in GPT-2's."""

_END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")

_UNKNOWN_NAMES = ("<unk>", "[UNK]")
_WORD_STARTS = ("\u2581", "\u0120")
"""What tokens that begin a word begin with: in SentencePiece's vocabularies, and in byte-level ones."""

_PIECE = 1 << 17
"""Characters of a long text that are encoded at once."""
_SEAM = re.compile(r"(?<=[\w!-~])\n(?=[\w!-~])")
"""A line break between visible characters: a word of its own by GPT-2's rule, so text may be cut there."""

# Unset, the library warns at every later fork (data workers, subprocesses) and switches its threads off.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def cut(text: str, size: int = _PIECE) -> list[str]:
    """Cuts ``text`` into pieces of about ``size`` characters that byte-level BPE encodes as the whole.

    The library takes some hundred bytes of memory for every token of a text, and one core for all of it.
    """
    pieces, start = [], 0
    while len(text) - start > size and (seam := _SEAM.search(text, start + size)):
        pieces.append(text[start : seam.end()])
        start = seam.end()
    return [*pieces, text[start:]]


class Tokenizer:
    """Text to token ids and back.

    Text never encodes to a special token: ``<|endoftext|>`` written in a document is ordinary text.

    Attributes:
      vocabulary: number of token ids; every id is below it.
      end_of_text: id of the token that separates documents.
      start: id of the token that every target of a translation begins with: end_of_text, unless data say.
      unknown: id of the token for what the vocabulary cannot express; None if it can express anything.
    """

    FILE: ClassVar[str] = "tokenizer.json"
    """Name of its file in a run directory."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Wraps ``backend``; UserError if it has no end-of-text token."""
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocabulary: int = max(vocabulary.values()) + 1
        found = [vocabulary[name] for name in _END_OF_TEXT_NAMES if name in vocabulary]
        if not found:
            raise UserError(
                f"the tokenizer has no end-of-text token (looked for {', '.join(_END_OF_TEXT_NAMES)})"
            )
        self.end_of_text: int = found[0]
        self.start: int = self.end_of_text
        self.unknown: int | None = next((vocabulary[n] for n in _UNKNOWN_NAMES if n in vocabulary), None)
        # What `characters` makes: the library silently drops a character that such a vocabulary lacks.
        self._characters = isinstance(backend.decoder, decoders.Fuse) and backend.pre_tokenizer is None
        self._can_cut = self._characters or isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel)

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocabulary: int) -> Tokenizer:
        """Trains byte-level BPE (Sennrich et al., 2016; Radford et al., 2019), at most ``vocabulary`` tokens.

        It holds all 256 bytes, so any text makes the round trip; UserError if ``vocabulary`` is below 257.
        """
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        if vocabulary < len(alphabet) + 1:
            raise UserError(
                f"a byte-level BPE vocabulary holds 256 bytes and {END_OF_TEXT}: {vocabulary} tokens are "
                "too few, 257 is the least"
            )
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=alphabet,
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def train_unigram(cls, texts: Iterable[str], vocabulary: int) -> Tokenizer:
        """Trains a unigram model (Kudo, 2018), at most ``vocabulary`` tokens.

        A character that the texts do not have is unknown; UserError if they have too many for so few tokens.
        """
        lines = list(texts)
        alphabet = set().union(*lines)
        if vocabulary < len(alphabet) + 3:
            raise UserError(
                f"a unigram vocabulary holds the {len(alphabet)} characters of the text and three more: "
                f"{vocabulary} tokens are too few, {len(alphabet) + 3} is the least"
            )
        backend = tokenizers.Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        backend.decoder = decoders.Metaspace(prepend_scheme="never")
        trainer = trainers.UnigramTrainer(
            vocab_size=vocabulary,
            special_tokens=[END_OF_TEXT, _UNKNOWN_NAMES[0]],
            unk_token=_UNKNOWN_NAMES[0],
            show_progress=False,
        )
        backend.train_from_iterator(lines, trainer)
        return cls(backend)

    @classmethod
    def characters(cls, texts: Iterable[str]) -> Tokenizer:
        """Returns a tokenizer with one token per distinct character (code point) of ``texts``."""
        alphabet: set[str] = set()
        for text in texts:
            alphabet.update(text)
        vocabulary = {character: i for i, character in enumerate([END_OF_TEXT, *sorted(alphabet)])}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens([END_OF_TEXT])
        return cls(backend)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a ``tokenizer.json``; UserError if there is none, or it cannot be read."""
        if not is_file(path):
            raise UserError(f"no tokenizer file at {path}; it should be a tokenizer.json")
        with opened(located(path)) as stream:
            return cls.from_json(stream.read().decode(errors="replace"), name=str(path))

    @classmethod
    def from_json(cls, text: str, name: str = "tokenizer") -> Self:
        """Reads what `to_json` returned; UserError, naming ``name``, if it is no tokenizer."""
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{name} is not a tokenizer.json: {error}") from None
        return cls(backend)

    def name_of(self, token: int) -> str:
        """Returns a token as its vocabulary writes it."""
        return str(self._backend.id_to_token(token))

    def begins_word(self, token: int) -> bool:
        """Returns whether a token begins a word (of vocabularies that mark it)."""
        return self.name_of(token).startswith(_WORD_STARTS)

    def digest(self) -> str:
        """Returns a hash that tells the tokenizer from others."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def check_fits(self, vocabulary: int) -> None:
        """Raises UserError if the tokenizer has more tokens than a model's ``vocabulary``."""
        if self.vocabulary > vocabulary:
            raise UserError(
                f"the tokenizer has {self.vocabulary} tokens, the model's vocabulary only {vocabulary}; "
                f"use --model.vocabulary {self.vocabulary} or more"
            )

    def beginning_with(self, name: str | None) -> Tokenizer:
        """Returns this tokenizer with the token of that name as ``start``; UserError if it has none."""
        if name is not None:
            found = self._backend.token_to_id(name)
            if found is None:
                raise UserError(f"data.start {name!r}: the tokenizer has no such token")
            self.start = found
        return self

    def to_json(self) -> str:
        """Returns the tokenizer as the text of a ``tokenizer.json``."""
        return self._backend.to_str(pretty=False)

    def files(self, sizes: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
        """Returns what a run keeps of a text cut by this tokenizer: contents by file name.

        Args:
          sizes: how long each split of the text is, in whatever units: a run does not go on with another.
        """
        return {self.FILE: self.to_json(), "text.json": json.dumps(sizes) + "\n"}

    def save(self, path: str | Path) -> None:
        """Writes a ``tokenizer.json``."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Returns the ids of ``text``; UserError if it has a character that the tokenizer cannot express."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, on all cores; UserError as `encode`."""
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                found = text[error.start]
                raise UserError(f"text is not valid Unicode: {found!r} at character {error.start}") from None
        ids = [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        if self._characters:
            for text, encoded in zip(texts, ids, strict=True):
                if len(text) != len(encoded):
                    self._refuse(text)
        return ids

    def segmenter(self, rate: float) -> Segmenter:
        """Returns what cuts text with BPE-dropout; UserError if this is no byte-level BPE."""
        byte_level = isinstance(self._backend.pre_tokenizer, pre_tokenizers.ByteLevel)
        if not isinstance(self._backend.model, models.BPE) or not byte_level:
            raise UserError("data.bpe_dropout needs a byte-level BPE tokenizer, and this is of another kind")
        return Segmenter(self._backend, rate)

    def pieces(self, text: str) -> list[str]:
        """Cuts a long text into pieces whose tokens, one after another, are those of the text; see `cut`."""
        return cut(text) if self._can_cut else [text]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ``ids``, special tokens left out; bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def _refuse(self, text: str) -> None:
        for i, character in enumerate(text):
            if self._backend.token_to_id(character) is None:
                raise UserError(
                    f"character {character!r} (number {i + 1} of the text) is not among the "
                    f"{self.vocabulary - 1} characters this tokenizer was made from"
                )
