"""Views: the whole chain equals torchvision's, and every draw has torchvision's distribution."""

from dataclasses import fields, replace
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

from pretrain import colour
from pretrain.augment import (
    Uniform,
    ViewParameters,
    draw_crops,
    draw_fixed_crops,
    draw_parameters,
    evaluation_view,
    make_view,
    make_views,
    views_together,
)
from pretrain.colour_together import paint
from pretrain.config import ViewsConfig

DRAWS = 2000
SMALLEST_P = 0.001
NO_CHANGE = (torch.zeros(3), torch.ones(3))
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def random_images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


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


def test_bicubic_views_stay_within_black_and_white():
    images = (random_images(4, 20, 20) > 127).byte() * 255
    drawn = parameters(whole(images), interpolation="bicubic")
    assert F.resize(images.float(), [50, 50], v2.InterpolationMode.BICUBIC, antialias=True).min() < -10
    expected = F.resize(images, [50, 50], v2.InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(make_view(images, drawn, 50, *NO_CHANGE), expected / 255)


def torchvisions_view(image: torch.Tensor, drawn: ViewParameters, i: int, size: int) -> torch.Tensor:
    """One view without blur made with torchvision's functions, in the order of operations of mouse-vision's chains."""
    top, left, height, width = (int(v) for v in drawn.crop[i])
    view = F.resized_crop(image[None], top, left, height, width, [size, size], antialias=True) / 255
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


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_views_of_other_devices_are_those_of_a_cpu_to_a_grey_level(monkeypatch, views, interpolation):
    monkeypatch.setattr("pretrain.colour_together.compiled", lambda device: paint)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (12, 3, 6, 7), generator=generator).float()
    images = torch.nn.functional.interpolate(coarse, (60, 70), mode="bicubic").clamp(0, 255).byte()
    config = ViewsConfig(interpolation=interpolation, blur_probability=[0.5], brightness=0.2, contrast=0.2, hue=0.0)
    drawn = [draw_parameters(torch.tensor([[60, 70]]).expand(12, -1), config, generator, view) for view in range(views)]
    expected = make_views(images, drawn, 32, *NO_CHANGE)
    for laid_out in (images, images.contiguous(memory_format=torch.channels_last)):
        found = views_together(laid_out, drawn, 32, *NO_CHANGE).unflatten(0, (views, 12))
        difference = (found - expected).abs() * 255
        assert difference.mean() < 0.5
        assert (difference > 3).float().mean() < 0.005


def test_blur_touches_the_chosen_images_alone():
    images = random_images(60, 20, 20)
    generator = torch.Generator().manual_seed(0)
    drawn = draw_parameters(torch.full((60, 2), 20), ViewsConfig(blur_probability=[0.5], size=224), generator)
    assert 10 < (drawn.blur > 0).sum() < 50
    found = make_view(images, drawn, 20, *NO_CHANGE)
    plain = make_view(images, replace(drawn, blur=torch.zeros(60)), 20, *NO_CHANGE)
    for i in range(60):
        expected = plain[i : i + 1]
        if drawn.blur[i] > 0:
            expected = colour.blurred(expected, colour.blur_weights(drawn.blur[i : i + 1], 20))
        torch.testing.assert_close(found[i : i + 1], expected, rtol=0, atol=1e-5)


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
@pytest.mark.parametrize("draw", ["area", "fixed", "local"])
def test_processes_draw_what_one_process_would(world, draw):
    sizes = torch.randint(70, 100, (12, 2), generator=torch.Generator().manual_seed(0))
    config = ViewsConfig(
        blur_probability=[0.5],
        solarize_probability=[0.5],
        crop_side=0.5 if draw == "fixed" else 0.0,
    )

    def drawn(rank, world):
        generator = torch.Generator().manual_seed(7)
        return draw_parameters(sizes[rank::world], config, generator, local=draw == "local", rank=rank, world=world)

    alone = drawn(0, 1)
    for rank in range(world):
        part = drawn(rank, world)
        for name in tensors_of(alone):
            assert torch.equal(getattr(part, name), getattr(alone, name)[rank::world])


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
