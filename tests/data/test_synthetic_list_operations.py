"""ListOps: values against Python's own arithmetic, the distribution against Long Range Arena's."""

from __future__ import annotations

import itertools
import re
import statistics

import numpy as np
import pytest

from research.data.list_operations import CLOSE, ListOperations, baselines, text
from research.errors import UserError

SMALL = ListOperations(
    min_length=8, max_length=40, depth=4, arguments=5, train_rows=300, valid_rows=60, batch=20
)
ONE = {"process_index": 0, "process_count": 1}
FUNCTIONS = {
    "MIN": min,
    "MAX": max,
    "MED": lambda *values: int(np.median(values)),
    "SM": lambda *values: sum(values) % 10,
}


def evaluated(expression: str) -> int:
    """The value by Python's own eval: [MAX 2 [MIN 4 7 ] ] -> MAX(2,MIN(4,7,),)."""
    python = re.sub(r"\[(\w+) ", r"\1(", expression).replace("]", ")").replace(" ", ",")
    return eval(python.replace(",)", ")").replace("(,", "("), {**FUNCTIONS})


def test_values_are_those_that_python_finds():
    found = list(itertools.islice(SMALL.expressions(), 400))
    for expression in found:
        assert evaluated(text(expression.tokens)) == expression.value
        assert 8 <= len(expression.tokens) <= 40
    assert len({expression.tokens for expression in found}) == 400
    assert evaluated("[MAX 2 [MED 4 7 ] ]") == 5
    assert text([11, 2, 10, 4, 7, CLOSE, CLOSE]) == "[MAX 2 [MIN 4 7 ] ]"


def test_trees_are_as_deep_and_wide_as_allowed_and_no_more():
    depths, widths = set(), set()
    for expression in itertools.islice(SMALL.expressions(), 400):
        stack, deepest = [], 0
        for token in expression.tokens:
            if stack and token != CLOSE:
                stack[-1] += 1
            if token >= 10 and token != CLOSE:
                stack.append(0)
                deepest = max(deepest, len(stack))
            elif token == CLOSE:
                widths.add(stack.pop())
        assert not stack
        depths.add(deepest)
    # A node of depth 4 is a digit: operators are at most 3 deep. All have 2 to 5 arguments.
    assert max(depths) == 3 and widths == {2, 3, 4, 5}


def test_the_distribution_is_that_of_long_range_arena():
    """20,000 rows of its generator: 17.0 % zeros, 16.7 % nines, 36.3 % by the root, mean length 1039."""
    found = list(itertools.islice(ListOperations().expressions(), 600))
    values = np.array([expression.value for expression in found])
    assert (values == 0).mean() == pytest.approx(0.170, abs=0.04)
    assert (values == 9).mean() == pytest.approx(0.167, abs=0.04)
    lengths = [len(expression.tokens) for expression in found]
    assert min(lengths) > 500 and max(lengths) < 2000
    assert statistics.fmean(lengths) == pytest.approx(1039, abs=60)
    clues = np.array([expression.clue for expression in found])
    scores = baselines(clues[:400], values[:400], clues[400:], values[400:])
    assert scores["root operator only"] == pytest.approx(0.363, abs=0.09)


def test_baselines_know_what_they_look_at_and_nothing_else():
    clues = np.array([[10, 1, 5, 0], [10, 2, 5, 0], [11, 1, 5, 0], [11, 1, 5, 0]])
    answers = np.array([1, 2, 5, 5])
    found = baselines(
        clues, answers, np.array([[10, 2, 5, 0], [11, 9, 9, 9], [12, 0, 0, 0]]), np.array([2, 5, 5])
    )
    # The commonest is 5; the root MIN gives 1; the whole clue gives 2, and 5 for what it has never seen.
    assert found == {
        "commonest answer": 2 / 3,
        "root operator only": 2 / 3,
        "root and its literal arguments": 1.0,
    }


def test_rows_end_in_the_question_and_are_padded_behind_it():
    prepared = SMALL.prepare(vocabulary=15)
    batches = prepared.valid_batches(**ONE)
    assert len(batches) == 3
    seen = set()
    for batch in batches:
        assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == SMALL.shapes()
        for row in range(20):
            length = int(batch["segments"][row].sum())
            tokens = batch["tokens"][row, :length].tolist()
            assert batch["weights"][row].sum() == batch["weights"][row, length - 1] == 1
            assert batch["targets"][row, length - 1] == evaluated(text(tokens))
            assert not batch["tokens"][row, length:].any()
            seen.add(tuple(tokens))
    train = prepared.train_batches(seed=0, **ONE)
    epoch = [next(train) for _ in range(15)]
    rows = {
        tuple(row[:n])
        for b in epoch
        for row, n in zip(b["tokens"].tolist(), b["segments"].sum(1), strict=True)
    }
    assert len(rows) == 300 and not rows & seen  # every row once an epoch, none of the validation's
    assert 0 < prepared.baselines["commonest answer"] < prepared.baselines["root and its literal arguments"]


def test_more_rows_than_there_are_is_an_error(monkeypatch):
    monkeypatch.setattr("research.data.list_operations._HOPELESS", 2000)
    few = ListOperations(min_length=4, max_length=4, depth=2, arguments=2, batch=1)
    with pytest.raises(UserError, match=r"expressions of 4 to 4 tokens were found.*lower data.train_rows"):
        list(few.expressions())
    assert "data.min_length 9 and data.max_length 8" in next(
        ListOperations(min_length=9, max_length=8).problems()
    )
