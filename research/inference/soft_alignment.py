"""Which source words a model attends to as it says a target: soft alignments, and links made of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.attention.masks import Tokens
from research.data.bitext import encode
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.inference.beam import Decoder

_STEP = 8
"""Widths of batches are multiples of this."""
_ROWS = 64
"""Most sentence pairs in a batch."""


def attention_of(
    decoder: Decoder,
) -> Callable[[Any, Array, Array, Array], Float[Array, "batch length source"]]:
    """Returns the jitted function that tells how a given target attends to its source.

    It takes parameters, right-padded sources [batch, source_length], their lengths, and targets
    [batch, length] that begin with the token that targets begin with. Of what it returns, row i has the
    weights with which token i is read and token i + 1 predicted (Luong et al., 2015, after it has been read).

    Args:
      decoder: a model that tells its attention.
    """

    def weights(
        params: Any,
        source: Int[Array, "batch source_length"],
        lengths: Int[Array, " batch"],
        targets: Int[Array, "batch length"],
    ) -> Float[Array, "batch length source_length"]:
        memory = decoder.encode(params, source, Tokens.of_lengths(lengths, source.shape[1]))

        def advance(cache: Any, index: Int[Array, ""]) -> tuple[Any, Array]:
            now = jax.lax.dynamic_index_in_dim(targets, index, axis=1)
            place = Tokens(jnp.broadcast_to(index, now.shape))
            _, cache = decoder.step(params, now, memory, place, cache)
            attention = decoder.attention(cache)
            assert attention is not None, "the decoder tells no attention"
            return cache, attention

        # The first step on its own: the cache before it has another structure.
        batch, length = targets.shape
        cache, first = advance(decoder.empty_cache(batch, length), jnp.zeros((), jnp.int32))
        _, others = jax.lax.scan(advance, cache, jnp.arange(1, length, dtype=jnp.int32))
        return jnp.concatenate([first[None], others]).swapaxes(0, 1)

    return jax.jit(weights)


class SoftAligner:
    """Tells how a model attends to the words of a source as it says the words of a given target."""

    def __init__(
        self, decoder: Decoder, params: Any, tokenizers: tuple[Tokenizer, Tokenizer], *, context: int
    ) -> None:
        """Makes the aligner; nothing is compiled yet.

        Args:
          decoder: a model that tells its attention.
          params: its parameters.
          tokenizers: of the source and of the target.
          context: the most tokens of a source or a target, the end of text included.
        """
        self._params, self._tokenizers, self._context = params, tokenizers, context
        self._attention = attention_of(decoder)

    def align(
        self, sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]
    ) -> list[Float[np.ndarray, "target_words source_words"]]:
        """Returns the attention of the words of each pair of sentences (see `of_words`).

        Raises:
          UserError: a sentence is longer than the model takes.
        """
        sides = (sources, targets)
        pieces = [
            [encode(tokenizer, words) for words in side]
            for tokenizer, side in zip(self._tokenizers, sides, strict=True)
        ]
        lengths = np.array([[sum(map(len, words)) for words in side] for side in pieces]).reshape(2, -1)
        over = np.flatnonzero(lengths.max(0, initial=0) >= self._context)
        if len(over):
            raise UserError(
                f"sentence pair {over[0] + 1} has {lengths[:, over[0]].max() + 1} tokens; the model takes "
                f"{self._context} (model.context)"
            )
        found: list[Any] = [np.zeros((0, 0))] * len(sources)
        widths = -(-(lengths + 1) // _STEP) * _STEP
        order = sorted(range(len(sources)), key=lambda n: (*widths[:, n], n))
        for width, members in itertools.groupby(order, key=lambda n: tuple(widths[:, n].tolist())):
            same = list(members)
            for start in range(0, len(same), _ROWS):
                part = same[start : start + _ROWS]
                for n, weights in zip(
                    part, self._batch([[s[n] for n in part] for s in pieces], width), strict=True
                ):
                    sizes = ([len(word) for word in side[n]] for side in pieces)
                    found[n] = of_words(weights, *sizes)
        return found

    def _batch(self, pieces: Sequence[Sequence[Sequence[Sequence[int]]]], width: tuple[int, int]) -> Any:
        """Returns the attention of a batch of pairs; rows come in powers of two, to compile few programs."""
        rows = 1 << (len(pieces[0]) - 1).bit_length()
        source = np.full((rows, width[0]), self._tokenizers[0].end_of_text, np.int32)
        target = np.full((rows, width[1]), self._tokenizers[1].end_of_text, np.int32)
        target[:, 0] = self._tokenizers[1].start
        lengths = np.ones(rows, np.int32)
        for row, (ours, theirs) in enumerate(zip(*pieces, strict=True)):
            left, right = (list(itertools.chain.from_iterable(words)) for words in (ours, theirs))
            source[row, : len(left)], target[row, 1 : len(right) + 1] = left, right
            lengths[row] = len(left) + 1
        arrays = (jnp.asarray(x) for x in (source, lengths, target))
        return np.asarray(self._attention(self._params, *arrays))[: len(pieces[0])]


def of_words(
    weights: Float[np.ndarray, "target_pieces source_pieces"], source: Sequence[int], target: Sequence[int]
) -> Float[np.ndarray, "target_words source_words"]:
    """Returns the attention of words, given that of the pieces they consist of.

    What a piece gives to the pieces of a source word is added, what the pieces of a target word give is
    averaged (Zenkel et al., 2019, section 4). The end of text, which is no word's, is left out.

    Args:
      weights: attention of target pieces on source pieces; what lies beyond the words' is left out.
      source: number of pieces of each source word.
      target: number of pieces of each target word.
    """
    starts, ends = np.cumsum([0, *source])[:-1], np.cumsum(source, dtype=int)
    columns = [weights[:, start:end].sum(1) for start, end in zip(starts, ends, strict=True)]
    by_word = np.stack(columns, axis=1) if columns else np.zeros((len(weights), 0))
    starts, ends = np.cumsum([0, *target])[:-1], np.cumsum(target, dtype=int)
    rows = [by_word[start:end].mean(0) for start, end in zip(starts, ends, strict=True)]
    return np.stack(rows) if rows else np.zeros((0, len(columns)))


def likeliest_links(weights: Float[np.ndarray, "target_words source_words"]) -> set[tuple[int, int]]:
    """Returns a link (source word, target word) for each target word, to what it attends to most."""
    if not weights.size:
        return set()
    return {(int(i), j) for j, i in enumerate(weights.argmax(1))}
