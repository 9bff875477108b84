"""N-gram language models: modified Kneser-Ney, and an automaton that any number of hypotheses query at once.

Estimation is that of KenLM's lmplz (Heafield et al., 2013): interpolated modified Kneser-Ney (Chen & Goodman,
1999, equation 26), nothing pruned,

    p(w | h) = (a(h w) - D(a(h w))) / a(h) + d(h) / a(h) * p(w | h without its first word)

where a counts occurrences at the highest order and for n-grams that begin a sentence, and else the words
seen before the n-gram, each once; D has three values, d(h) is the sum of those used after h. It ends in the
uniform distribution over the words, the unknown word among them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64

from research.errors import UserError
from research.statistical.hash_index import HashIndex

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
SPECIAL = (UNKNOWN, BEGIN, END)
"""Words that are no words of a text: their ids are 0, 1 and 2."""
_UNKNOWN, _BEGIN, _END = range(3)
_FALLBACK = (0.0, 0.5, 1.0, 1.5)
"""Discounts where counts of counts give none (little text): lmplz --discount_fallback."""


class Ngrams(NamedTuple):
    """All n-grams of one order.

    Attributes:
      rows: word ids, in any order.
      log_probabilities: ln p(last word | the others).
      backoffs: ln of the weight of the next shorter context where this one does not know the word.
    """

    rows: Int32[np.ndarray, "ngrams order"]
    log_probabilities: Float64[np.ndarray, " ngrams"]
    backoffs: Float64[np.ndarray, " ngrams"]


@dataclasses.dataclass(frozen=True, eq=False)
class NgramModel:
    """A back-off model as an automaton whose states are the contexts that n-grams go on from or that have a
    weight.

    After any words the state is the longest suffix of them that is such a context: nothing longer can
    matter (Li & Khudanpur, 2008). State 0 is the empty context.

    Attributes:
      order: words of the longest n-grams.
      words: the vocabulary by id; the first three are <unk>, <s> and </s>.
      contexts: of every state but 0, the state of its words but the last times len(words), plus the last.
      backoffs: ln of the back-off weight of each state.
      shorter: the state to back off to, the longest proper suffix of each; state 0 has itself.
      keys: of every n-gram, the state of its words but the last times len(words), plus the last; ascending.
      log_probabilities: natural logarithm of the probability of each n-gram's last word.
      following: state after each n-gram.
    """

    order: int
    words: tuple[str, ...]
    contexts: Int64[np.ndarray, " states_but_one"]
    backoffs: Float64[np.ndarray, " states"]
    shorter: Int32[np.ndarray, " states"]
    keys: Int64[np.ndarray, " ngrams"]
    log_probabilities: Float64[np.ndarray, " ngrams"]
    following: Int32[np.ndarray, " ngrams"]

    @functools.cached_property
    def begin(self) -> int:
        """State at the beginning of a sentence."""
        return int(self.following[np.searchsorted(self.keys, _BEGIN)])

    @property
    def end(self) -> int:
        """Id of </s>: advance with it to score the end of a sentence."""
        return _END

    @functools.cached_property
    def depths(self) -> Int64[np.ndarray, " states"]:
        """Words of each state."""
        before = np.append(0, self.contexts // len(self.words))
        depths, state = np.zeros(len(before), np.int64), np.arange(len(before))
        for _ in range(1, self.order):
            depths += state > 0
            state = before[state]
        return depths

    def counts(self) -> list[int]:
        """Returns the number of n-grams of each order."""
        return np.bincount(self.depths[self.keys // len(self.words)], minlength=self.order).tolist()

    @functools.cached_property
    def _vocabulary(self) -> dict[str, int]:
        # Text that spells a special word is no special word.
        return {word: id for id, word in enumerate(self.words) if word not in SPECIAL}

    @functools.cached_property
    def _index(self) -> HashIndex:
        return HashIndex.of(self.keys)

    def ids(self, tokens: Iterable[str]) -> Int32[np.ndarray, " tokens"]:
        """Returns the ids of words, that of <unk> for those that are not in the vocabulary."""
        found = self._vocabulary
        return np.array([found.get(token, _UNKNOWN) for token in tokens], np.int32)

    def advance(
        self, states: Int32[np.ndarray, " queries"], words: Int32[np.ndarray, " queries"]
    ) -> tuple[Float64[np.ndarray, " queries"], Int32[np.ndarray, " queries"]]:
        """Returns ln p(word | state) of each query, and the state after the word."""
        total = np.zeros(len(states))
        found = np.empty(len(states), np.int64)
        waiting = np.arange(len(states))
        state, word = states.astype(np.int64), words.astype(np.int64)
        while len(waiting):
            at = self._index.find(state * len(self.words) + word)
            missing = at < 0
            found[waiting] = at
            waiting, state, word = waiting[missing], state[missing], word[missing]
            total[waiting] += self.backoffs[state]
            state = self.shorter[state].astype(np.int64)
        return total + self.log_probabilities[found], self.following[found]

    def temporary(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context that does nothing: states are those of the model (see ``LanguageModel``)."""
        return contextlib.nullcontext()

    def score(self, sentence: Sequence[str]) -> float:
        """Returns ln p of a sentence and its end."""
        return float(self.score_words([sentence])[0].sum())

    def score_words(self, sentences: Sequence[Sequence[str]]) -> list[Float64[np.ndarray, " words_and_end"]]:
        """Returns ln p of every word of every sentence, its end included."""
        ids = [np.append(self.ids(sentence), np.int32(_END)) for sentence in sentences]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        scores = [np.empty(len(row)) for row in ids]
        states = np.full(len(ids), self.begin, np.int32)
        active = len(ids)
        for at in range(max(map(len, ids), default=0)):
            while len(ids[order[active - 1]]) <= at:
                active -= 1
            words = np.array([ids[i][at] for i in order[:active]], np.int32)
            found, states = self.advance(states[:active], words)
            for i, value in zip(order[:active], found, strict=True):
                scores[i][at] = value
        return scores


