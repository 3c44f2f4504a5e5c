"""Views of clips: all their frames alike, and spans of time of the right length, speed and place."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.augment import make_view
from pretrain.clip_views import draw_clips, draw_times, make_clip_view
from pretrain.config import ViewsConfig

CONFIG = ViewsConfig(size=16, clip_frames=6, jitter_probability=0.8, blur_probability=[0.5], solarize_probability=[0.2])
NO_CHANGE = (torch.zeros(3), torch.ones(3))


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


def test_all_frames_of_a_clip_have_the_same_view():
    """A clip of one frame again and again stays one, and equals the view of that image."""
    images = torch.randint(256, (9, 3, 20, 24), generator=seeded(), dtype=torch.uint8)
    video = images[:, :, None].expand(-1, -1, 12, -1, -1).contiguous()
    sizes, frames = torch.tensor([[20, 24]]).expand(9, -1), torch.full((9,), 12)
    drawn = draw_clips(frames, sizes, CONFIG, seeded(1))
    found = make_clip_view(video, drawn, 16, *NO_CHANGE)
    assert found.shape == (9, 3, 6, 16, 16)
    assert drawn.frame.jitter.any()
    for frame in range(6):
        torch.testing.assert_close(
            found[:, :, frame], make_view(images, drawn.frame, 16, *NO_CHANGE), rtol=0, atol=1e-6
        )


def test_frames_are_those_of_the_drawn_times():
    video = torch.arange(10, dtype=torch.uint8).reshape(1, 1, 10, 1, 1).expand(2, 3, -1, 16, 16).contiguous() * 20
    config = replace(
        CONFIG, jitter_probability=0, grayscale_probability=0, blur_probability=[0.0], solarize_probability=[0.0]
    )
    drawn = draw_clips(torch.tensor([10, 10]), torch.full((2, 2), 16), config, seeded())
    found = make_clip_view(video, drawn, 16, *NO_CHANGE)
    assert torch.equal((found[:, 0, :, 3, 3] * 255 / 20).round().long(), drawn.times)


def test_processes_draw_what_one_process_would():
    frames, sizes = torch.arange(20, 32), torch.full((12, 2), 30)
    config = replace(CONFIG, speed_max=3.0)
    alone = draw_clips(frames, sizes, config, seeded(5))
    for rank in range(3):
        part = draw_clips(frames[rank::3], sizes[rank::3], config, seeded(5), rank=rank, world=3)
        assert torch.equal(part.times, alone.times[rank::3])
        assert torch.equal(part.frame.crop, alone.frame.crop[rank::3])
