"""ListOps (Nangia & Bowman, 2018) as Long Range Arena draws it (Tay et al., 2021): [MAX 2 [MIN 4 7 ] ] is 4.

Published scores say little: always answering the commonest value is right 17 % of the time, looking at the
first token only 36 %, and at the first token and its literal arguments 44 %. So these are measured on the
same rows as the model, and stand beside its score.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import random as standard
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from research.data.cache import build_once, cache_directory, content_hash
from research.data.generated import Generated, PreparedTask, Rows, rows
from research.errors import UserError

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
"""Tokens 10 to 13: minimum, maximum, truncated median, sum modulo 10. Tokens 0 to 9 are digits."""
CLOSE = 14
"""Token that ends an operator's arguments."""
TOKENS = 15
_OPERATES = 0.25
"""Probability that a node above the greatest depth is an operator."""
_FORMAT = 1
"""Part of the cache key: raise it when what is generated changes."""
_HOPELESS = 200_000
"""Trees drawn in a row, none of which has a length that is asked for or is new, before giving up."""


@dataclasses.dataclass(frozen=True)
class ListOperations(Generated):
    """Nested operations on digits; the answer, a digit, is asked for at the last token.

    A node is an operator with probability 1/4 as long as its depth is less than ``depth``, and a digit
    otherwise; an operator has 2 to ``arguments`` of them. Trees of fewer tokens than asked for, or more, are
    thrown away, and so is one that was there before: training and validation rows are all different. The rows
    do not depend on the run's seed. The defaults are Long Range Arena's: between 500 and 2,000 tokens, both
    excluded. It draws rows without a seed; here a seed decides them.
    """

    min_length: int = 501
    """Least tokens in a row."""
    max_length: int = 1999
    """Most tokens in a row; shorter ones are padded to it."""
    depth: int = 10
    """Greatest depth of a node, the root's being 1."""
    arguments: int = 10
    """Most arguments of an operator."""
    train_rows: int = 96_000
    """Rows to train on, over and over, in an order of each epoch's own."""
    valid_rows: int = 2_000
    """Rows of the validation part; as many whole batches as they make are used."""
    draw_seed: int = 0
    """Seed that the rows are drawn from, whatever the run's seed is."""
    batch: int = 32
    """Rows in a step, over all devices."""

    @property
    def length(self) -> int:
        """Tokens in a row, padding included."""
        return self.max_length

    @property
    def longest(self) -> int:
        """Tokens in the longest row that a model is shown."""
        return self.max_length

    @property
    def tokens(self) -> int:
        """Different tokens."""
        return TOKENS

    def problems(self) -> Iterator[str]:
        """Yields what does not fit together, each as one clear sentence."""
        if not 4 <= self.min_length <= self.max_length:
            yield (
                f"data.min_length {self.min_length} and data.max_length {self.max_length} leave no row; "
                "at least 4, and the first no greater than the second"
            )
        for name in ("train_rows", "valid_rows"):
            if getattr(self, name) < self.batch:
                yield f"data.{name} {getattr(self, name)} is less than data.batch {self.batch}"

    def prepare(
        self, *, vocabulary: int, tokenizer: None = None, report: Callable[[str], None] = lambda message: None
    ) -> PreparedTask:
        """Returns the task; its rows are drawn once and cached on disk.

        Raises:
          UserError: there are not so many different rows of these lengths.
        """
        del vocabulary, tokenizer
        drawn = dataclasses.asdict(self)
        del drawn["batch"]
        directory = build_once(
            cache_directory() / "list-operations" / content_hash(_FORMAT, drawn),
            lambda directory: self._build(directory, report),
        )
        train, valid = (_Expressions.load(directory / f"{part}.npz") for part in ("train", "valid"))
        per_epoch = len(train) // self.batch

        def batch(part: _Expressions, numbers: np.ndarray) -> Rows:
            return part.rows(numbers, self.max_length)

        def train_rows(seed: int, index: int) -> Rows:
            epoch, start = divmod(index, per_epoch)
            order = np.random.default_rng([seed, epoch]).permutation(len(train))
            return batch(train, order[start * self.batch : (start + 1) * self.batch])

        return PreparedTask(
            train=train_rows,
            valid=lambda index: batch(valid, np.arange(index * self.batch, (index + 1) * self.batch)),
            valid_count=len(valid) // self.batch,
            batch=self.batch,
            baselines=baselines(train.clues, train.answers, valid.clues, valid.answers),
        )

    def _build(self, directory: Path, report: Callable[[str], None]) -> None:
        report(f"drawing {self.train_rows + self.valid_rows:,} expressions")
        found = self.expressions()
        for part, count in (("train", self.train_rows), ("valid", self.valid_rows)):
            _Expressions.of(itertools.islice(found, count)).save(directory / f"{part}.npz")

    def expressions(self) -> Iterator[Expression]:
        """Yields different expressions without end.

        Raises:
          UserError: no more are found.
        """
        draw = standard.Random(self.draw_seed).random
        seen: set[bytes] = set()
        for attempt in itertools.count():
            expression = _expression(draw, self.depth, self.arguments, self.max_length)
            if expression and len(expression.tokens) >= self.min_length and expression.tokens not in seen:
                seen.add(expression.tokens)
                last = attempt
                yield expression
            elif attempt - (last if seen else 0) > _HOPELESS:
                raise UserError(
                    f"only {len(seen):,} different expressions of {self.min_length} to {self.max_length} "
                    f"tokens were found with data.depth {self.depth} and data.arguments {self.arguments}; "
                    "widen these, or lower data.train_rows"
                )