def perplexity(model: NgramModel, sentences: Sequence[Sequence[str]]) -> tuple[float, float, int]:
    """Returns the perplexity of text per word and end of sentence, that without its unknown words, and their
    number."""
    scores = np.concatenate(model.score_words(sentences))
    known = np.concatenate([np.append(model.ids(sentence), _END) != _UNKNOWN for sentence in sentences])
    with_unknown, without = np.exp(-scores.mean()), np.exp(-scores[known].mean())
    return float(with_unknown), float(without), int((~known).sum())


class _Level(NamedTuple):
    """The different n-grams of one order in a text.

    Attributes:
      context: number of the words but the last, in the level below.
      suffix: number of the words but the first, in the level below.
      word: the last word.
      counts: occurrences.
      begins: whether the first word is <s>.
    """

    context: np.ndarray
    suffix: np.ndarray
    word: np.ndarray
    counts: np.ndarray
    begins: np.ndarray


def estimate(sentences: Iterable[Sequence[str]], order: int) -> NgramModel:
    """Returns the modified Kneser-Ney model of a text.

    Args:
      sentences: words of each.
      order: words of the longest n-grams, at least 1.

    Raises:
      UserError: there is no sentence, or one holds <unk>, <s> or </s>.
    """
    words, tokens, ages = _encode(sentences)
    levels = _count(tokens, ages, order, len(words))
    counts = _adjusted(levels)
    uniform = 1 / (len(words) - 1)  # <s> is never predicted
    rows, lower = np.empty((1, 0), np.int32), np.array([uniform])
    found: list[Ngrams] = []
    for level, count in zip(levels, counts, strict=True):
        discount = np.array(_discounts(count))[np.minimum(count, 3)]
        totals = np.bincount(level.context, count, len(lower))
        freed = np.bincount(level.context, discount, len(lower))
        weight = np.divide(freed, totals, out=np.ones(len(lower)), where=totals > 0)
        if found:
            found[-1] = found[-1]._replace(backoffs=np.log(weight))
        lower = (count - discount) / totals[level.context] + weight[level.context] * lower[level.suffix]
        if len(found) == 0:
            lower[_BEGIN] = 1.0
        rows = np.concatenate([rows[level.context], level.word[:, None].astype(np.int32)], axis=1)
        found.append(Ngrams(rows, np.log(lower), np.zeros(len(rows))))
    return assemble(words, found)


