"""Batches against a slow loop over tokens; every pair once per epoch; the order depends on the seed alone."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.packing import TrainSource, train_batches, valid_batches
from research.data.stream import TokenStream
from research.errors import UserError


def make_stream(lengths):
    """Documents of the given lengths; every token of a document is distinct across the stream, <eot> is 0."""
    tokens, starts = [], []
    for n in lengths:
        starts.append(len(tokens))
        tokens += [0, *range(len(tokens) + 1, len(tokens) + 1 + n)]
    return TokenStream(np.array([*tokens, 0], np.uint16), np.array(starts, np.int64), sum(lengths))


def slow_row(stream, start, length):
    """One row, token by token."""
    row = collections.defaultdict(list)
    segment, position = 0, 0
    for i in range(start, start + length):
        if i in stream.starts or segment == 0:
            segment, position = segment + 1, 0
        row["tokens"].append(int(stream.tokens[i]))
        row["targets"].append(int(stream.tokens[i + 1]))
        row["segments"].append(segment)
        row["positions"].append(position)
        row["weights"].append(1.0)
        position += 1
    return row


STREAMS = st.lists(st.integers(1, 30), min_size=1, max_size=30).map(make_stream)


@given(stream=STREAMS, length=st.integers(1, 17), batch=st.integers(1, 5))
def test_validation_rows_against_a_loop(stream, length, batch):
    batches = valid_batches(stream, length=length, batch=batch)
    rows = [{k: v[r] for k, v in b.items()} for b in batches for r in range(batch)]
    for r, row in enumerate(rows):
        real = max(min(length, len(stream) - r * length), 0)
        expected = slow_row(stream, r * length, real)
        for name, values in row.items():
            assert values.dtype == (np.float32 if name == "weights" else np.int32)
            np.testing.assert_array_equal(values, expected[name] + [0] * (length - real))
    assert sum(row["weights"].sum() for row in rows) == len(stream)
    assert len(rows) - len(stream) / length < batch + 1  # no batch of padding alone


@given(stream=STREAMS, length=st.integers(1, 9), seed=st.integers(0, 2**32), epoch=st.integers(0, 3))
def test_an_epoch_holds_every_pair_once_up_to_the_cut_ends(stream, length, seed, epoch):
    if len(stream) < 2 * length:
        return
    source = TrainSource(stream, length=length, batch=1, seed=seed, rows=slice(0, 1))
    n = source.rows_per_epoch
    batches = [source[i] for i in range(epoch * n, (epoch + 1) * n)]
    starts = {(int(a), int(b)): i for i, (a, b) in enumerate(itertools.pairwise(stream.tokens))}
    seen = sorted(
        starts[int(a), int(b)] for x in batches for a, b in zip(x["tokens"][0], x["targets"][0], strict=True)
    )
    offset = seen[0]
    assert seen == list(range(offset, offset + n * length))
    assert offset < length
    assert len(stream) - (offset + n * length) < 2 * length - 1
    for x in batches:
        first = starts[int(x["tokens"][0, 0]), int(x["targets"][0, 0])]
        expected = slow_row(stream, first, length)
        for name, values in x.items():
            np.testing.assert_array_equal(values[0], expected[name])


STREAM = make_stream([7, 1, 40, 3, 3, 90, 12, 55, 2, 31])
SHAPE = {"length": 8, "batch": 4, "seed": 3}


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_epochs_differ_and_batches_cross_their_border():
    source = TrainSource(STREAM, **SHAPE, rows=slice(0, 4))
    assert source.rows_per_epoch % 4  # so the border is inside a batch
    rows = np.concatenate([source[i]["tokens"] for i in range(source.rows_per_epoch)])
    epochs = rows.reshape(4, source.rows_per_epoch, 8)
    for one, other in itertools.combinations(epochs, 2):
        assert not np.array_equal(one, other)
    assert len({np.sort(epoch, axis=0).tobytes() for epoch in epochs}) > 1  # other offsets too
    again = TrainSource(STREAM, **(SHAPE | {"seed": 4}), rows=slice(0, 4))
    assert not np.array_equal(source[0]["tokens"], again[0]["tokens"])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_global_batches_do_not_depend_on_the_number_of_processes(processes):
    whole = take(train_batches(STREAM, **SHAPE), 20)
    shares = [
        take(train_batches(STREAM, **SHAPE, process_index=p, process_count=processes), 20)
        for p in range(processes)
    ]
    joined = [
        {k: np.concatenate([s[k] for s in step]) for k in step[0]} for step in zip(*shares, strict=True)
    ]
    assert_same(joined, whole)
    # The position counts whole batches: another number of processes goes on from it.
    last = train_batches(STREAM, **SHAPE, process_index=processes - 1, process_count=processes)
    take(last, 7)
    alone = train_batches(STREAM, **SHAPE)
    alone.set_state(last.get_state())
    assert_same(take(alone, 3), whole[7:10])
    valid = [
        valid_batches(STREAM, length=8, batch=4, process_index=p, process_count=processes)
        for p in range(processes)
    ]
    joined = [{k: np.concatenate([s[k] for s in step]) for k in step[0]} for step in zip(*valid, strict=True)]
    assert_same(joined, list(valid_batches(STREAM, length=8, batch=4)))


@pytest.mark.parametrize("at", [0, 1, 5, 7, 8, 23])
def test_state_restores_any_position(at):
    straight = train_batches(STREAM, **SHAPE)
    take(straight, at)
    state = straight.get_state()
    rest = take(straight, 10)
    restored = train_batches(STREAM, **SHAPE)
    restored.set_state(state)
    assert_same(take(restored, 10), rest)


def test_far_positions_cost_nothing():
    iterator = train_batches(STREAM, **SHAPE)
    iterator.set_state({"next_index": 10**12})
    assert next(iterator)["tokens"].shape == (4, 8)


def test_limit_and_indexing_of_validation():
    batches = valid_batches(STREAM, length=8, batch=4)
    assert_same(list(valid_batches(STREAM, length=8, batch=4, limit=2)), [batches[0], batches[1]])
    assert len(valid_batches(STREAM, length=8, batch=4, limit=99)) == len(batches)
    assert_same(list(batches), list(batches))  # can be read again
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_errors():
    with pytest.raises(
        UserError, match="254 tokens make 30 sequences of length 8, fewer than one batch of 31"
    ):
        train_batches(STREAM, length=8, batch=31, seed=0)
    with pytest.raises(UserError, match="254 tokens make 0 sequences of length 1000"):
        train_batches(STREAM, length=1000, batch=1, seed=0)
    with pytest.raises(UserError, match="batch of 6 does not divide over 4 processes"):
        train_batches(STREAM, length=8, batch=6, seed=0, process_count=4)
