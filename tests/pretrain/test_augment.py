"""Views: every operation equals torchvision's, and every draw has torchvision's distribution."""

from dataclasses import fields
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from scipy.ndimage import correlate1d
from scipy.stats import ks_2samp, norm
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pretrain import augment
from pretrain.augment import (
    Uniform,
    ViewParameters,
    blur,
    blur_weights,
    draw_crops,
    draw_fixed_crops,
    draw_parameters,
    draw_patches,
    evaluation_view,
    make_patches,
    make_view,
    resample,
    resample_nearest,
    solarize,
)
from pretrain.config import ViewsConfig

DRAWS = 2000
SMALLEST_P = 0.001
NO_CHANGE = (torch.zeros(3), torch.ones(3))
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def random_images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def blotches(count: int, side: int) -> list[Image.Image]:
    """Pictures of random blotches, each about five pixels wide."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, side // 5, side // 5, 3), np.uint8)
    return [Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC) for one in coarse]


def to_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def uniform(rows: int, seed: int = 0) -> Uniform:
    return Uniform(torch.Generator().manual_seed(seed), rows)


def parameters(crop: torch.Tensor, **changes: torch.Tensor) -> ViewParameters:
    """Parameters that do nothing to the colours but what `changes` says."""
    count = len(crop)
    nothing = {
        "flip": torch.zeros(count, dtype=torch.bool),
        "gray": torch.zeros(count, dtype=torch.bool),
        "jitter": torch.zeros(count, dtype=torch.bool),
        "order": torch.arange(4).expand(count, -1),
        "factors": torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(count, -1),
        "blur": torch.zeros(count),
        "solarize": torch.zeros(count, dtype=torch.bool),
    }
    return ViewParameters(crop=crop, **(nothing | changes))


def whole(images: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[0, 0, *images.shape[2:]]]).expand(len(images), -1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@settings(deadline=None, max_examples=100)
@given(data=st.data(), height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 80), flip=st.booleans())
def test_resample_equals_torchvisions_resized_crop(interpolation, data, height, width, size, flip):
    crop_height, crop_width = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - crop_height)), data.draw(st.integers(0, width - crop_width))
    image = random_images(1, height, width, seed=height * 100 + width)
    expected = F.resized_crop(
        image.float() / 255, top, left, crop_height, crop_width, [size, size], v2.InterpolationMode(interpolation), True
    )
    if flip:
        expected = F.hflip(expected)
    crop = torch.tensor([[top, left, crop_height, crop_width]])
    found = resample(image, crop, size, torch.tensor([flip]), interpolation) / 255
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_bicubic_views_stay_within_black_and_white():
    images = (random_images(4, 20, 20) > 127).byte() * 255
    drawn = parameters(whole(images), interpolation="bicubic")
    unclamped = resample(images, drawn.crop, 50, drawn.flip, "bicubic") / 255
    assert unclamped.min() < -0.05
    torch.testing.assert_close(make_view(images, drawn, 50, *NO_CHANGE), unclamped.clamp(0, 1))


@pytest.mark.parametrize("corner", [(-4, -4), (-4, 4), (0, 0), (3, -1), (4, 4)])
def test_a_crop_that_reaches_outside_is_torchvisions_crop_of_the_image_with_a_black_border(corner):
    image = random_images(1, 32, 32)
    top, left = corner
    expected = F.crop(F.pad(image, [4], fill=0), top + 4, left + 4, 32, 32)
    crop, flip = torch.tensor([[top, left, 32, 32]]), torch.tensor([False])
    assert torch.equal(resample(image, crop, 32, flip), expected.float())
    for size, interpolation in ((64, "bilinear"), (20, "bilinear"), (64, "bicubic")):
        resized = F.resize(expected.float(), [size, size], v2.InterpolationMode(interpolation), antialias=True)
        torch.testing.assert_close(resample(image, crop, size, flip, interpolation), resized, rtol=0, atol=2e-3)


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
    """One view without blur made with torchvision's functions, in the order of operations of mouse-vision's chains."""
    top, left, height, width = (int(v) for v in drawn.crop[i])
    view = F.resized_crop(image[None].float() / 255, top, left, height, width, [size, size], antialias=True)
    if drawn.gray[i] and drawn.grayscale_first:
        view = F.rgb_to_grayscale(view, num_output_channels=3)
    operations = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    if drawn.jitter[i]:
        for number in drawn.order[i].tolist():
            view = operations[number](view, float(drawn.factors[i, number]))
    if drawn.gray[i] and not drawn.grayscale_first:
        view = F.rgb_to_grayscale(view, num_output_channels=3)
    if drawn.solarize[i]:
        view = F.solarize(view, 0.5)
    if drawn.flip[i]:
        view = F.hflip(view)
    return F.normalize(view, MEAN.tolist(), STD.tolist())[0]


@pytest.mark.parametrize("grayscale_first", [True, False])
def test_the_whole_chain_equals_torchvisions(grayscale_first):
    images = random_images(64, 50, 60)
    sizes = torch.randint(20, 51, (64, 2), generator=torch.Generator().manual_seed(1))
    config = ViewsConfig(
        jitter_probability=0.8,
        grayscale_probability=0.3,
        grayscale_first=grayscale_first,
        solarize_probability=[0.0, 0.3],
    )
    drawn = draw_parameters(sizes, config, torch.Generator().manual_seed(2), view=1)
    found = make_view(images, drawn, 32, MEAN, STD)
    assert drawn.gray.any()
    assert drawn.solarize.any()
    assert not drawn.jitter.all()
    for i in range(len(images)):
        expected = torchvisions_view(images[i], drawn, i, 32)
        # Rounding decides on which side of the threshold of solarising a value lies.
        near_threshold = drawn.solarize[i] & ((expected * STD[:, None, None] + MEAN[:, None, None] - 0.5).abs() < 1e-4)
        assert near_threshold.float().mean() < 0.01
        torch.testing.assert_close(found[i][~near_threshold], expected[~near_threshold], rtol=0, atol=5e-5)


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
    ours = draw_crops(torch.tensor([size]).expand(DRAWS, -1), 0.2, 1.0, uniform(DRAWS))
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
    crops = draw_crops(torch.tensor([[height, width]]).expand(20, -1), low, 1.0, uniform(20, seed))
    top, left, tall, wide = crops.unbind(1)
    assert (crops == crops.round()).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (tall >= 1).all()
    assert (wide >= 1).all()
    assert (top + tall <= height).all()
    assert (left + wide <= width).all()


def test_crops_of_fixed_size_have_the_distribution_of_torchvisions_random_crop():
    ours = draw_fixed_crops(torch.tensor([[32, 40]]).expand(DRAWS, -1), 1.0, 0.125, uniform(DRAWS))
    torch.manual_seed(1)
    crop, image = v2.RandomCrop(32, padding=4), torch.zeros(3, 32, 40)
    theirs = [crop.make_params([image]) for _ in range(DRAWS)]
    assert (ours[:, 2:] == 32).all()
    for column, key, places in ((0, "top", 9), (1, "left", 17)):
        # Torchvision counts from the corner of the border.
        same_distribution(ours[:, column] + 4, [drawn[key] for drawn in theirs])
        assert torch.equal(ours[:, column].unique(), torch.arange(places).double() - 4)


def test_crops_of_fixed_size_are_shares_of_each_images_short_side():
    sizes = torch.tensor([[256, 300], [480, 640], [11, 10]])
    crops = draw_fixed_crops(sizes, 224 / 256, 0.0, uniform(3))
    assert crops[:, 2].tolist() == [224, 420, 9]
    assert torch.equal(crops[:, 2], crops[:, 3])
    assert (crops[:, :2] >= 0).all()
    assert (crops[:, :2] + crops[:, 2:] <= sizes).all()


def test_local_views_are_small_crops_of_random_area():
    sizes = torch.full((DRAWS, 2), 100)
    config = ViewsConfig(crop_side=1.0, local_crop_area_min=0.05, local_crop_area_max=0.14)
    drawn = draw_parameters(sizes, config, torch.Generator().manual_seed(0), local=True)
    area = drawn.crop[:, 2] * drawn.crop[:, 3] / 100**2
    assert 0.045 < area.min() < 0.055
    assert 0.135 < area.max() < 0.145


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


def test_blurs_are_uniform_in_pixels_of_a_224_pixel_view():
    config = ViewsConfig(size=56, blur_probability=[1.0], blur_sigma_min=0.1, blur_sigma_max=2.0)
    drawn = draw_parameters(torch.full((DRAWS, 2), 64), config, torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    blur = v2.GaussianBlur(3, sigma=(0.1, 2.0))
    same_distribution(drawn.blur * 224 / 56, [blur.make_params([])["sigma"][0] for _ in range(DRAWS)])


def test_blur_and_solarising_have_the_probability_of_their_view():
    config = ViewsConfig(blur_probability=[1.0, 0.1, 0.5], solarize_probability=[0.0, 0.2])
    for view, (blurred, solarized) in enumerate([(1.0, 0.0), (0.1, 0.2), (0.5, 0.2), (0.5, 0.2)]):
        drawn = draw_parameters(torch.full((DRAWS, 2), 64), config, torch.Generator().manual_seed(view), view)
        for share, probability in ((drawn.blur > 0, blurred), (drawn.solarize, solarized)):
            spread = 4 * (probability * (1 - probability) / DRAWS) ** 0.5
            assert abs(float(share.double().mean()) - probability) <= spread


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_flips_greys_jitter_blur_and_solarising_have_their_probabilities(probability):
    config = ViewsConfig(
        flip_probability=probability,
        grayscale_probability=probability,
        jitter_probability=probability,
        blur_probability=[probability],
        solarize_probability=[probability],
    )
    drawn = draw_parameters(torch.full((DRAWS, 2), 64), config, torch.Generator().manual_seed(0))
    spread = 4 * (probability * (1 - probability) / DRAWS) ** 0.5
    shares = [(getattr(drawn, name) > 0).double() for name in ("flip", "gray", "jitter", "blur", "solarize")]
    for share in shares:
        assert abs(float(share.mean()) - probability) <= spread
    if 0 < probability < 1:
        correlations = torch.corrcoef(torch.stack(shares))
        assert (correlations - torch.eye(5)).abs().max() < 4 / DRAWS**0.5


def test_draws_follow_the_generator_alone():
    sizes = torch.full((10, 2), 64)
    first, again, other = (
        draw_parameters(sizes, ViewsConfig(), torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    for name in tensors_of(first):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.crop, other.crop)


def tensors_of(drawn: object) -> list[str]:
    return [field.name for field in fields(drawn) if isinstance(getattr(drawn, field.name), torch.Tensor)]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("draw", ["area", "fixed", "local", "patches"])
def test_processes_draw_what_one_process_would(world, draw):
    sizes = torch.randint(70, 100, (12, 2), generator=torch.Generator().manual_seed(0))
    config = ViewsConfig(
        size=20,
        blur_probability=[0.5],
        solarize_probability=[0.5],
        crop_side=0.5 if draw == "fixed" else 0.0,
        patch_image=80,
        patch_field=75,
    )

    def drawn(rank, world):
        generator = torch.Generator().manual_seed(7)
        if draw == "patches":
            return draw_patches(sizes[rank::world], config, generator, rank, world)
        return draw_parameters(sizes[rank::world], config, generator, local=draw == "local", rank=rank, world=world)

    alone = drawn(0, 1)
    for rank in range(world):
        part = drawn(rank, world)
        for name in tensors_of(alone):
            rows = (slice(None),) * (draw == "patches" and name == "crop") + (slice(rank, None, world),)
            assert torch.equal(getattr(part, name), getattr(alone, name)[rows])


@settings(deadline=None, max_examples=40)
@given(sigma=st.floats(0.01, 3), side=st.integers(2, 40))
def test_blur_weighs_each_pixel_with_the_gaussians_mass_over_it(sigma, side):
    reach = int(6 * sigma) + 1
    boundaries = np.arange(-reach, reach + 2) - 0.5
    kernel = np.diff(norm.cdf(boundaries, scale=sigma))
    expected = correlate1d(np.eye(side), kernel, axis=0, mode="nearest")
    found = blur_weights(torch.tensor([sigma, 1.0]), side)
    torch.testing.assert_close(found[0], torch.from_numpy(expected).float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sum(2), torch.ones(2, side))


def test_blur_touches_the_chosen_images_alone_and_both_of_their_axes():
    view = torch.zeros(2, 3, 9, 9)
    view[:, :, 4, 4] = 1
    blurred = view.clone()
    blur(blurred, torch.tensor([0.0, 1.0]))
    assert torch.equal(blurred[0], view[0])
    torch.testing.assert_close(blurred[1], blurred[1].mT)
    assert 0 < blurred[1, 0, 0, 4] < blurred[1, 0, 3, 4] < blurred[1, 0, 4, 4] < 0.2
    torch.testing.assert_close(blurred.sum((2, 3)), torch.ones(2, 3), rtol=0, atol=1e-3)


def distances_to_published_blur(pictures: list[Image.Image], sigma: float, size: int) -> tuple[float, float]:
    """Mean distances of `size`-pixel views to Pillow's blur of the 224-pixel pictures and resize, in 255 grey levels.

    The first is that of our blurred views, the second that of views without blur.
    """

    def shrunk(pictures):
        return torch.stack([to_tensor(p.resize((size, size), Image.Resampling.BILINEAR)) for p in pictures]).float()

    published = shrunk([picture.filter(ImageFilter.GaussianBlur(sigma)) for picture in pictures])
    plain = shrunk(pictures)
    ours = plain.clone()
    blur(ours, torch.full((len(pictures),), sigma * size / 224))
    return float((ours - published).abs().mean()), float((plain - published).abs().mean())


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("size", [64, 224])
def test_blur_of_the_small_view_is_near_pillows_blur_of_the_224_pixel_view(sigma, size):
    ours, without = distances_to_published_blur(blotches(4, 224), sigma, size)
    assert ours < 2
    if sigma > 1:
        assert ours < without / 4


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.5, 2.0])
def test_blur_of_photographs_is_near_pillows_blur_of_the_224_pixel_view(shared: Path, sigma):
    files = sorted((shared / "data" / "imagenet_sample").glob("*.JPEG"))[::20]
    pictures = [ImageOps.fit(Image.open(file).convert("RGB"), (224, 224)) for file in files]
    ours, without = distances_to_published_blur(pictures, sigma, 64)
    assert ours < 0.8
    if sigma > 1:
        assert ours < without / 3


def test_solarising_is_pillows_at_128():
    picture = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(3).reshape(16, 16, 3))
    views = torch.stack([to_tensor(picture)] * 2) / 255
    solarize(views, torch.tensor([True, False]))
    torch.testing.assert_close(views[0], to_tensor(ImageOps.solarize(picture, 128)) / 255)
    assert torch.equal(views[1], to_tensor(picture) / 255)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), height=st.integers(1, 60), width=st.integers(1, 60), size=st.integers(1, 50))
def test_depth_is_cropped_like_the_image_and_resized_to_the_nearest_pixel(data, height, width, size):
    crop_height, crop_width = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - crop_height)), data.draw(st.integers(0, width - crop_width))
    depth = torch.arange(height * width).reshape(1, 1, height, width)
    cut = depth[:, :, top : top + crop_height, left : left + crop_width]
    expected = torch.nn.functional.interpolate(cut.float(), (size, size), mode="nearest-exact")[:, 0]
    crop, flip = torch.tensor([[top, left, crop_height, crop_width]]).double(), torch.tensor([False])
    found = resample_nearest(depth, crop, size, flip)
    assert torch.equal(resample_nearest(depth, crop, size, ~flip), found.flip(2))
    # Exactly between two pixels torch's rounding decides; ours is exact, which the next test has an example of.
    rows, columns = ((2 * torch.arange(size) + 1) * length % (2 * size) != 0 for length in (crop_height, crop_width))
    assert torch.equal(found[:, rows][:, :, columns], expected[:, rows][:, :, columns])


def test_depth_exactly_between_two_pixels_is_that_of_the_latter():
    depth = torch.arange(20).reshape(1, 1, 2, 10)
    found = resample_nearest(depth, torch.tensor([[0, 0, 2, 10]]), 1, torch.tensor([False]))
    assert found.tolist() == [[[15]]]


def test_depth_of_each_image_has_its_own_crop_and_is_0_outside():
    depth = torch.arange(32.0).reshape(2, 1, 4, 4) + 1
    crop = torch.tensor([[0, 0, 2, 2], [-1, 3, 2, 2]])
    found = resample_nearest(depth, crop, 2, torch.tensor([False, True]))
    assert found.tolist() == [[[1, 2], [5, 6]], [[0, 0], [0, 20]]]


PATCHES = ViewsConfig(size=20, patch_image=90, patch_field=81, grayscale_probability=0.5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(90, 90), (131, 157), (61, 40), (90, 400)])
def test_patches_are_torchvisions_resize_of_the_whole_image_and_crops_of_it(interpolation, size):
    height, width = size
    images = torch.zeros(5, 3, 160, 410, dtype=torch.uint8)
    images[:, :, :height, :width] = random_images(5, height, width)
    config = ViewsConfig(**(vars(PATCHES) | {"interpolation": interpolation}))
    drawn = draw_patches(torch.tensor([size]).expand(5, -1), config, torch.Generator().manual_seed(0))
    assert 0 < drawn.gray.sum() < 5
    found = make_patches(images, drawn, 20, MEAN, STD)
    assert found.shape == (9, 5, 3, 20, 20)
    mode = v2.InterpolationMode(interpolation)
    resized = F.resize(images[:, :, :height, :width].float() / 255, [90], mode, antialias=True).clamp(0, 1)
    scale = torch.tensor(size) / torch.tensor(resized.shape[2:])
    for i in range(5):
        image = F.rgb_to_grayscale(resized[i], num_output_channels=3) if drawn.gray[i] else resized[i]
        for patch in range(9):
            corner = drawn.crop[patch, i, :2] / scale
            top, left = (int(v) for v in corner.round())
            assert (corner - corner.round()).abs().max() < 1e-4
            expected = F.normalize(F.crop(image, top, left, 20, 20), MEAN.tolist(), STD.tolist())
            torch.testing.assert_close(found[patch, i], expected, rtol=0, atol=2e-4)


def test_patches_lie_at_random_places_in_the_cells_of_a_random_square():
    sizes = torch.tensor([[292, 380]]).expand(DRAWS, -1)
    drawn = draw_patches(sizes, ViewsConfig(grayscale_probability=0.66), torch.Generator().manual_seed(0))
    assert abs(float(drawn.gray.double().mean()) - 0.66) < 4 * (0.66 * 0.34 / DRAWS) ** 0.5
    assert (drawn.crop[:, :, 2:] == 64).all()
    rng = np.random.default_rng(1)
    field = rng.integers(0, [38, 126], (DRAWS, 2))
    for patch in range(9):
        theirs = field + 85 * np.array(divmod(patch, 3)) + rng.integers(0, 22, (DRAWS, 2))
        for axis in (0, 1):
            same_distribution(drawn.crop[patch, :, axis], theirs[:, axis].tolist())
    # Neighbours in a row share the square's place, not their own place in the cell.
    step = drawn.crop[1, :, 1] - drawn.crop[0, :, 1]
    assert step.min() == 85 - 21
    assert step.max() == 85 + 21


def test_patches_that_do_not_fit_are_refused():
    sizes, generator = torch.tensor([[300, 300]]), torch.Generator()
    with pytest.raises(ValueError, match=r"views.size=96 is larger than a cell .* / 3 = 85 pixels"):
        draw_patches(sizes, ViewsConfig(size=96), generator)
    with pytest.raises(ValueError, match=r"views.patch_field=255 is larger than views.patch_image=250"):
        draw_patches(sizes, ViewsConfig(patch_image=250), generator)


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
