"""Length buckets: least padding, every pair once an epoch, one order whoever reads, any position restored."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.buckets import (
    Bucket,
    OrderedPairBatches,
    PairBatches,
    TokenPairs,
    gather,
    padding,
    plan,
    train_batches,
)
from research.errors import UserError

END = 1


def random_pairs(count, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    sides = [[rng.integers(2, 50, rng.integers(0, longest)).tolist() for _ in range(count)] for _ in range(2)]
    return TokenPairs.of(*sides, END), sides


def sentences(batch):
    """Returns the pairs of a batch, its rows of nothing but padding left out."""
    rows = zip(batch["source"], batch["source_segments"], batch["targets"], batch["segments"], strict=True)
    return [
        (tuple(source[present > 0].tolist()), tuple(target[here > 0].tolist()))
        for source, present, target, here in rows
        if here.any()
    ]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 4))
def test_plan_is_the_best_of_all_divisions(widths, count):
    sizes = sorted(set(widths))

    def padded(limits):
        return sum(next(limit for limit in limits if limit >= width) for width in widths)

    choices = (
        [*some, sizes[-1]]
        for n in range(min(count, len(sizes)))
        for some in itertools.combinations(sizes[:-1], n)
    )
    got = plan(np.array(widths), count=count, tokens=100, multiple=4)
    assert padded([bucket.width for bucket in got]) == min(map(padded, choices))
    assert len(got) <= count
    assert all(b.rows % 4 == 0 and b.rows * b.width <= 100 < (b.rows + 4) * b.width for b in got)


def test_the_share_of_padding_is_that_of_the_arrays():
    random = np.random.default_rng(0)
    sides = [[[1] * n for n in random.integers(1, 20, 64)] for _ in range(2)]
    pairs = TokenPairs.of(*sides, 0)
    buckets = [Bucket(8, 1), Bucket(14, 1), Bucket(20, 1)]
    batches = [*OrderedPairBatches(pairs, buckets)]
    assert len(batches) == 64  # of one row: none is filled up with rows of padding
    real = sum(batch[name].sum() for batch in batches for name in ("source_segments", "segments"))
    size = sum(2 * batch["tokens"].size for batch in batches)
    assert padding(pairs, buckets) == pytest.approx(1 - real / size)


def test_plan_refuses_a_batch_without_room():
    with pytest.raises(UserError, match=r"batch_tokens 30 is too small: 8 rows of the longest pairs take 72"):
        plan(np.array([3, 9]), count=1, tokens=30, multiple=8)


def test_every_pair_once_an_epoch_and_all_batches_but_one_full():
    pairs, (source, target) = random_pairs(203)
    buckets = plan(pairs.widths(), count=3, tokens=96, multiple=2)
    batches = PairBatches(pairs, buckets, seed=3)
    wanted = sorted((*zip(((*s, END) for s in source), ((*t, END) for t in target), strict=True),))
    orders = []
    for epoch in range(2):
        found = [batches[epoch * batches.batches_per_epoch + i] for i in range(batches.batches_per_epoch)]
        orders.append([pair for batch in found for pair in sentences(batch)])
        assert sorted(orders[-1]) == wanted
        assert sum(not batch["segments"].any(1).all() for batch in found) <= 1
        shapes = {batch["tokens"].shape for batch in found}
        assert shapes <= {(b.rows, b.width) for b in buckets}
    assert orders[0] != orders[1]
    padded = sum(batches[i]["targets"].size for i in range(batches.batches_per_epoch))
    assert 0.4 < pairs.target_tokens / padded < 1


def test_arrays_of_a_batch():
    pairs = TokenPairs.of([[5, 6], [7]], [[8], [9, 10, 11]], END)
    batch = gather(pairs, np.array([1, 0]), Bucket(4, 3), (0, 1))
    assert batch["source"].tolist() == [[7, 1, 0, 0], [5, 6, 1, 0], [0] * 4]
    assert batch["source_segments"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0] * 4]
    assert batch["tokens"].tolist() == [[1, 9, 10, 11], [1, 8, 0, 0], [0] * 4]
    assert batch["targets"].tolist() == [[9, 10, 11, 1], [8, 1, 0, 0], [0] * 4]
    assert batch["segments"].tolist() == batch["weights"].tolist() == [[1] * 4, [1, 1, 0, 0], [0] * 4]


def test_order_depends_on_seed_alone_and_any_position_is_restored():
    pairs, _ = random_pairs(60)
    buckets = plan(pairs.widths(), count=2, tokens=64, multiple=2)
    first, second = (train_batches(pairs, buckets, seed=5) for _ in range(2))
    other = train_batches(pairs, buckets, seed=6)
    for _ in range(30):
        one, two, three = next(first), next(second), next(other)
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    assert sentences(one) != sentences(three)
    state = first.get_state()
    wanted = [next(first) for _ in range(5)]
    fresh = train_batches(pairs, buckets, seed=5)
    fresh.set_state(state)
    for batch in wanted:
        again = next(fresh)
        for name in batch:
            np.testing.assert_array_equal(batch[name], again[name])


def test_processes_share_batches():
    pairs, _ = random_pairs(40)
    buckets = plan(pairs.widths(), count=2, tokens=64, multiple=2)
    whole, *parts = (
        train_batches(pairs, buckets, seed=5, process_index=i, process_count=n)
        for i, n in ((0, 1), (0, 2), (1, 2))
    )
    for _ in range(10):
        together = [next(part) for part in parts]
        batch = next(whole)
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([part[name] for part in together]), batch[name])
    # The position counts whole batches: any number of processes goes on from it.
    alone = train_batches(pairs, buckets, seed=5)
    alone.set_state(parts[1].get_state())
    np.testing.assert_array_equal(next(alone)["tokens"], next(whole)["tokens"])


def test_ordered_batches_hold_every_pair_once(tmp_path):
    pairs, (source, _) = random_pairs(51)
    pairs.save(tmp_path)
    pairs = TokenPairs.open(tmp_path)
    buckets = plan(pairs.widths(), count=3, tokens=64, multiple=2)
    batches = OrderedPairBatches(pairs, buckets)
    found = [pair for batch in batches for pair in sentences(batch)]
    assert sorted(s for s, _ in found) == sorted((*s, END) for s in source)
    assert sum(batch["weights"].sum() for batch in batches) == pairs.target_tokens
