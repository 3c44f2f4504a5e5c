"""Times of views: spans of the right length, speed and place, and the same whoever asks."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.clip_times import draw_times, probe_times, training_times, view_generator
from pretrain.clip_views import draw_clips
from pretrain.config import ViewsConfig

CONFIG = ViewsConfig(size=16, clip_frames=6, clip_stride=2, speed_min=0.5, speed_max=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    shown=st.integers(1, 20),
    stride=st.floats(0.25, 8),
    fastest=st.floats(1, 4),
    seed=st.integers(0, 99),
)
def test_times_rise_evenly_within_the_clip(lengths, shown, stride, fastest, seed):
    config = ViewsConfig(clip_frames=shown, clip_stride=stride, speed_min=0.5, speed_max=fastest)
    frames = torch.tensor(lengths)
    times = draw_times(frames, config, torch.rand(len(lengths), 2, generator=seeded(seed), dtype=torch.double))
    assert times.shape == (len(lengths), shown)
    assert (times >= 0).all()
    assert (times < frames[:, None]).all()
    steps = times.diff(dim=1)
    assert (steps >= 0).all()
    assert ((steps.amax(1) - steps.amin(1)) <= 1).all() if shown > 1 else True


def test_every_start_is_equally_likely_and_a_whole_stride_is_kept():
    config = ViewsConfig(clip_frames=5, clip_stride=3)
    frames = torch.full((7000,), 19)
    times = draw_times(frames, config, torch.rand(7000, 2, generator=seeded(), dtype=torch.double))
    assert (times.diff(dim=1) == 3).all()
    counts = times[:, 0].bincount()
    assert len(counts) == 7
    assert ((counts - 1000) ** 2 / 1000).sum() < 22.5  # 99.9 % of chi-square with 6 degrees of freedom


def test_speed_has_its_range():
    config = ViewsConfig(clip_frames=11, clip_stride=2, speed_min=0.5, speed_max=2)
    frames = torch.full((2000,), 500)
    times = draw_times(frames, config, torch.rand(2000, 2, generator=seeded(), dtype=torch.double))
    spans = (times[:, -1] - times[:, 0]).double() / 20
    assert spans.min() == pytest.approx(0.5, abs=0.06)
    assert spans.max() == pytest.approx(2, abs=0.06)
    assert spans.mean() == pytest.approx(1.25, abs=0.03)


def test_a_clip_that_is_too_short_is_shown_whole():
    times = draw_times(
        torch.tensor([4, 1]), ViewsConfig(clip_frames=7, clip_stride=5), torch.full((2, 2), 0.7).double()
    )
    assert (times[0, 0], times[0, -1]) == (0, 3)
    assert (times[1] == 0).all()


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 3)])
def test_a_reader_knows_the_times_that_views_are_made_of(rank, world):
    lengths = [30, 41, 12, 55]
    frames, sizes = torch.tensor(lengths), torch.full((4, 2), 30)
    shown = training_times(CONFIG, seed=7, step=11, views=2, rank=rank, world=world)
    for position in range(3):
        found = [one(length) for one, length in zip(shown.of_batch(position, 4), lengths, strict=True)]
        for view in range(2):
            generator = view_generator(7, "views", 11 + position, view)
            drawn = draw_clips(frames, sizes, CONFIG, generator, view, rank, world)
            assert torch.equal(torch.stack(found)[:, view], drawn.times)


def test_given_times_leave_all_else_as_it_is():
    frames, sizes, times = torch.tensor([30, 40]), torch.full((2, 2), 30), torch.zeros(2, 6, dtype=torch.long)
    config = replace(CONFIG, jitter_probability=0.5, blur_probability=[0.5])
    drawn = draw_clips(frames, sizes, config, seeded(3))
    given = draw_clips(frames, sizes, config, seeded(3), times=times)
    assert given.times is times
    assert not torch.equal(drawn.times, times)
    assert torch.equal(given.frame.crop, drawn.frame.crop)
    assert torch.equal(given.frame.jitter, drawn.frame.jitter)


def test_probes_look_at_the_middle_and_at_two_random_spans():
    (times,) = (one(101) for one in probe_times(CONFIG, seed=1).of_batch(0, 1))
    assert times.shape == (3, 6)
    assert times[0].double().mean() == pytest.approx(50, abs=0.5)
    assert times[0].diff().double().mean() == pytest.approx(2 * 1.25, abs=0.2)
    assert not torch.equal(times[1], times[2])
