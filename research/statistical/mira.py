"""Batch MIRA on n-best lists (Cherry & Foster, 2012, section 3): large margins between hope and fear."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

from research.statistical.bleu_counts import bleu
from research.statistical.candidate_pool import CandidatePool

_DECAY = 0.999
"""What is left of the background counts after a sentence."""


def mira(
    pool: CandidatePool,
    weights: Float64[np.ndarray, " features"],
    free: Bool[np.ndarray, " features"],
    *,
    epochs: int,
    largest_step: float,
    seed: int,
) -> Float64[np.ndarray, " features"]:
    """Returns the averaged weights after the epoch whose average has the highest BLEU on the pool.

    For each sentence, hope has the highest model score plus BLEU, fear the highest model score minus BLEU; a
    step makes the former win by at least their difference in BLEU. BLEU is that of a corpus to which the
    sentence is added, decayed counts of earlier hopes (Chiang, Marton & Resnik, 2008), times its words.

    Args:
      pool: the candidates.
      weights: where to begin.
      free: weights that may change.
      epochs: passes over the sentences.
      largest_step: C, the most that a step takes of the difference in features.
      seed: of the order of the sentences.
    """
    rng = np.random.default_rng(seed)
    ends = np.append(pool.starts[1:], len(pool))
    sentences = [np.s_[begin:end] for begin, end in zip(pool.starts, ends, strict=True)]
    features, counts = pool.features.astype(np.float64), pool.counts.astype(np.float64)
    background = counts[pool.best(weights)].mean(axis=0)
    weights, total, updates = weights.copy(), np.zeros(len(weights)), 0
    averages = []  # not the weights it begins with: tuning would stop at the first that no epoch betters
    for _ in range(epochs):
        for number in rng.permutation(len(sentences)).tolist():
            rows = sentences[number]
            score = features[rows] @ weights
            gained = counts[rows] + background
            quality = bleu(gained) / 100 * gained[:, 1]
            hope, fear = int((score + quality).argmax()), int((score - quality).argmax())
            difference = (features[rows][hope] - features[rows][fear]) * free
            loss = quality[hope] - quality[fear] - (score[hope] - score[fear])
            if loss > 0 and difference.any():
                weights += min(largest_step, loss / (difference @ difference)) * difference
            background = _DECAY * (background + counts[rows][hope])
            total += weights
            updates += 1
        averages.append(total / updates)
    return max(averages, key=pool.bleu)