@dataclasses.dataclass(frozen=True)
class Expression:
    """An expression and its value.

    Attributes:
      tokens: a byte each.
      value: a digit.
      clue: (operator of the root, least literal argument of the root, greatest, number of the others).
    """

    tokens: bytes
    value: int
    clue: tuple[int, int, int, int]


def _expression(draw: Callable[[], float], depth: int, arguments: int, most: int) -> Expression | None:
    """Returns a random expression; None if its root is a digit or it has more than ``most`` tokens."""
    tokens = bytearray()

    def operation(at: int) -> tuple[int, list[int]] | None:
        """Writes an operation at this depth; returns its value and its literal arguments."""
        operator, count = int(draw() * len(OPERATORS)), 2 + int(draw() * (arguments - 1))
        tokens.append(10 + operator)
        values, literals = [], []
        for _ in range(count):
            if len(tokens) >= most:
                return None
            if at + 1 < depth and draw() <= _OPERATES:
                inner = operation(at + 1)
                if inner is None:
                    return None
                values.append(inner[0])
            else:
                digit = int(draw() * 10)
                tokens.append(digit)
                values.append(digit)
                literals.append(digit)
        tokens.append(CLOSE)
        return apply_operator(operator, values), [*literals, count - len(literals)]

    if depth < 2 or draw() > _OPERATES:
        return None
    found = operation(1)
    if found is None or len(tokens) > most:
        return None
    value, (*literals, others) = found
    clue = (tokens[0], min(literals, default=-1), max(literals, default=-1), others)
    return Expression(bytes(tokens), value, clue)


def apply_operator(operator: int, values: Sequence[int]) -> int:
    """Returns the value of OPERATORS[operator] on digits."""
    if operator == 0:
        return min(values)
    if operator == 1:
        return max(values)
    if operator == 2:
        ordered, middle = sorted(values), len(values) // 2
        return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) // 2
    return sum(values) % 10


def text(tokens: Iterable[int]) -> str:
    """Returns an expression as its authors write it: "[MAX 2 [MIN 4 7 ] 0 ]"."""
    names = [*map(str, range(10)), *OPERATORS, "]"]
    return " ".join(names[token] for token in tokens)


def baselines(
    train_clues: np.ndarray, train_answers: np.ndarray, clues: np.ndarray, answers: np.ndarray
) -> dict[str, float]:
    """Returns the accuracy of predictors that look at little: nothing, the root, and its literal arguments.

    Each answers what was commonest in training among rows with the same clue.

    Args:
      train_clues: of the training rows, [rows, 4], see `Expression`.
      train_answers: digits.
      clues: of the rows to be scored on.
      answers: their digits.
    """
    looks = {"commonest answer": 0, "root operator only": 1, "root and its literal arguments": 4}
    return {name: _table_accuracy(train_clues[:, :n], train_answers, clues[:, :n], answers)
            for name, n in looks.items()}  # fmt: skip


def _table_accuracy(
    train_clues: np.ndarray, train_answers: np.ndarray, clues: np.ndarray, answers: np.ndarray
) -> float:
    table: dict[tuple[int, ...], collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for clue, answer in zip(train_clues.tolist(), train_answers.tolist(), strict=True):
        # Also under its shorter forms, for a clue that training does not have.
        for known in range(len(clue) + 1):
            table[tuple(clue[:known])][answer] += 1
    right = 0
    for clue, answer in zip(clues.tolist(), answers.tolist(), strict=True):
        known = next(known for known in range(len(clue), -1, -1) if tuple(clue[:known]) in table)
        right += table[tuple(clue[:known])].most_common(1)[0][0] == answer
    return right / len(answers)


@dataclasses.dataclass(frozen=True, eq=False)
class _Expressions:
    """Expressions end to end."""

    tokens: np.ndarray
    """All tokens, uint8."""
    starts: np.ndarray
    """Where each begins, and the end, int64."""
    answers: np.ndarray
    """Digits, uint8."""
    clues: np.ndarray
    """[expressions, 4], int8."""

    def __len__(self) -> int:
        return len(self.answers)

    @classmethod
    def of(cls, expressions: Iterable[Expression]) -> _Expressions:
        tokens, starts, answers, clues = bytearray(), [0], [], []
        for expression in expressions:
            tokens += expression.tokens
            starts.append(len(tokens))
            answers.append(expression.value)
            clues.append(expression.clue)
        return cls(
            np.frombuffer(bytes(tokens), np.uint8),
            np.array(starts, np.int64),
            np.array(answers, np.uint8),
            np.array(clues, np.int8).reshape(-1, 4),
        )

    def save(self, path: Path) -> None:
        np.savez(path, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    @classmethod
    def load(cls, path: Path) -> _Expressions:
        with np.load(path) as found:
            return cls(**{field.name: found[field.name] for field in dataclasses.fields(cls)})

    def rows(self, numbers: np.ndarray, length: int) -> Rows:
        """Returns these expressions as a batch, padded to ``length``; the last token asks for the value."""
        lengths = (self.starts[numbers + 1] - self.starts[numbers]).astype(np.int32)
        tokens = np.zeros((len(numbers), length), np.int32)
        for row, number, size in zip(tokens, numbers.tolist(), lengths.tolist(), strict=True):
            row[:size] = self.tokens[self.starts[number] : self.starts[number] + size]
        targets, weights = np.zeros_like(tokens), np.zeros(tokens.shape, np.float32)
        last = lengths[:, None] - 1
        np.put_along_axis(targets, last, self.answers[numbers][:, None].astype(np.int32), axis=1)
        np.put_along_axis(weights, last, np.float32(1), axis=1)
        return rows(tokens, targets, weights, lengths)
