"""Synthetic tasks against their definitions: recall and induction read off the rows by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from research.data.associative_recall import AssociativeRecall
from research.data.generated import random_of
from research.data.induction import Induction
from research.errors import UserError

ONE = {"process_index": 0, "process_count": 1}
RECALL = AssociativeRecall(vocabulary=64, length=32, pairs=4, batch=16, valid_batches=2)


def asked(batch):
    """Yields (row of tokens, index asked at, target)."""
    for tokens, targets, weights in zip(
        batch["tokens"].tolist(), batch["targets"].tolist(), batch["weights"].tolist(), strict=True
    ):
        for index in np.flatnonzero(weights):
            yield tokens, int(index), targets[index]


def test_every_answer_is_the_value_that_the_key_was_paired_with():
    batch = RECALL.draw(random_of("train", 0, 0))
    questions = list(asked(batch))
    assert len(questions) == 16 * 4
    for tokens, index, target in questions:
        pairs = dict(zip(tokens[:8:2], tokens[1:8:2], strict=True))
        assert index >= 8 and pairs[tokens[index]] == target
    for tokens in batch["tokens"]:
        assert len(set(tokens[:8].tolist())) == 8  # no key and no value twice
        assert (tokens[:8:2] < 32).all() and (tokens[:8:2] > 0).all() and (tokens[1:8:2] >= 32).all()
    assert (batch["segments"] == 1).all() and (batch["positions"] == np.arange(32)).all()


def test_gaps_follow_the_power_law():
    """The first of the gaps that are drawn, without replacement, has the law itself: p(g) ~ g^(a - 1)."""
    data = AssociativeRecall(vocabulary=8, length=24, pairs=1, batch=20_000, power=0.3)
    index = np.argmax(data.draw(random_of("train", 1, 2))["weights"], axis=1)
    found = np.bincount((index - 2) // 2, minlength=11) / 20_000
    law = np.arange(1, 12) ** (0.3 - 1.0)
    assert found == pytest.approx(law / law.sum(), abs=0.012)
    assert (index % 2 == 0).all()


def test_a_batch_is_a_function_of_seed_and_index_and_validation_of_neither():
    prepared = RECALL.prepare(vocabulary=64)
    stream = prepared.train_batches(seed=3, **ONE)
    first, second = next(stream), next(stream)
    state = stream.get_state()
    third = next(stream)
    again = prepared.train_batches(seed=3, **ONE)
    again.set_state(state)
    assert (next(again)["tokens"] == third["tokens"]).all()
    other = next(prepared.train_batches(seed=4, **ONE))
    assert not (first["tokens"] == second["tokens"]).all() and not (first["tokens"] == other["tokens"]).all()
    valid = [batch["tokens"] for batch in prepared.valid_batches(**ONE)]
    assert len(valid) == 2 and not (valid[0] == valid[1]).all()
    assert not any((batch == first["tokens"]).all() for batch in valid)


def test_processes_share_each_batch():
    prepared = RECALL.prepare(vocabulary=64)
    whole = next(prepared.train_batches(seed=0, **ONE))["tokens"]
    halves = [
        next(prepared.train_batches(seed=0, process_index=i, process_count=2))["tokens"] for i in range(2)
    ]
    assert (np.concatenate(halves) == whole).all()
    # The position counts whole batches: any number of processes goes on from it.
    half = prepared.train_batches(seed=0, process_index=1, process_count=2)
    next(half)
    alone, straight = (prepared.train_batches(seed=0, **ONE) for _ in range(2))
    alone.set_state(half.get_state())
    next(straight)
    assert (next(alone)["tokens"] == next(straight)["tokens"]).all()
    with pytest.raises(UserError, match="a batch of 16 does not divide over 3 processes"):
        prepared.train_batches(seed=0, process_index=0, process_count=3)


def test_shapes_are_those_that_are_declared():
    for data in (RECALL, Induction(length=32, questions=3, batch=4, test_lengths=(8, 64), test_rows=4)):
        prepared = data.prepare(vocabulary=64)
        for batch in (next(prepared.train_batches(seed=0, **ONE)), prepared.valid_batches(limit=1, **ONE)[0]):
            found = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
            assert found == data.shapes()


@pytest.mark.parametrize("length", [12, 13, 64])
def test_induction_asks_for_what_followed_the_trigger_the_first_time(length):
    data = Induction(symbols=6, questions=3)
    batch = data.draw(random_of("train", 0, length), 200, length, 3)
    questions = list(asked(batch))
    assert len(questions) == 200 * 3
    for tokens, index, target in questions:
        first = tokens.index(6)
        assert tokens[index] == 6 and first < index and tokens[first + 1] == target != 6
        assert index == length - 1 or tokens[index + 1] == target
    assert (batch["tokens"] == 6).sum() == 200 * 4 and (batch["tokens"][:, -1] == 6).all()
    firsts = {tokens.tolist().index(6) for tokens in batch["tokens"]}
    assert {0, 1} <= firsts  # anywhere, at even and odd indices


def test_test_rows_have_one_question_at_their_end_and_the_length_asked_for():
    data = Induction(length=32, questions=3, batch=4, test_lengths=(8, 64), test_rows=6)
    tests = data.prepare(vocabulary=17).tests
    assert list(tests) == ["length 8", "length 64"]
    for length, batches in zip((8, 64), (list(tests[name]()) for name in tests), strict=True):
        assert sum(len(batch["tokens"]) for batch in batches) == 6
        for batch in batches:
            assert batch["tokens"].shape[1] == length
            assert (batch["weights"].sum(1) == 1).all() and (batch["weights"][:, -1] == 1).all()
    assert data.longest == 64


def test_what_cannot_be_drawn_is_a_problem_in_one_line():
    problems = {
        AssociativeRecall(length=30, pairs=8): "data.length 30 cannot hold data.pairs 8",
        AssociativeRecall(vocabulary=8, length=64, pairs=8): "data.vocabulary 8 is too small",
        Induction(length=8, questions=4): "data.length 8 cannot hold data.questions 4; at least 10",
        Induction(test_lengths=(3,)): "data.test_lengths has 3",
    }
    for data, message in problems.items():
        assert next(data.problems()).startswith(message)
    assert not list(RECALL.problems())
