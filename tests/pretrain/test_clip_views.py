"""Views of clips: all their frames alike, and those of the times that were drawn."""

from dataclasses import replace

import torch

from pretrain.augment import make_view
from pretrain.clip_views import draw_clips, make_clip_view
from pretrain.config import ViewsConfig

CONFIG = ViewsConfig(size=16, clip_frames=6, jitter_probability=0.8, blur_probability=[0.5], solarize_probability=[0.2])
NO_CHANGE = (torch.zeros(3), torch.ones(3))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
