"""Baselines for filling gaps: the commonest token, and bigrams with the neighbours on one side or on both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int64

_DISCOUNT = 0.75
"""Absolute discount of bigrams (Kneser & Ney, 1995)."""
_QUERIES = 256
"""Gaps looked at together: each needs a row over the vocabulary."""

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Bigrams:
    """Interpolated Kneser-Ney bigrams over the tokens of rows, special tokens included.

    Attributes:
      follows: discounted p(next | token) without its back-off part, [token, next].
      freed: what the back-off part of each token is multiplied with.
      common: how often each token occurs.
      varied: share of the distinct bigrams that end with each token: the back-off distribution.
    """

    follows: scipy.sparse.csr_array
    freed: Float[np.ndarray, " vocabulary"]
    common: Int64[np.ndarray, " vocabulary"]
    varied: Float[np.ndarray, " vocabulary"]

    @classmethod
    def of(cls, batches: Iterable[Batch], vocabulary: int) -> Bigrams:
        """Counts neighbours of the same segment in ``tokens`` and ``segments`` of batches without gaps."""
        counts = scipy.sparse.csr_array((vocabulary, vocabulary), dtype=np.int64)
        common = np.zeros(vocabulary, np.int64)
        for batch in batches:
            tokens, segments = batch["tokens"], batch["segments"]
            common += np.bincount(tokens[segments > 0], minlength=vocabulary)
            beside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
            pairs = (tokens[:, :-1][beside], tokens[:, 1:][beside])
            ones = np.ones(len(pairs[0]), np.int64)
            counts = counts + scipy.sparse.coo_array((ones, pairs), (vocabulary, vocabulary)).tocsr()
        totals = np.maximum(counts.sum(1), 1)
        distinct = np.diff(counts.indptr)
        follows = scipy.sparse.csr_array(counts, dtype=np.float64)
        follows.data = (follows.data - _DISCOUNT) / np.repeat(totals, distinct)
        freed = np.where(distinct > 0, _DISCOUNT * distinct / totals, 1.0)
        varied = np.bincount(counts.indices, minlength=vocabulary) / max(counts.nnz, 1)
        return cls(follows, freed, common, varied)

    def after(self, tokens: Int64[np.ndarray, " queries"]) -> Float[np.ndarray, "queries vocabulary"]:
        """Returns p(next | token) for each of ``tokens`` and every next one."""
        return self.follows[tokens].toarray() + self.freed[tokens, None] * self.varied

    def before(self, tokens: Int64[np.ndarray, " queries"]) -> Float[np.ndarray, "queries vocabulary"]:
        """Returns p(token | previous) for each of ``tokens`` and every previous one."""
        return self.follows[:, tokens].toarray().T + self.freed * self.varied[tokens, None]


def gap_accuracies(
    bigrams: Bigrams, batches: Iterable[Batch], special: Bool[np.ndarray, " vocabulary"]
) -> dict[str, float]:
    """Returns the share of gaps that each baseline fills right, by its name.

    "unigram" fills in the commonest token, "bigram, left side" the likeliest after the token on the left,
    "bigram, both sides" the one with the greatest p(token | left) p(right | token): what is likeliest under
    the bigram model given both. A neighbour that is itself a gap tells nothing: the token's frequency
    stands in for p(token | left), and 1 for p(right | token).

    Args:
      bigrams: counted on the training text.
      batches: batches with gaps, as the model gets them.
      special: by id, whether it is a special token; none is ever filled in.
    """
    common = np.where(special, 0.0, bigrams.common) / max(bigrams.common[~special].sum(), 1)
    right: dict[str, int] = dict.fromkeys(("unigram", "bigram, left side", "bigram, both sides"), 0)
    gaps = 0
    for batch in batches:
        row, column = np.nonzero(batch["weights"])
        at = batch["selected"][row, column]
        targets = batch["targets"][row, column]
        gap = np.zeros(batch["tokens"].shape, bool)
        gap[row, at] = True
        gaps += len(at)
        right["unigram"] += int((targets == common.argmax()).sum())
        for start in range(0, len(at), _QUERIES):
            part = slice(start, start + _QUERIES)
            where = (row[part], at[part])
            left, after = ((where[0], where[1] - 1), (where[0], where[1] + 1))
            known_left, known_right = (~gap[left])[:, None], (~gap[after])[:, None]
            one = np.where(known_left, bigrams.after(batch["tokens"][left]), common)
            both = one * np.where(known_right, bigrams.before(batch["tokens"][after]), 1.0)
            for name, scores in (("bigram, left side", one), ("bigram, both sides", both)):
                best = np.where(special, -1.0, scores).argmax(1)
                right[name] += int((best == targets[part]).sum())
    return {name: count / max(gaps, 1) for name, count in right.items()}
