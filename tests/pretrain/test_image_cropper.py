"""The image cropper against `grid_sample`, the mean of pixels, and what its two ways of sampling teach the shift."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pretrain.models.image_cropper import ImageCropper

ANIMALS = ("21067-10-18", "B")


@given(
    size=st.tuples(st.integers(6, 30), st.integers(6, 30)),
    crop=st.floats(0.3, 0.99),
    sampling=st.sampled_from(("nearest", "bilinear")),
    shifted=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_crops_are_those_of_grid_sample(size, crop, sampling, shifted) -> None:
    height, width = int(size[0] * crop), int(size[1] * crop)
    cropper = ImageCropper((height, width), crop, ANIMALS, 5 if shifted else 0, sampling)
    images, behavior, pupil_center = torch.randn(3, 2, *size), 3 * torch.randn(3, 3), 3 * torch.randn(3, 2)
    rows, columns = torch.linspace(-crop, crop, height), torch.linspace(-crop, crop, width)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1).expand(3, -1, -1, -1)
    if shifted:
        shift = cropper.shifters["B"](torch.cat((behavior, pupil_center), 1)) * (1 - crop)
        grid = grid + shift[:, None, None, :]
    # The outermost positions can lie a rounding error outside, where the published zeros would begin to weigh in.
    expected = F.grid_sample(images, grid, sampling, "border", align_corners=True)
    torch.testing.assert_close(cropper(images, behavior, pupil_center, "B"), expected, rtol=1e-4, atol=1e-5)


def test_the_whole_screen_is_only_resized() -> None:
    images = torch.randn(2, 1, 144, 256)
    cropper = ImageCropper((36, 64))
    blocks = images.unfold(2, 4, 4).unfold(3, 4, 4)
    torch.testing.assert_close(cropper(images), blocks[..., 1:3, 1:3].mean((-2, -1)))
    assert cropper(images[..., :36, :64]).data_ptr() == images.data_ptr()
    assert not cropper.state_dict()


def test_only_bilinear_samples_teach_the_shift() -> None:
    images, pupil_center = torch.randn(2, 1, 24, 40), torch.randn(2, 2)
    cropper = ImageCropper((19, 32), 0.8, ANIMALS, 2)
    cropper(images, None, pupil_center, "B").square().sum().backward()
    taught = {name for name, weight in cropper.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert taught == {name for name in cropper.state_dict() if ".B." in name}
    published = ImageCropper((19, 32), 0.8, ANIMALS, 2, "nearest")
    assert not published(images, None, pupil_center, "B").requires_grad


def test_half_precision_keeps_positions() -> None:
    ramp = torch.linspace(0, 1, 257).expand(1, 1, 4, 257)
    crop = ImageCropper((3, 205), 0.8)
    torch.testing.assert_close(crop(ramp.bfloat16()).float(), crop(ramp), rtol=0, atol=0.004)


def test_the_shift_follows_the_gaze_within_what_the_crop_leaves() -> None:
    cropper = ImageCropper((19, 32), 0.8, ANIMALS, 2)
    shift = cropper.shift(None, 100 * torch.randn(50, 2), "B")
    assert shift.shape == (50, 2)
    assert 0 < shift.abs().max() <= 0.2
    with torch.no_grad():
        for weight in cropper.shifters["B"].parameters():
            weight.zero_()
        cropper.shifters["B"][4].bias.copy_(torch.tensor([100.0, -100.0]))
    ramp = torch.linspace(-1, 1, 41).expand(1, 1, 41, 41)
    shifted = cropper(ramp, None, torch.zeros(1, 2), "B")
    assert shifted.max().item() == pytest.approx(1, abs=0.02)  # x moved to the right end
    assert shifted.min().item() == pytest.approx(-0.6, abs=0.03)
    down = cropper(ramp.transpose(-2, -1), None, torch.zeros(1, 2), "B")
    assert down.min().item() == pytest.approx(-1, abs=0.02)  # y moved to the top


def test_what_is_missing_is_named() -> None:
    cropper = ImageCropper((19, 32), 0.8, ANIMALS, 5)
    images = torch.randn(1, 1, 24, 40)
    with pytest.raises(ValueError, match="no image shift for animal='C'; known are 21067-10-18, B"):
        cropper(images, torch.zeros(1, 3), torch.zeros(1, 2), "C")
    with pytest.raises(ValueError, match="needs pupil_center and behavior, found None"):
        cropper(images, None, torch.zeros(1, 2), "B")
