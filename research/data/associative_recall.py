"""Multi-query associative recall (MQAR; Arora et al., 2023, "Zoology"): which value did a key have?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int64

from research.data.generated import Generated, PreparedTask, Rows, random_of, rows


@dataclasses.dataclass(frozen=True)
class AssociativeRecall(Generated):
    """Rows that open with key-value pairs and ask for the value of each key once, later on.

    A row is ``k1 v1 k2 v2 … kn vn`` and then noise, in which every key stands once more, at an even distance
    from the pairs; a target is the value of the key that stands there, and only there a row has weight. Keys
    are drawn from the lower half of the vocabulary, values from the upper half, without repetition; the gap
    after the pairs, in steps of two tokens, follows the power law p(gap) ~ gap^(power - 1), none twice.

    The defaults are Zoology's easiest setting, (length 64, 4 pairs); its others are (128, 8), (256, 16) and
    (512, 64). Zoology trains on 100,000 rows over and over; here no row is ever repeated.
    """

    vocabulary: int = 8192
    """Tokens; keys are the lower half of them, values the upper."""
    length: int = 64
    """Tokens in a row."""
    pairs: int = 4
    """Key-value pairs in a row, and so questions."""
    power: float = 0.01
    """Exponent a of the law of the gaps, p(gap) ~ gap^(a - 1): 1 is uniform, near 0 most are short."""
    batch: int = 64
    """Rows in a step, over all devices."""
    valid_batches: int = 16
    """Batches of the validation part."""

    @property
    def tokens(self) -> int:
        """Different tokens."""
        return self.vocabulary

    @property
    def longest(self) -> int:
        """Tokens in the longest row that a model is shown."""
        return self.length

    def problems(self) -> Iterator[str]:
        """Yields what does not fit together, each as one clear sentence."""
        if self.pairs * 4 > self.length or self.length % 2:
            least = 4 * self.pairs
            yield (
                f"data.length {self.length} cannot hold data.pairs {self.pairs} and a question for each; "
                f"it must be even and at least {least}"
            )
        if self.vocabulary // 2 <= self.pairs:
            yield (
                f"data.vocabulary {self.vocabulary} is too small for data.pairs {self.pairs} different keys; "
                f"at least {2 * self.pairs + 2}"
            )

    def prepare(
        self, *, vocabulary: int, tokenizer: None = None, report: Callable[[str], None] = lambda message: None
    ) -> PreparedTask:
        """Returns the task; nothing is built."""
        del vocabulary, tokenizer, report
        return PreparedTask(
            train=lambda seed, index: self.draw(random_of("train", seed, index)),
            valid=lambda index: self.draw(random_of("valid", index)),
            valid_count=self.valid_batches,
            batch=self.batch,
            baselines={"any value of the row": 1 / self.pairs},
        )

    def draw(self, random: np.random.Generator) -> Rows:
        """Returns a batch of rows."""
        half, opening = self.vocabulary // 2, 2 * self.pairs
        keys = 1 + _without_repetition(random, np.zeros(half - 1), (self.batch, self.pairs))
        values = half + _without_repetition(
            random, np.zeros(self.vocabulary - half), (self.batch, self.pairs)
        )
        steps = np.arange(1, (self.length - opening) // 2 + 1)
        gaps = _without_repetition(random, (self.power - 1) * np.log(steps), (self.batch, self.pairs))
        tokens = random.integers(self.vocabulary, size=(self.batch, self.length), dtype=np.int32)
        tokens[:, :opening:2], tokens[:, 1:opening:2] = keys, values
        asked = opening + 2 * gaps
        np.put_along_axis(tokens, asked, keys.astype(np.int32), axis=1)
        targets, weights = np.zeros_like(tokens), np.zeros(tokens.shape, np.float32)
        np.put_along_axis(targets, asked, values.astype(np.int32), axis=1)
        np.put_along_axis(weights, asked, np.float32(1), axis=1)
        return rows(tokens, targets, weights)


def _without_repetition(
    random: np.random.Generator, log_weights: np.ndarray, shape: tuple[int, int]
) -> Int64[np.ndarray, "rows drawn"]:
    """Returns indices drawn with these weights, no index twice in a row.

    The largest of log-weight plus Gumbel noise are a draw one by one without replacement (Vieira, 2014).
    """
    count, drawn = shape
    noisy = log_weights + random.gumbel(size=(count, len(log_weights)))
    largest = np.argpartition(-noisy, drawn - 1, axis=1)[:, :drawn]
    order = np.argsort(-np.take_along_axis(noisy, largest, axis=1), axis=1)
    return np.take_along_axis(largest, order, axis=1)
