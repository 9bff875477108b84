"""Modified Kneser-Ney by the book, a lookup at a time: the oracle of the vectorised estimator."""

from __future__ import annotations

import collections


class DictionaryKneserNey:
    def __init__(self, sentences, order):
        self.order = order
        padded = [["<s>", *sentence, "</s>"] for sentence in sentences]
        self.words = {"<unk>", *(word for sentence in padded for word in sentence[1:])}
        occurrences = [collections.Counter() for _ in range(order + 1)]
        for sentence in padded:
            for n in range(1, order + 1):
                for at in range(len(sentence) - n + 1):
                    occurrences[n][tuple(sentence[at : at + n])] += 1
        self.counts = [{}]
        for n in range(1, order + 1):
            counts = {}
            for ngram, count in occurrences[n].items():
                if n < order and ngram[0] != "<s>":
                    count = sum(1 for longer in occurrences[n + 1] if longer[1:] == ngram)
                if ngram != ("<s>",):
                    counts[ngram] = count
            self.counts.append(counts)
        self.discounts = [self._discounts(counts) for counts in self.counts]

    def _discounts(self, counts):
        n = [sum(1 for count in counts.values() if count == k) for k in range(5)]
        if not (n[1] and n[2] and n[3]):
            return [0, 0.5, 1.0, 1.5]
        y = n[1] / (n[1] + 2 * n[2])
        d = [0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        return d if all(0 <= d[k] <= k for k in (1, 2, 3)) else [0, 0.5, 1.0, 1.5]

    def probability(self, history, word):
        """p(word | history), by the interpolated formula and not by backing off."""
        history = tuple(history)[max(0, len(history) - self.order + 1) :]
        return self._interpolated(history, word)

    def _interpolated(self, history, word):
        n = len(history) + 1
        lower = self._interpolated(history[1:], word) if history else 1 / len(self.words)
        after = {w: c for (*h, w), c in self.counts[n].items() if tuple(h) == history}
        if not after:
            return lower
        total, d = sum(after.values()), self.discounts[n]
        freed = sum(d[min(c, 3)] for c in after.values())
        c = after.get(word, 0)
        return (c - d[min(c, 3)]) / total + freed / total * lower
