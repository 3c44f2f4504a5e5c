"""The order of samples: every one once, from any batch on, mixed within groups of shards, from seed and epoch alone."""

from itertools import accumulate

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pretrain.order import Order


def order_of(counts: list[int], seed: int = 0, buffer: int = 10) -> Order:
    return Order(counts, [0, *accumulate(counts)][:-1], seed, buffer)


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    buffer=st.integers(1, 40),
    epoch=st.none() | st.integers(0, 3),
    batch=st.integers(1, 11),
    start=st.integers(0, 12),
)
def test_every_sample_comes_once_and_any_batch_can_be_the_first(counts, buffer, epoch, batch, start):
    order = order_of(counts, buffer=buffer)
    whole = list(order.batches(epoch, batch, drop_last=False))
    assert sorted(np.concatenate(whole).tolist()) == list(range(sum(counts)))
    assert [len(numbers) for numbers in whole[:-1]] == [batch] * (len(whole) - 1)
    for one, other in zip(order.batches(epoch, batch, start, drop_last=False), whole[start:], strict=True):
        np.testing.assert_array_equal(one, other)
    full = list(order.batches(epoch, batch))
    assert len(full) == sum(counts) // batch


def test_samples_that_are_missing_leave_the_numbers_of_the_others():
    order = Order([2, 0, 1], [0, 3, 5])
    assert sorted(np.concatenate(list(order.batches(0, 1))).tolist()) == [0, 1, 5]


def test_without_an_epoch_the_order_is_that_of_the_shards():
    assert np.concatenate(list(order_of([3, 4, 2]).batches(None, 4, drop_last=False))).tolist() == list(range(9))


def test_few_shards_are_open_at_a_time_and_their_samples_are_mixed():
    order = order_of([100] * 50, buffer=300)
    for numbers in order.batches(0, 300):
        shards, counts = np.unique(numbers // 100, return_counts=True)
        assert counts.tolist() == [100, 100, 100]
        assert len(shards) == 3
        # A random order of 300 numbers has about 1 pair of neighbours that rise by one.
        assert (np.diff(numbers) == 1).sum() < 10
    first = np.concatenate(list(order.batches(0, 300)))
    assert (first[::100] // 100 != np.arange(48)).sum() > 40


def test_all_places_are_equally_likely():
    """Chi-square of where sample 0 comes, over 4,000 epochs of a buffer that holds everything."""
    order = order_of([5, 5], buffer=10)
    places = [int(np.flatnonzero(next(order.batches(epoch, 10)) == 0)[0]) for epoch in range(4000)]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 400) ** 2 / 400).sum() < 27.9  # 99.9 % of the distribution with 9 degrees of freedom


def test_seed_and_epoch_are_two_numbers():
    def first(seed: int, epoch: int) -> list[int]:
        return next(order_of([50] * 4, seed, 100).batches(epoch, 200)).tolist()

    assert first(1, 2) == first(1, 2)
    assert len({tuple(first(*pair)) for pair in ((1, 2), (2, 1), (1, 3), (2, 2), (11, 1), (1, 11))}) == 6
