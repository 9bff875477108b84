"""Lexical tables t(f|e), one value for each pair of words that co-occur, and one for each target word alone.

The latter is t(f | empty word). Maximum likelihood divides counts by their totals. With a symmetric
Dirichlet(a) prior, mean-field variational Bayes (Riley & Gildea, 2012) does the same to exp(digamma(.)) of
both,

    t(f|e) = exp(digamma(c(e, f) + a)) / exp(digamma(c(e) + a V))

which takes from small counts nearly all they have: sparse tables for a well below one.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma
from jaxtyping import Array, Float32, Int32

from research.statistical.bitext import Batch, Bitext


class Lexicon(NamedTuple):
    """Values by entry and target word; the last of each is for padding.

    Attributes:
      pairs: t(f|e), or counts c(e, f).
      empty: t(f | empty word), or counts.
    """

    pairs: Float32[Array, " entries_and_padding"]
    empty: Float32[Array, " target_words_and_padding"]


def uniform(bitext: Bitext, target_words: int) -> Lexicon:
    """Returns tables in which every word is as likely: where EM begins."""
    pairs = np.full(bitext.entries + 1, 1 / target_words, np.float32)
    empty = np.full(target_words + 1, 1 / target_words, np.float32)
    pairs[-1] = empty[-1] = 0
    return Lexicon(jnp.asarray(pairs), jnp.asarray(empty))


def emissions(
    lexicon: Lexicon, batch: Batch
) -> tuple[Float32[Array, "batch I J"], Float32[Array, "batch J"]]:
    """Returns t(f_j | e_i) and t(f_j | empty word) of a batch, 0 past the ends."""
    return lexicon.pairs[batch.cells], lexicon.empty[batch.target]


def add(
    counts: Lexicon, batch: Batch, links: Float32[Array, "batch I J"], empty: Float32[Array, "batch J"]
) -> Lexicon:
    """Returns ``counts`` with the posteriors of a batch added."""
    return Lexicon(counts.pairs.at[batch.cells].add(links), counts.empty.at[batch.target].add(empty))


def maximise(
    counts: Lexicon, entry_word: Int32[Array, " entries"], words: int, prior: float = 0.0
) -> Lexicon:
    """Returns the tables that expected counts make likeliest, or, with a prior, their variational estimate.

    Args:
      counts: expected counts.
      entry_word: the source word of each entry.
      words: number of source words.
      prior: a; 0 is maximum likelihood. A word without any count has a table of zeros.
    """
    pairs, empty = counts.pairs[:-1], counts.empty[:-1]
    totals = jnp.zeros(words, jnp.float32).at[entry_word].add(pairs)
    if prior:
        of_all = prior * len(empty)
        pairs = jnp.exp(digamma(pairs + prior) - digamma(totals + of_all)[entry_word])
        empty = jnp.exp(digamma(empty + prior) - digamma(empty.sum() + of_all))
    else:
        pairs = pairs / jnp.where(totals > 0, totals, 1.0)[entry_word]
        empty = empty / jnp.maximum(empty.sum(), 1e-30)
    return Lexicon(jnp.append(pairs, 0.0), jnp.append(empty, 0.0))
