"""Views: every operation equals torchvision's, and every draw has torchvision's distribution."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pretrain import augment
from pretrain.augment import ViewParameters, draw_crops, draw_parameters, evaluation_view, make_view, resample
from pretrain.config import ViewsConfig

DRAWS = 2000
SMALLEST_P = 0.001
NO_CHANGE = (torch.zeros(3), torch.ones(3))
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def random_images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def parameters(crop: torch.Tensor, **changes: torch.Tensor) -> ViewParameters:
    """Parameters that do nothing to the colours but what `changes` says."""
    count = len(crop)
    nothing = {
        "flip": torch.zeros(count, dtype=torch.bool),
        "gray": torch.zeros(count, dtype=torch.bool),
        "jitter": torch.zeros(count, dtype=torch.bool),
        "order": torch.arange(4).expand(count, -1),
        "factors": torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(count, -1),
    }
    return ViewParameters(crop=crop, **(nothing | changes))


def whole(images: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[0, 0, *images.shape[2:]]]).expand(len(images), -1)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 80), flip=st.booleans())
def test_resample_equals_torchvisions_resized_crop(data, height, width, size, flip):
    crop_height, crop_width = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - crop_height)), data.draw(st.integers(0, width - crop_width))
    image = random_images(1, height, width, seed=height * 100 + width)
    expected = F.resized_crop(image.float() / 255, top, left, crop_height, crop_width, [size, size], antialias=True)
    if flip:
        expected = F.hflip(expected)
    crop = torch.tensor([[top, left, crop_height, crop_width]])
    found = resample(image, crop, size, torch.tensor([flip])) / 255
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_each_image_of_a_batch_has_its_own_crop_and_flip():
    images = random_images(6, 40, 50)
    crop = torch.tensor([[0, 0, 40, 50], [3, 4, 20, 30], [10, 10, 7, 9], [0, 1, 39, 2], [39, 49, 1, 1], [5, 0, 8, 50]])
    flip = torch.tensor([True, False, True, False, True, True])
    together = resample(images, crop, 24, flip)
    for i in range(6):
        torch.testing.assert_close(
            together[i : i + 1], resample(images[i : i + 1], crop[i : i + 1], 24, flip[i : i + 1])
        )


def test_padding_is_never_seen():
    images = random_images(1, 30, 20)
    padded = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    padded[:, :, :30, :20] = images
    for crop in ([0, 0, 30, 20], [10, 5, 20, 15]):
        crop, flip = torch.tensor([crop]), torch.tensor([False])
        torch.testing.assert_close(resample(padded, crop, 16, flip), resample(images, crop, 16, flip))


@settings(deadline=None, max_examples=40)
@given(factor=st.floats(0, 2), seed=st.integers(0, 1000))
def test_brightness_contrast_and_saturation_equal_torchvisions(factor, seed):
    image = random_images(1, 12, 13, seed).float() / 255
    strength = torch.tensor([factor]).reshape(1, 1, 1, 1)
    for ours, theirs in (
        (augment.scale_brightness, F.adjust_brightness),
        (augment.scale_contrast, F.adjust_contrast),
        (augment.scale_saturation, F.adjust_saturation),
    ):
        torch.testing.assert_close(ours(image, strength), theirs(image, factor), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(shift=st.floats(-0.5, 0.5), seed=st.integers(0, 1000), palette=st.sampled_from(["any", "grey", "pure"]))
def test_hue_equals_torchvisions(shift, seed, palette):
    image = random_images(1, 12, 13, seed).float() / 255
    if palette == "grey":
        image = image[:, :1].expand(-1, 3, -1, -1).contiguous()
    if palette == "pure":
        image = image.round()
    found = augment.shift_hue(image, torch.tensor([shift]).reshape(1, 1, 1, 1))
    torch.testing.assert_close(found, F.adjust_hue(image, shift), rtol=0, atol=1e-5)


def test_grey_is_torchvisions():
    image = random_images(4, 12, 13).float() / 255
    torch.testing.assert_close(augment.luma(image), F.rgb_to_grayscale(image), rtol=0, atol=1e-6)


def torchvisions_view(image: torch.Tensor, drawn: ViewParameters, i: int, size: int) -> torch.Tensor:
    """One view made with torchvision's functions, in mouse-vision's order of operations."""
    top, left, height, width = (int(v) for v in drawn.crop[i])
    view = F.resized_crop(image[None].float() / 255, top, left, height, width, [size, size], antialias=True)
    if drawn.gray[i]:
        view = F.rgb_to_grayscale(view, num_output_channels=3)
    operations = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    if drawn.jitter[i]:
        for number in drawn.order[i].tolist():
            view = operations[number](view, float(drawn.factors[i, number]))
    if drawn.flip[i]:
        view = F.hflip(view)
    return F.normalize(view, MEAN.tolist(), STD.tolist())[0]


def test_the_whole_chain_equals_torchvisions():
    images = random_images(64, 50, 60)
    sizes = torch.randint(20, 51, (64, 2), generator=torch.Generator().manual_seed(1))
    config = ViewsConfig(jitter_probability=0.8, grayscale_probability=0.3)
    drawn = draw_parameters(sizes, config, torch.Generator().manual_seed(2))
    found = make_view(images, drawn, 32, MEAN, STD)
    assert drawn.gray.any()
    assert not drawn.jitter.all()
    for i in range(len(images)):
        torch.testing.assert_close(found[i], torchvisions_view(images[i], drawn, i, 32), rtol=0, atol=5e-5)


@pytest.mark.parametrize("order", list(permutations(range(4)))[::5])
def test_the_order_of_jitter_is_kept(order):
    images = random_images(2, 20, 20)
    drawn = parameters(
        whole(images),
        jitter=torch.tensor([True, False]),
        order=torch.tensor([order, (0, 1, 2, 3)]),
        factors=torch.tensor([[1.3, 0.7, 1.4, 0.2]]).expand(2, -1),
    )
    found = make_view(images, drawn, 20, MEAN, STD)
    for i in range(2):
        torch.testing.assert_close(found[i], torchvisions_view(images[i], drawn, i, 20), rtol=0, atol=5e-5)


def same_distribution(ours: torch.Tensor, theirs: list[float]) -> None:
    p = ks_2samp(ours.double().numpy(), np.array(theirs)).pvalue
    assert p > SMALLEST_P, f"two-sample KS test: p = {p:.2g}"


# The last two are so long that no crop fits in ten tries, now and then or always.
@pytest.mark.parametrize("size", [(256, 256), (96, 70), (60, 200), (300, 40), (10, 400)])
def test_crops_have_torchvisions_distribution(size):
    height, width = size
    ours = draw_crops(torch.tensor([size]).expand(DRAWS, -1), 0.2, 1.0, torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    crop = v2.RandomResizedCrop(64, scale=(0.2, 1.0), antialias=True)
    image = torch.zeros(3, height, width)
    theirs = [crop.make_params([image]) for _ in range(DRAWS)]
    for column, key in enumerate(("top", "left", "height", "width")):
        same_distribution(ours[:, column], [drawn[key] for drawn in theirs])
    same_distribution(ours[:, 2] * ours[:, 3], [drawn["height"] * drawn["width"] for drawn in theirs])
    same_distribution(ours[:, 3] / ours[:, 2], [drawn["width"] / drawn["height"] for drawn in theirs])


@settings(deadline=None, max_examples=100)
@given(height=st.integers(1, 400), width=st.integers(1, 400), low=st.floats(0.001, 1), seed=st.integers(0, 1000))
def test_crops_lie_within_their_images(height, width, low, seed):
    crops = draw_crops(torch.tensor([[height, width]]).expand(20, -1), low, 1.0, torch.Generator().manual_seed(seed))
    top, left, tall, wide = crops.unbind(1)
    assert (crops == crops.round()).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (tall >= 1).all()
    assert (wide >= 1).all()
    assert (top + tall <= height).all()
    assert (left + wide <= width).all()


def test_jitter_has_torchvisions_distribution():
    config = ViewsConfig(brightness=0.4, contrast=0.3, saturation=1.0, hue=0.4)
    drawn = draw_parameters(torch.full((DRAWS, 2), 64), config, torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    jitter = v2.ColorJitter(brightness=0.4, contrast=0.3, saturation=1.0, hue=0.4)
    theirs = [jitter.make_params([]) for _ in range(DRAWS)]
    for column, key in enumerate(("brightness", "contrast", "saturation", "hue")):
        same_distribution(drawn.factors[:, column], [one[f"{key}_factor"] for one in theirs])
    counts = torch.unique(drawn.order, dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - DRAWS / 24).abs() < 4 * (DRAWS / 24) ** 0.5).all()


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_flips_greys_and_jitter_have_their_probabilities(probability):
    config = ViewsConfig(
        flip_probability=probability, grayscale_probability=probability, jitter_probability=probability
    )
    drawn = draw_parameters(torch.full((DRAWS, 2), 64), config, torch.Generator().manual_seed(0))
    spread = 4 * (probability * (1 - probability) / DRAWS) ** 0.5
    shares = [getattr(drawn, name).double() for name in ("flip", "gray", "jitter")]
    for share in shares:
        assert abs(float(share.mean()) - probability) <= spread
    if 0 < probability < 1:
        correlations = torch.corrcoef(torch.stack(shares))
        assert (correlations - torch.eye(3)).abs().max() < 4 / DRAWS**0.5


def test_draws_follow_the_generator_alone():
    sizes = torch.full((10, 2), 64)
    first, again, other = (
        draw_parameters(sizes, ViewsConfig(), torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    for name in first.__dataclass_fields__:
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.crop, other.crop)


@settings(deadline=None, max_examples=30)
@given(height=st.integers(100, 300), width=st.integers(100, 300))
def test_the_evaluation_view_is_resize_centre_crop_resize(height, width):
    # A soft picture: two resizings and one differ only in how they smooth.
    coarse = np.random.default_rng(height).integers(0, 256, (5, 5, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    resized = F.resize(image.float() / 255, [256], antialias=True)
    expected = F.resize(F.center_crop(resized, [224, 224]), [64, 64], antialias=True)
    padded = torch.zeros(1, 3, 320, 310, dtype=torch.uint8)
    padded[:, :, :height, :width] = image
    found = evaluation_view(padded, torch.tensor([[height, width]]), 64, *NO_CHANGE)
    assert (found - expected).abs().mean() < 0.015
    assert (found - expected).abs().max() < 0.1


def test_the_evaluation_view_is_normalised():
    images = random_images(2, 32, 32)
    sizes = torch.full((2, 2), 32)
    plain = evaluation_view(images, sizes, 32, *NO_CHANGE, centre=1.0)
    torch.testing.assert_close(plain, images / 255)
    normalised = evaluation_view(images, sizes, 32, MEAN, STD, centre=1.0)
    torch.testing.assert_close(normalised, F.normalize(plain, MEAN.tolist(), STD.tolist()))
