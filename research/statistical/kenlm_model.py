"""KenLM (Heafield, 2011) as a language model of the decoder, for models that are too big for ``ngram_model``.

KenLM takes one query at a time, and its states are objects that stay in a process. Here they have numbers; a
model that is sent to another process takes along the words of the states that have one, so that phrases may
refer to them, and opens the file there.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, Int32

from research.errors import UserError
from research.statistical.language_model import EMPTY
from research.statistical.ngram_model import END, SPECIAL, UNKNOWN

_LN10 = math.log(10)
_UNKNOWN, _END = range(2)
_BEGIN = -1
"""In the place of a word: the beginning of a sentence."""
_PLACE = re.compile(r"^.*? threw [\w:]+(?: because .*?')?\. ")
"""What precedes the message in an error of KenLM's: where it comes from in its source."""
_Words = tuple[int, ...]


class KenlmModel:
    """A model in a file that KenLM reads: ARPA or its own binary (see ``LanguageModel``).

    Words and states are numbered as they come up. KenLM's states, too, are as short as continuations allow.

    Raises:
      UserError: KenLM is not installed, or cannot read the file.
    """

    def __init__(self, path: Path) -> None:
        kenlm = library()
        self._path = path
        self._model = _opened(path, kenlm)
        self._state = kenlm.State
        self._words = [UNKNOWN, END]
        self._ids: dict[str, int] = {}
        # Of each state: KenLM's, and words after which it is that.
        self._states: list[Any] = []
        self._contexts: list[_Words] = []
        self._numbers: dict[Any, int] = {}
        self._known: dict[tuple[int, int], tuple[float, int]] = {}
        self._number_of(())
        self.begin = self._number_of((_BEGIN,))
        assert self._contexts[EMPTY] == ()

    @property
    def order(self) -> int:
        """Words of the longest n-grams."""
        return int(self._model.order)

    @property
    def end(self) -> int:
        """Id of </s>."""
        return _END

    def ids(self, tokens: Sequence[str]) -> Int32[np.ndarray, " tokens"]:
        """Returns the id of each word; those that are not in the vocabulary have that of <unk>."""
        return np.array([self._id(token) for token in tokens], np.int32)

    def _id(self, token: str) -> int:
        # Text that spells a special word is no special word.
        if token not in self._ids and (token in SPECIAL or token not in self._model):
            return _UNKNOWN
        found = self._ids.setdefault(token, len(self._words))
        if found == len(self._words):
            self._words.append(token)
        return found

    def advance(
        self, states: Int[np.ndarray, " queries"], words: Int[np.ndarray, " queries"]
    ) -> tuple[Float64[np.ndarray, " queries"], Int32[np.ndarray, " queries"]]:
        """Returns ln p(word | state) of each query, and the state after the word."""
        known, found = self._known, []
        for query in zip(states.tolist(), words.tolist(), strict=True):
            answer = known.get(query)
            if answer is None:
                answer = known[query] = self._asked(*query)
            found.append(answer)
        log_p, after = zip(*found, strict=True) if found else ((), ())
        return np.array(log_p, np.float64), np.array(after, np.int32)

    def _asked(self, state: int, word: int) -> tuple[float, int]:
        after = self._state()
        log10 = self._model.BaseScore(self._states[state], self._words[word], after)
        number = self._numbers.get(after)
        if number is None:
            number = self._numbered(after, (*self._contexts[state], word))
        return log10 * _LN10, number

    @contextlib.contextmanager
    def temporary(self) -> Iterator[None]:
        """Within it, states get numbers that nobody asks for afterwards (see ``LanguageModel``)."""
        kept = len(self._states)
        self._known = {}
        try:
            yield
        finally:
            for state in self._states[kept:]:
                del self._numbers[state]
            del self._states[kept:], self._contexts[kept:]
            self._known = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._path, self._words, self._contexts)

    def _number_of(self, context: _Words) -> int:
        """Returns the number of the state after words."""
        state = self._state()
        if context[:1] == (_BEGIN,):
            self._model.BeginSentenceWrite(state)
        else:
            self._model.NullContextWrite(state)
        for word in context[context[:1] == (_BEGIN,) :]:
            after = self._state()
            self._model.BaseScore(state, self._words[word], after)
            state = after
        return self._numbers[state] if state in self._numbers else self._numbered(state, context)

    def _numbered(self, state: Any, context: _Words) -> int:
        number = self._numbers[state] = len(self._states)
        self._states.append(state)
        self._contexts.append(context[-(self.order - 1) :])  # no state has more words
        return number


def library() -> Any:
    """Returns KenLM's module; ``UserError`` if it is not installed."""
    try:
        import kenlm
    except ModuleNotFoundError:
        raise UserError('language_model.reader kenlm needs KenLM: pip install -e ".[kenlm]"') from None
    return kenlm


def _opened(path: Path, kenlm: Any) -> Any:
    how = kenlm.Config()
    how.show_progress, how.arpa_complain = False, kenlm.ARPALoadComplain.NONE
    try:
        with open(path, "rb"):  # KenLM's own words for a file that is not there are many
            return kenlm.Model(str(path), how)
    except OSError as error:
        said = " ".join(str(error).split()).removeprefix(f"Cannot read model '{path}' (").removesuffix(")")
        raise UserError(f"KenLM cannot read {path}: {error.strerror or _PLACE.sub('', said)}") from None


def _restored(path: Path, words: list[str], contexts: list[_Words]) -> KenlmModel:
    """Returns a model in another process, with the numbers that words and states had in the first."""
    model = KenlmModel(path)
    model.ids(words[_END + 1 :])
    for number, context in enumerate(contexts):
        found = model._number_of(context)
        assert found == number
    return model
