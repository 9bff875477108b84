"""Induction: after a trigger comes what came after it before; tested on longer rows than trained on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np

from research.data.generated import Generated, PreparedTask, Rows, random_of, rows


@dataclasses.dataclass(frozen=True)
class Induction(Generated):
    """Random tokens in which a trigger is always followed by the same token, which is asked for.

    The trigger stands ``questions`` + 1 times in a row, the last time at its end; what follows it the first
    time has to be named every other time. With one question this is the task of Mamba (Gu & Dao, 2023,
    section 4.1.2: 16 tokens and the trigger, trained at length 256). More questions are more to learn from in
    a row; test rows have one, at their end.
    """

    symbols: int = 16
    """Tokens beside the trigger, which is token ``symbols``."""
    length: int = 256
    """Tokens in a row of training and validation."""
    questions: int = 8
    """Answers asked for in a row of training and validation."""
    test_lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192)
    """Lengths of the rows that the finished model is tested on."""
    test_rows: int = 64
    """Rows of each test length."""
    batch: int = 32
    """Rows in a step, over all devices."""
    valid_batches: int = 8
    """Batches of the validation part."""

    @property
    def tokens(self) -> int:
        """Different tokens, the trigger among them."""
        return self.symbols + 1

    @property
    def longest(self) -> int:
        """Tokens in the longest row that a model is shown."""
        return max(self.length, *self.test_lengths, 0)

    def problems(self) -> Iterator[str]:
        """Yields what does not fit together, each as one clear sentence."""
        if self.length < 2 * self.questions + 2:
            yield (
                f"data.length {self.length} cannot hold data.questions {self.questions}; "
                f"at least {2 * self.questions + 2}"
            )
        for length in self.test_lengths:
            if length < 4:
                yield f"data.test_lengths has {length}; a row is at least 4 tokens long"

    def prepare(
        self, *, vocabulary: int, tokenizer: None = None, report: Callable[[str], None] = lambda message: None
    ) -> PreparedTask:
        """Returns the task; nothing is built."""
        del vocabulary, tokenizer, report
        shape = (self.batch, self.length, self.questions)
        return PreparedTask(
            train=lambda seed, index: self.draw(random_of("train", seed, index), *shape),
            valid=lambda index: self.draw(random_of("valid", index), *shape),
            valid_count=self.valid_batches,
            batch=self.batch,
            baselines={"any token": 1 / self.symbols},
            tests={f"length {n}": functools.partial(self._test, n) for n in self.test_lengths},
        )

    def _test(self, length: int) -> Iterator[Rows]:
        """Yields the test rows of one length, about as many tokens at a time as in training."""
        most = min(max(self.tokens_per_step // length, 1), self.test_rows)
        count = max(divisor for divisor in range(1, most + 1) if self.test_rows % divisor == 0)
        for index in range(self.test_rows // count):
            yield self.draw(random_of("test", length, index), count, length, 1)

    def draw(self, random: np.random.Generator, count: int, length: int, questions: int) -> Rows:
        """Returns ``count`` rows of ``length`` tokens."""
        tokens = random.integers(self.symbols, size=(count, length), dtype=np.int32)
        answers = random.integers(self.symbols, size=(count, 1), dtype=np.int32)
        # The row but for its end, cut into pairs from its first or second token on: some hold the trigger.
        pairs = (length - 2) // 2
        chosen = np.sort(np.argsort(random.random((count, pairs)), axis=1)[:, :questions], axis=1)
        triggers = 2 * chosen + random.integers(2, size=(count, 1))
        np.put_along_axis(tokens, triggers, np.int32(self.symbols), axis=1)
        np.put_along_axis(tokens, triggers + 1, answers, axis=1)
        tokens[:, -1] = self.symbols
        asked = np.concatenate([triggers[:, 1:], np.full((count, 1), length - 1)], axis=1)
        targets, weights = np.zeros_like(tokens), np.zeros(tokens.shape, np.float32)
        np.put_along_axis(targets, asked, answers, axis=1)
        np.put_along_axis(weights, asked, np.float32(1), axis=1)
        return rows(tokens, targets, weights)
