"""Models 3, 4 and 5 as the textbook has them: one alignment at a time, dictionaries, double precision.

Alignments are tuples of source positions, one for each target word, 0 for the empty word. What a table lacks
has the probability FLOOR.
"""

from __future__ import annotations

import collections
import itertools
import math

FLOOR = 1e-7
MOST = 9


def look(table, key):
    return max(table.get(key, 0.0), FLOOR)


def cepts(a, I):  # noqa: E741
    """Places of the words of each cept, 1..I, places from 1."""
    return [[j for j, i in enumerate(a, start=1) if i == k] for k in range(1, I + 1)]


def events3(e, f, a, classes):
    """What Model 3 places: (i, j, J) of each word."""
    return [("d", i, j, len(f)) for j, i in enumerate(a, start=1) if i]


def events4(e, f, a, classes):
    """What Model 4 places: ("first", class before, class, distance) and ("rest", class, distance)."""
    A, B = classes
    found, centre, before = [], 0, None
    for i, words in enumerate(cepts(a, len(e)), start=1):
        if not words:
            continue
        found.append(
            ("first", A[e[before - 1]] if before else "begin", B[f[words[0] - 1]], words[0] - centre)
        )
        for j, k in itertools.pairwise(words):
            found.append(("rest", B[f[k - 1]], k - j))
        centre, before = math.ceil(sum(words) / len(words)), i
    return found


def events5(e, f, a, classes):
    """What Model 5 places: (event of the distance in vacancies, the events that were as possible)."""
    A, B = classes
    found, centre, before = [], 0, None
    free = [True] * len(f)

    def vacancies(j):
        return sum(free[:j])

    for i, words in enumerate(cepts(a, len(e)), start=1):
        if not words:
            continue
        for k, j in enumerate(words, start=1):
            total = vacancies(len(f))
            if k == 1:
                key = ("first", A[e[before - 1]] if before else "begin", B[f[j - 1]])
                base, room = vacancies(centre), total - len(words) + 1
                choices = [(*key, v - base) for v in range(1, room + 1)]
            else:
                key = ("rest", B[f[j - 1]])
                base = vacancies(words[k - 2])
                choices = [(*key, d) for d in range(1, total - base - len(words) + k + 1)]
            event = (*key, vacancies(j) - base)
            assert event in choices and free[j - 1]
            found.append((event, choices))
            free[j - 1] = False
        centre, before = math.ceil(sum(words) / len(words)), i
    return found


def probability(e, f, a, tables, events, classes, p1):
    """P(f, a | e), the distortion of ``events`` in tables["d"]."""
    t, n, d = tables["t"], tables["n"], tables["d"]
    J, none = len(f), a.count(0)
    if 2 * none > J:
        return 0.0
    value = math.comb(J - none, none) * (1 - p1) ** (J - 2 * none) * p1**none
    for word, places in zip(e, cepts(a, len(e)), strict=True):
        if len(places) > MOST:
            return 0.0
        orders = math.factorial(len(places)) if events is events3 else 1
        value *= orders * look(n, (len(places), word))
    for word, i in zip(f, a, strict=True):
        value *= look(t, (word, e[i - 1] if i else None))
    for event in events(e, f, a, classes):
        if events is events5:
            event, choices = event
            value *= look(tables["w"], event) / sum(look(tables["w"], other) for other in choices)
        else:
            value *= look(d, event)
    return value


def neighbours(a, I):  # noqa: E741
    """All alignments a move or a swap away."""
    for i in range(I + 1):
        for j in range(len(a)):
            if i != a[j]:
                yield (*a[:j], i, *a[j + 1 :])
    for j, k in itertools.combinations(range(len(a)), 2):
        if a[j] != a[k]:
            b = list(a)
            b[j], b[k] = b[k], b[j]
            yield tuple(b)


def pegged(a, I, value):  # noqa: E741
    """All neighbours of the best alignment, and of the best ones with each link held."""
    best = climb(a, I, value)
    near = {best, *neighbours(best, I)}
    for i, j in itertools.product(range(I + 1), range(len(a))):
        held = climb((*best[:j], i, *best[j + 1 :]), I, value, held=j)
        near |= {held, *(b for b in neighbours(held, I) if b[j] == i)}
    return near


def climb(a, I, value, held=None):  # noqa: E741
    """The alignment where no neighbour is likelier, going to the best one each time; one word may be held."""
    while True:
        steps = (b for b in neighbours(a, I) if held is None or b[held] == a[held])
        best = max(steps, key=value, default=a)
        if value(best) <= value(a) * (1 + 2e-4):
            return a
        a = best


def expectation(source, target, start, tables, events, classes, p1, counted=None):
    """Counts over the neighbourhood of the best alignment of each pair; and those alignments."""
    counts = {name: collections.Counter() for name in "tnd"}
    best = []
    for e, f, a in zip(source, target, start, strict=True):

        def value(b, e=e, f=f):
            return probability(e, f, b, tables, events, classes, p1)

        a = climb(a, len(e), value)
        best.append(a)
        near = [a, *neighbours(a, len(e))]
        total = sum(map(value, near))
        for b in near:
            add(counts, e, f, b, value(b) / total, counted or events, classes)
    return counts, best


def add(counts, e, f, a, weight, events, classes):
    for word, i in zip(f, a, strict=True):
        counts["t"][word, e[i - 1] if i else None] += weight
    for word, places in zip(e, cepts(a, len(e)), strict=True):
        counts["n"][len(places), word] += weight
    for event in events(e, f, a, classes):
        counts["d"][event] += weight


def maximise(counts, smoothing, share, width):
    """Tables of counts; the last of a key varies, but for Model 3's (i, j, J), where j does.

    smoothing: of fertilities; share: of the uniform distribution of ``width`` choices of places.
    """
    tables = {}
    totals = collections.Counter()
    for (_, given), count in counts["t"].items():
        totals[given] += count
    tables["t"] = {key: count / totals[key[1]] for key, count in counts["t"].items()}
    words = {word for _, word in counts["n"]}
    whole = sum(counts["n"].values())
    average = [sum(c for (k, _), c in counts["n"].items() if k == phi) / whole for phi in range(MOST + 1)]
    tables["n"] = {}
    for word in words:
        total = sum(counts["n"][phi, word] for phi in range(MOST + 1))
        for phi in range(MOST + 1):
            tables["n"][phi, word] = (counts["n"][phi, word] + smoothing * average[phi]) / (total + smoothing)
    tables["d"] = Places(counts["d"], share, width)
    return tables


class Places:
    """Shares of counts, mixed with the uniform distribution; uniform where there are no counts."""

    def __init__(self, counts, share, width):
        self.counts, self.share, self.width = counts, share, width
        self.totals = collections.Counter()
        for event, count in counts.items():
            self.totals[self.given(event)] += count

    def given(self, event):
        return (event[1], event[3]) if event[0] == "d" else event[:-1]

    def get(self, event, default):
        choices = event[3] if event[0] == "d" else self.width[event[0]]
        total = self.totals[self.given(event)]
        if not total:
            return 1 / choices
        return (1 - self.share) * self.counts[event] / total + self.share / choices
