"""Candidate translations of a development set, merged over the iterations of tuning."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from research.statistical.bleu_counts import WIDTH, bleu
from research.statistical.translation_options import FEATURES


@dataclasses.dataclass(frozen=True, eq=False)
class CandidatePool:
    """Candidates, those of a sentence together; no two of a sentence are alike in features and counts.

    Attributes:
      sentence: sentence of each, ascending.
      features: feature vector of each.
      counts: BLEU's counts of each.
    """

    sentence: Int32[np.ndarray, " candidates"]
    features: Float32[np.ndarray, "candidates features"]
    counts: Int32[np.ndarray, "candidates 10"]

    def __len__(self) -> int:
        return len(self.sentence)

    @property
    def starts(self) -> Int64[np.ndarray, " sentences"]:
        """First candidate of each sentence that has any."""
        return np.flatnonzero(np.diff(self.sentence, prepend=-1))

    def merged(self, other: CandidatePool) -> CandidatePool:
        """Returns the candidates of both."""
        sentence, features, counts = (
            np.concatenate([getattr(pool, field.name) for pool in (self, other)])
            for field in dataclasses.fields(self)
        )
        # Sums in another order may differ in their last digits.
        rows = np.concatenate([np.round(features, 3), sentence[:, None], counts], axis=1, dtype=np.float32)
        rows += 0.0  # no -0
        keys = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1] * 4))).reshape(-1)
        first = np.unique(keys, return_index=True)[1]
        kept = np.sort(first)
        kept = kept[np.argsort(sentence[kept], kind="stable")]
        return CandidatePool(sentence[kept], features[kept], counts[kept])

    def best(self, weights: Float64[np.ndarray, " features"]) -> Int64[np.ndarray, " sentences"]:
        """Returns the candidate of each sentence that has the highest score, the first of them in a tie."""
        score = self.features @ weights
        order = np.lexsort((-score, self.sentence))
        return order[self.starts]

    def bleu(self, weights: Float64[np.ndarray, " features"]) -> float:
        """Returns BLEU, in percent, of the candidates that the weights choose."""
        return float(bleu(self.counts[self.best(weights)].sum(axis=0)))


def empty_pool() -> CandidatePool:
    """Returns a pool without candidates."""
    return CandidatePool(
        np.zeros(0, np.int32), np.zeros((0, len(FEATURES)), np.float32), np.zeros((0, WIDTH), np.int32)
    )
