"""Models 1 and 2 as the textbook has them: dictionaries and loops in double precision, over all of EM."""

from __future__ import annotations

import collections
import itertools
import math

EMPTY = None
PAIRS = [
    ("la maison", "the house"),
    ("la maison bleue", "the blue house"),
    ("la fleur", "the flower"),
    ("une fleur bleue et la maison", "a blue flower and the house the"),
    ("et", "and and"),
]
TARGET, SOURCE = ([sentence.split() for sentence in side] for side in zip(*PAIRS, strict=True))


def em(source, target, iterations, *, model2=0):
    """Runs Model 1, then Model 2; returns the table t[f, e] and the log-likelihood after each iteration."""
    words = {f for sentence in target for f in sentence}
    t = collections.defaultdict(lambda: 1 / len(words))
    a = {}
    history = []
    for iteration in range(iterations + model2):
        counts, totals, places, columns = (collections.Counter() for _ in range(4))
        log_likelihood = 0.0
        for e, f in zip(source, target, strict=True):
            with_empty = [EMPTY, *e]
            for j, word in enumerate(f):
                share = [a.get((i, j, len(e), len(f)), 1 / (len(e) + 1)) for i in range(len(e) + 1)]
                weights = [s * t[word, given] for s, given in zip(share, with_empty, strict=True)]
                log_likelihood += math.log(sum(weights))
                for i, (given, weight) in enumerate(zip(with_empty, weights, strict=True)):
                    posterior = weight / sum(weights)
                    counts[word, given] += posterior
                    totals[given] += posterior
                    places[i, j, len(e), len(f)] += posterior
                    columns[j, len(e), len(f)] += posterior
        t = {(word, given): count / totals[given] for (word, given), count in counts.items()}
        if iteration >= iterations:
            a = {(i, *rest): count / columns[tuple(rest)] for (i, *rest), count in places.items()}
        history.append((dict(t), log_likelihood))
    return history


def chain_by_enumeration(emission, empty, weights, p0, uniform=0.0):
    """Sums over all alignments of one sentence pair: links, expected jumps by (from, to), and P(f | e).

    emission is t(f_j | e_i) as [n][m], weights the function s(d), uniform the share of jumps to anywhere,
    which are not among the expected ones. Positions count from 1; 0 is the start.
    """
    n, m = len(emission), len(emission[0])
    links = collections.Counter()
    jumps = collections.Counter()
    total = 0.0
    for alignment in itertools.product(range(n + 1), repeat=m):  # 0: from the empty word
        probability, at, moves = 1.0, 0, []
        for j, i in enumerate(alignment):
            if i == 0:
                probability *= p0 * empty[j]
                continue
            by_width = (1 - uniform) * weights(i - at) / sum(weights(k - at) for k in range(1, n + 1))
            jump = by_width + uniform / n
            probability *= (1 - p0) * jump * emission[i - 1][j]
            moves.append((at, i, by_width / jump))
            at = i
        total += probability
        for j, i in enumerate(alignment):
            links[i, j] += probability
        for start, end, share in moves:
            jumps[start, end] += probability * share
    scaled = ({key: value / total for key, value in counter.items()} for counter in (links, jumps))
    return *scaled, total
