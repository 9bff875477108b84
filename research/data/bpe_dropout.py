"""BPE-dropout: many ways to cut the same text into the tokens of one vocabulary (Provilkov et al., 2020)."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import tokenizers

_WAYS = 32
"""Ways drawn for each word; what is cut takes one of them wherever the word stands."""


class Segmenter:
    """Cuts text as a byte-level BPE tokenizer does, but now and then passes over a merge.

    At every step each pair of neighbours that the tokenizer would merge is passed over with probability
    ``rate``, and the first in the order of merges that is left is merged, until none is (algorithm 1 of the
    paper). What is drawn depends on nothing but the seed and the order of the texts; the `tokenizers`
    library's own dropout cannot be seeded.
    """

    def __init__(self, backend: tokenizers.Tokenizer, rate: float, seed: int = 0) -> None:
        """Reads the merges of ``backend``, a byte-level BPE."""
        model: dict[str, Any] = json.loads(backend.to_str())["model"]
        merges = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
        self._ranks = {(left, right): rank for rank, (left, right) in enumerate(merges)}
        self._ids: dict[str, int] = model["vocab"]
        self._backend, self._rate = backend, rate
        self._random = random.Random(seed).random
        self._ways: dict[str, list[list[int]]] = {}

    def ways(self, text: str, count: int) -> list[list[int]]:
        """Returns the token ids of ``count`` ways to cut ``text``, drawn independently."""
        words = [self._of(word) for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(text)]
        draw = self._random
        return [[i for ways in words for i in ways[int(draw() * _WAYS)]] for _ in range(count)]

    def _of(self, word: str) -> list[list[int]]:
        if word not in self._ways:
            self._ways[word] = [self._draw(word) for _ in range(_WAYS)]
        return self._ways[word]

    def _draw(self, word: str) -> list[int]:
        symbols, draw = list(word), self._random
        while True:
            ranks = (self._ranks.get(pair) for pair in itertools.pairwise(symbols))
            left = [(rank, i) for i, rank in enumerate(ranks) if rank is not None and draw() >= self._rate]
            if not left:
                return [self._ids[symbol] for symbol in symbols]
            _, i = min(left)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
