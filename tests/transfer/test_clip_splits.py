"""Splits of bins of videos: whole clips, or blocks with a gap between train and test."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_data.splits import image_splits
from transfer.clip_splits import FEWEST_BLOCKS, bin_places


def test_whole_clips_are_drawn_as_images_are():
    clip, bin = np.divmod(np.arange(6 * 10), 10)
    pairs = bin_places(clip + 3, bin, block_bins=2, gap=4).splits(5, 0.5)
    for (train, test), (train_clips, test_clips) in zip(pairs, image_splits(6, 5), strict=True):
        np.testing.assert_array_equal(train, np.flatnonzero(np.isin(clip, train_clips)))
        np.testing.assert_array_equal(test, np.flatnonzero(np.isin(clip, test_clips)))


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(28, 80), min_size=1, max_size=6),
    block_bins=st.integers(6, 7),
    gap=st.integers(1, 2),
    first=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_neighbours_are_never_in_train_and_test(lengths, block_bins, gap, first, seed):
    clip = np.repeat(np.arange(len(lengths)), lengths)
    bin = np.concatenate([first + np.arange(length) for length in lengths])
    order = np.random.default_rng(seed).permutation(len(clip))
    places = bin_places(clip[order], bin[order], block_bins, gap)
    for train, test in places.splits(4, 0.5):
        assert len(train), "something is left to fit"
        assert not set(train) & set(test)
        same = places.clip[train][:, None] == places.clip[test]
        apart = np.abs(places.bin[train][:, None] - places.bin[test])
        assert (apart[same] > gap).all()
        if len(lengths) >= FEWEST_BLOCKS:
            assert not same.any()
            assert len(train) + len(test) == len(clip), "no gap is needed between clips"
        kept = [(block == places.block[test]).sum() for block in np.unique(places.block[test])]
        assert kept == [(block == places.block).sum() for block in np.unique(places.block[test])], "test blocks whole"


def test_one_clip_is_cut_into_equal_blocks():
    places = bin_places(np.zeros(300, int), np.arange(300), block_bins=29, gap=5)
    assert np.bincount(places.block).tolist() == [30] * 10
    train, test = places.splits(1, 0.5)[0]
    assert len(test) == 150
    assert 150 - 10 * 5 <= len(train) < 150


def test_train_stimuli_are_split_by_the_same_blocks():
    places = bin_places(np.zeros(100, int), np.arange(100), block_bins=10, gap=2)
    train, _ = places.splits(1, 0.5)[0]
    fit, check = (train[rows] for rows in places.of(train).splits(1, 0.5)[0])
    assert not set(places.block[fit]) & set(places.block[check])
    assert np.abs(fit[:, None] - check).min() > 2


def test_too_few_blocks_and_too_wide_a_gap_are_said():
    with pytest.raises(ValueError, match="1 clips of 30 bins are 3 blocks of about 10 bins; splits need 4, so lower"):
        bin_places(np.zeros(30, int), np.arange(30), block_bins=10, gap=1)
    with pytest.raises(ValueError, match="gap_ms is 30 bins, which leaves no train stimuli; lower it, or raise block"):
        bin_places(np.zeros(40, int), np.arange(40), block_bins=10, gap=30).splits(1, 0.5)