def _encode(sentences: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Returns the vocabulary, all words between <s> and </s>, and how many words after <s> each stands."""
    ids = {word: id for id, word in enumerate(SPECIAL)}
    tokens: list[int] = []
    lengths = []
    for number, sentence in enumerate(sentences, start=1):
        if special := [word for word in sentence if word in SPECIAL]:
            raise UserError(
                f"sentence {number} of the language model's text holds the special word {special[0]}"
            )
        tokens += (_BEGIN, *(ids.setdefault(word, len(ids)) for word in sentence), _END)
        lengths.append(len(sentence) + 2)
    if not lengths:
        raise UserError("there is no text to estimate a language model from")
    starts = np.cumsum(lengths) - lengths
    ages = np.arange(len(tokens)) - np.repeat(starts, lengths)
    return tuple(ids), np.array(tokens, np.int64), ages


def _count(tokens: np.ndarray, ages: np.ndarray, order: int, words: int) -> list[_Level]:
    """Numbers the n-grams of every order: n words are the number of the first n - 1, and the last."""
    everything = np.arange(words)
    none = np.zeros(words, np.int64)
    occurrences = np.bincount(tokens, minlength=words)
    occurrences[_BEGIN] = 0
    levels = [_Level(none, none, everything, occurrences, everything == _BEGIN)]
    numbers = tokens
    for n in range(2, order + 1):
        ends = np.flatnonzero(ages >= n - 1)
        keys, first, inverse, counts = np.unique(
            numbers[ends - 1] * words + tokens[ends],
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        at = ends[first]
        context, word = np.divmod(keys, words)
        levels.append(_Level(context, numbers[at], word, counts, ages[at] == n - 1))
        numbers = np.full(len(tokens), -1)
        numbers[ends] = inverse
    return levels


def _adjusted(levels: Sequence[_Level]) -> list[np.ndarray]:
    """Returns the counts a: occurrences, or the number of different words seen before."""
    counts = [
        np.where(level.begins, level.counts, np.bincount(longer.suffix, minlength=len(level.counts)))
        for level, longer in itertools.pairwise(levels)
    ]
    counts.append(levels[-1].counts)
    counts[0][_BEGIN] = 0
    return counts


def _discounts(counts: np.ndarray) -> tuple[float, ...]:
    """Returns D(0) = 0, D(1), D(2), D(3 or more) by the counts of counts, or lmplz's fallback."""
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    if not n[1:4].all():
        return _FALLBACK
    single = n[1] / (n[1] + 2 * n[2])
    found = [k - (k + 1) * single * n[k + 1] / n[k] for k in (1, 2, 3)]
    return (0.0, *found) if all(0 <= d <= k for k, d in enumerate(found, start=1)) else _FALLBACK


def assemble(words: Sequence[str], ngrams: Sequence[Ngrams]) -> NgramModel:
    """Returns the automaton of a back-off model.

    Args:
      words: the vocabulary; the first three are <unk>, <s> and </s>, and each is a unigram.
      ngrams: n-grams of order 1, 2, ...; prefixes or suffixes of some may be missing, as where a model was
        pruned.

    Raises:
      UserError: an n-gram is there twice.
    """
    size = len(words)
    states = [np.zeros(len(found.rows), np.int64) for found in ngrams]
    contexts = np.empty(0, np.int64)
    firsts = [0, 1]  # first state of each length
    for k in range(len(ngrams) - 1):
        longer = range(k + 1, len(ngrams))
        keys = {j: states[j] * size + ngrams[j].rows[:, k] for j in longer}
        weighted = ngrams[k].backoffs != 0  # a weight counts even where nothing goes on
        own = states[k][weighted] * size + ngrams[k].rows[weighted, k]
        level = np.unique(np.concatenate([own, *keys.values()]))
        for j in longer:
            states[j] = firsts[-1] + np.searchsorted(level, keys[j])
        contexts = np.concatenate([contexts, level])
        firsts.append(firsts[-1] + len(level))
    parents, last = np.divmod(contexts, size)
    shorter = np.zeros(len(contexts) + 1, np.int64)
    for first, after in itertools.pairwise(firsts[2:]):
        of = slice(first - 1, after - 1)
        shorter[first:after] = _longest(contexts, shorter, shorter[parents[of]], last[of], size)
    all_keys = np.concatenate(
        [state * size + found.rows[:, -1] for state, found in zip(states, ngrams, strict=True)]
    )
    order = np.argsort(all_keys)
    all_keys = all_keys[order]
    if (np.diff(all_keys) == 0).any():
        raise UserError("an n-gram is there twice")
    backoffs = np.zeros(len(shorter))
    at = np.minimum(np.searchsorted(contexts, all_keys), max(len(contexts) - 1, 0))
    if len(contexts):
        is_context = contexts[at] == all_keys
        backoffs[at[is_context] + 1] = np.concatenate([f.backoffs for f in ngrams])[order][is_context]
    model = NgramModel(
        order=len(ngrams),
        words=tuple(words),
        contexts=contexts,
        backoffs=backoffs,
        shorter=shorter.astype(np.int32),
        keys=all_keys,
        log_probabilities=np.concatenate([found.log_probabilities for found in ngrams])[order],
        following=_longest(contexts, shorter, *np.divmod(all_keys, size), size).astype(np.int32),
    )
    return _with_prefixes(model)


def _with_prefixes(model: NgramModel) -> NgramModel:
    """Adds contexts that are no n-grams themselves, with the probability that backing off gives them: words
    must lead from state to state."""
    missing = np.setdiff1d(model.contexts, model.keys)
    if not len(missing):
        return model
    state, word = (part.astype(np.int32) for part in np.divmod(missing, len(model.words)))
    following = (np.searchsorted(model.contexts, missing) + 1).astype(np.int32)
    keys = np.concatenate([model.keys, missing])
    order = np.argsort(keys)
    return dataclasses.replace(
        model,
        keys=keys[order],
        log_probabilities=np.append(model.log_probabilities, model.advance(state, word)[0])[order],
        following=np.append(model.following, following)[order],
    )


def _longest(
    contexts: np.ndarray, shorter: np.ndarray, states: np.ndarray, words: np.ndarray, size: int
) -> np.ndarray:
    """Returns the state of the longest suffix of each state's words and the word that is a context."""
    result = np.zeros(len(states), np.int64)
    if not len(contexts):
        return result
    waiting = np.arange(len(states))
    while len(waiting):
        keys = states * size + words
        at = np.minimum(np.searchsorted(contexts, keys), len(contexts) - 1)
        found = contexts[at] == keys
        result[waiting[found]] = at[found] + 1
        left = ~found & (states > 0)
        waiting, states, words = waiting[left], shorter[states[left]], words[left]
    return result
