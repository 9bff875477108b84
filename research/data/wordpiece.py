"""WordPiece (Schuster & Nakajima, 2012; Devlin et al., 2019), and what masking must know of a tokenizer."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from research.data.tokenizer import Tokenizer
from research.errors import UserError

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROBERTA = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
_CONTINUES = "##"


class MaskingTokenizer(Tokenizer):
    """A tokenizer with the special tokens of masked language modelling: BERT's names, or RoBERTa's.

    Text never encodes to a special token: ``[MASK]`` written in a document is ordinary text.

    Attributes:
      padding: id of the token that fills rows up.
      unknown: id of what the vocabulary cannot express.
      first: id of the token before every sequence ([CLS]).
      separator: id of the token after every sequence ([SEP]).
      mask: id of the token that stands for what is to be predicted.
      mask_name: how that token is written.
      special: by id, whether it is a special token; those are never masked.
      continues: by id, whether the token goes on with a word.
    """

    unknown: int

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Wraps ``backend``; UserError if it lacks a special token."""
        vocabulary = backend.get_vocab(with_added_tokens=True)
        names = next((names for names in (SPECIALS, _ROBERTA) if names[-1] in vocabulary), SPECIALS)
        missing = [name for name in names if name not in vocabulary]
        if missing:
            needed = f"{' '.join(SPECIALS)} (or {' '.join(_ROBERTA)})"
            raise UserError(f"the tokenizer has no {missing[0]}: masking needs {needed}")
        super().__init__(backend)
        self.padding, self.unknown, self.first, self.separator, self.mask = (vocabulary[n] for n in names)
        self.end_of_text = self.separator
        self.mask_name = names[-1]
        self.special: Bool[np.ndarray, " vocabulary"] = np.zeros(self.vocabulary, bool)
        self.special[[vocabulary[name] for name in names]] = True
        bytes_ = isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel)
        self.continues: Bool[np.ndarray, " vocabulary"] = np.zeros(self.vocabulary, bool)
        for token, i in vocabulary.items():
            goes_on = not token.startswith("Ġ") if bytes_ else token.startswith(_CONTINUES)
            self.continues[i] = goes_on and not self.special[i]
        self._can_cut = self._can_cut or isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer)

    @classmethod
    def train(cls, texts: Sequence[str], vocabulary: int, *, lowercase: bool = True) -> MaskingTokenizer:
        """Trains WordPiece with BERT's normalisation, at most ``vocabulary`` tokens.

        Args:
          texts: what to count.
          vocabulary: tokens, special ones and single characters included.
          lowercase: whether case (and accents) are thrown away.

        Raises:
          UserError: ``vocabulary`` is too small for the special tokens and an alphabet.
        """
        if vocabulary < 64:
            raise UserError(f"a WordPiece vocabulary of {vocabulary} tokens is too small; 64 is the least")
        backend = tokenizers.Tokenizer(models.WordPiece(unk_token=SPECIALS[1]))
        backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        alphabet = _alphabet(backend.normalizer, texts, most=vocabulary // 4)
        # Named in advance, because the library numbers what goes on with a word in the order of a hash table,
        # and by that order chooses among characters as frequent as the last it keeps.
        known = [*SPECIALS, *alphabet, *(_CONTINUES + character for character in alphabet)]
        if len(known) > vocabulary:
            raise UserError(f"a WordPiece vocabulary of {vocabulary} tokens is too small; use {len(known)}")
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocabulary,
            special_tokens=known,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        tokens = {token: i for token, i in backend.get_vocab().items() if i < vocabulary}
        trained = tokenizers.Tokenizer(models.WordPiece(vocab=tokens, unk_token=SPECIALS[1]))
        trained.normalizer, trained.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
        trained.decoder = backend.decoder
        trained.add_special_tokens(list(SPECIALS))
        return cls(trained)


def _alphabet(normalizer: Any, texts: Iterable[str], most: int) -> list[str]:
    """Returns the commonest characters, at most ``most``, sorted."""
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    common = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))[:most]
    return sorted(common)
