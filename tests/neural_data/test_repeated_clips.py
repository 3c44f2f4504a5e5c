"""Clips that are shown several times, recovered from their pixels: simulated ones whose numbers are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_data.repeated_clips import SAME_SHARE, grid_of_pixels, repeated_clips, same_share
from tests.neural_data.mice import clips


class Trials:
    """Videos (H, W, frames) by trial, and how often each was read as a whole."""

    def __init__(self, videos: list[np.ndarray]) -> None:
        self.videos, self.whole = videos, 0
        self.frames = np.array([video.shape[-1] for video in videos])

    def read(self, trial: int, scattered: bool) -> np.ndarray:
        self.whole += not scattered
        return self.videos[trial]


def shown(numbers, seed=0, noise=1, n_clips=None) -> Trials:
    """Trials of clips by number, each pixel up to `noise` grey levels from where the clip has it."""
    rng = np.random.default_rng(seed)
    stock = np.moveaxis(clips(n_clips or max(numbers) + 1, seed=seed), 1, -1).astype(float)
    # Half a level to each side: two trials are at most `noise` apart.
    return Trials([stock[k] + rng.uniform(-noise / 2, noise / 2, stock[k].shape) for k in numbers])


def by_brute_force(trials: Trials, tiers: np.ndarray) -> np.ndarray:
    """ViV1T-closed-loop's way: every video against all clips before it, without padding."""
    found, first = np.full(len(tiers), -1), []
    for trial in range(len(tiers)):
        if tiers[trial] == "none":
            continue
        if tiers[trial] != "train":
            equal = [k for k, other in enumerate(first) if same_share(other, trials.videos[trial]) > SAME_SHARE]
            if equal:
                found[trial] = equal[0]
                continue
        found[trial] = len(first)
        first.append(trials.videos[trial])
    return found


@settings(max_examples=25, deadline=None)
@given(numbers=st.lists(st.integers(0, 5), min_size=2, max_size=14), seed=st.integers(0, 9))
def test_repeats_in_any_order(numbers, seed):
    trials = shown(numbers, seed)
    found = repeated_clips(trials.read, trials.frames, np.full(len(numbers), "oracle"))
    first = list(dict.fromkeys(numbers))
    assert found.clip.tolist() == [first.index(number) for number in numbers]
    assert (found.agreement == 1).all()


def test_tiers():
    """Train clips are new even where they are the same; none is no clip; others may show a train clip."""
    trials = shown([0, 0, 1, 1, 0, 2, 2])
    tiers = np.array(["train", "train", "oracle", "none", "live_test_main", "oracle", "train"])
    found = repeated_clips(trials.read, trials.frames, tiers)
    assert found.clip.tolist() == [0, 1, 2, -1, 0, 3, 4]
    assert np.isnan(found.agreement).tolist() == [False] * 3 + [True] + [False] * 3
    assert found.clip.tolist() == by_brute_force(trials, tiers).tolist()


@pytest.mark.parametrize(("changed", "same"), [(5, True), (8, True), (9, False), (30, False)])
def test_near_duplicates(changed, same):
    """Of 60 frames 51 must agree and one more: 85 % are not more than 85 %."""
    trials = shown([0, 0])
    trials.videos[1][..., 10 : 10 + changed] += 40
    found = repeated_clips(trials.read, trials.frames, np.full(2, "oracle"))
    assert (found.clip[0] == found.clip[1]) == same
    assert found.agreement[1] == pytest.approx(1 - changed / 60 if same else 1)


@pytest.mark.parametrize(("noise", "same"), [(1.0, True), (1.2, False)])
def test_one_grey_level(noise, same):
    trials = shown([0], noise=0)
    trials = Trials([trials.videos[0], trials.videos[0] + noise])
    found = repeated_clips(trials.read, trials.frames, np.full(2, "oracle"))
    assert (found.clip[0] == found.clip[1]) == same


def test_one_pixel_off_the_grid_decides():
    """The grid cannot see it; the whole comparison does."""
    trials = shown([0, 0], noise=0)
    assert grid_of_pixels(trials.videos[0]).shape == (60, 36)
    trials.videos[1][0, 0] += 30
    assert np.array_equal(*(grid_of_pixels(video) for video in trials.videos))
    found = repeated_clips(trials.read, trials.frames, np.full(2, "oracle"))
    assert found.clip.tolist() == [0, 1]


@pytest.mark.parametrize(("kept", "same"), [(59, True), (52, True), (51, False), (20, False)])
def test_clips_that_are_cut(kept, same):
    """The share is of the longer one; 239 of 300 frames are another clip, 299 are not."""
    trials = shown([0, 0, 1])
    for order in ([0, 1, 2], [1, 0, 2]):
        videos = [trials.videos[0], trials.videos[1][..., :kept], trials.videos[2]]
        cut = Trials([videos[k] for k in order])
        found = repeated_clips(cut.read, cut.frames, np.full(3, "oracle"))
        assert (found.clip[0] == found.clip[1]) == same
        assert found.clip[2] not in found.clip[:2]


def test_padding_is_no_frame():
    trials = shown([0, 1])
    padded = Trials([np.pad(v, [(0, 0), (0, 0), (0, 40)], constant_values=np.nan) for v in trials.videos])
    found = repeated_clips(padded.read, trials.frames, np.full(2, "oracle"))
    assert found.clip.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_other_numbers_on_disk(dtype):
    """Unsigned ones would wrap around below zero."""
    dark = np.zeros((12, 16, 60), dtype)
    trials = Trials([dark, dark + dtype(1), dark + dtype(3)])
    found = repeated_clips(trials.read, trials.frames, np.full(3, "oracle"))
    assert found.clip.tolist() == [0, 0, 1]


def test_agrees_with_brute_force_on_clips_that_hardly_differ():
    """Clips that share most of their frames and pixels, where the order of trials decides."""
    rng = np.random.default_rng(5)
    base = np.moveaxis(clips(1, seed=7), 1, -1)[0].astype(float)
    videos = []
    for _ in range(30):
        video = base.copy()
        start = rng.integers(0, 55)
        video[..., start : start + rng.integers(1, 14)] += rng.choice([1, 2])
        videos.append(video[..., : rng.integers(48, 61)])
    trials, tiers = Trials(videos), rng.choice(["train", "oracle", "none"], 30, p=[0.2, 0.7, 0.1])
    found = repeated_clips(trials.read, trials.frames, tiers)
    assert found.clip.tolist() == by_brute_force(trials, tiers).tolist()
    assert 1 < len(set(found.clip)) < 30


def test_whole_videos_are_read_once_for_each_repeat():
    """Not for each pair: of 60 trials with 6 clips, 54 are compared with one other."""
    trials = shown(np.tile(np.arange(6), 10).tolist())
    repeated_clips(trials.read, trials.frames, np.full(60, "oracle"))
    assert trials.whole == 2 * 54


def test_videos_smaller_than_the_grid():
    small = Trials([video[:3, :2] for video in shown([0, 1, 0]).videos])
    assert grid_of_pixels(small.videos[0]).shape == (60, 6)
    found = repeated_clips(small.read, small.frames, np.full(3, "oracle"))
    assert found.clip.tolist() == [0, 1, 0]
