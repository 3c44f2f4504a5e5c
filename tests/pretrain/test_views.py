"""Views of a batch: what an objective wants, and nothing else; the same whatever the number of processes."""

from dataclasses import replace

import pytest
import torch

from pretrain.augment import draw_parameters, evaluation_view, make_view
from pretrain.checkpoint import BackboneSpec
from pretrain.clip_views import draw_clips, make_clip_view
from pretrain.config import ViewsConfig
from pretrain.objectives.objective import Wants
from pretrain.patches import draw_patches, make_patches
from pretrain.randomness import derived_seed
from pretrain.resample import resample_nearest
from pretrain.step_timer import StepTimer
from pretrain.views import ViewMaker, require_possible

CPU = torch.device("cpu")
SEED, SIZE, LOCAL_SIZE, IMAGES = 3, 20, 12, 6
CONFIG = ViewsConfig(
    size=SIZE,
    local_size=LOCAL_SIZE,
    blur_probability=[1.0, 0.0, 0.5],
    solarize_probability=[0.0, 0.5],
    patch_image=70,
    patch_field=66,
)
SPEC = BackboneSpec("any", {}, SIZE, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
MEAN, STD = torch.tensor(SPEC.mean), torch.tensor(SPEC.std)
ALL = Wants(views=2, local_views=3, patches=True, depth=True, label=True)


def batch_of(count: int = IMAGES, seed: int = 0) -> dict[str, torch.Tensor]:
    """Images of 40 to 48 pixels, padded, with a depth map that names each pixel."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(40, 49, (count, 2), generator=generator)
    images = torch.randint(256, (count, 3, 48, 48), generator=generator, dtype=torch.uint8)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, height:], image[:, :, width:] = 0, 0
    depth = torch.arange(count * 48 * 48).reshape(count, 1, 48, 48)
    index = torch.arange(count) + 100
    return {"images": images, "sizes": sizes, "depth": depth, "index": index, "label": index % 5}


def maker(wants: Wants, rank: int = 0, world: int = 1, seed: int = SEED) -> ViewMaker:
    return ViewMaker(CONFIG, SPEC, wants, seed, CPU, rank, world)


def seeded(*parts: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(SEED, *parts))


@pytest.mark.parametrize(
    ("wants", "shapes"),
    [
        (Wants(), {"views": (1, IMAGES, 3, SIZE, SIZE)}),
        (Wants(views=0, patches=True), {"patches": (9, IMAGES, 3, SIZE, SIZE)}),
        (Wants(views=1, label=True), {"views": (1, IMAGES, 3, SIZE, SIZE), "label": (IMAGES,)}),
        (
            ALL,
            {
                "views": (2, IMAGES, 3, SIZE, SIZE),
                "local_views": (3, IMAGES, 3, LOCAL_SIZE, LOCAL_SIZE),
                "patches": (9, IMAGES, 3, SIZE, SIZE),
                "depth": (IMAGES, SIZE, SIZE),
                "label": (IMAGES,),
            },
        ),
    ],
)
def test_a_batch_has_what_the_objective_wants_and_nothing_else(wants, shapes):
    made = maker(wants).training(batch_of(), step=0)
    assert {key: tuple(value.shape) for key, value in made.items()} == {"index": (IMAGES,), **shapes}
    assert torch.equal(made["index"], batch_of()["index"])


def test_each_view_has_its_own_number_and_local_views_are_counted_on():
    batch = batch_of()
    made = maker(ALL).training(batch, step=7)
    for number in range(5):
        local = number >= 2
        drawn = draw_parameters(batch["sizes"], CONFIG, seeded("views", 7, number), number, local)
        # The config blurs every view 0 and no view 1.
        assert number > 1 or (drawn.blur > 0).all() == (number == 0)
        expected = make_view(batch["images"], drawn, LOCAL_SIZE if local else SIZE, MEAN, STD)
        found = made["local_views"][number - 2] if local else made["views"][number]
        assert torch.equal(found, expected)


def test_patches_have_draws_of_their_own():
    batch = batch_of()
    drawn = draw_patches(batch["sizes"], CONFIG, seeded("patches", 7))
    expected = make_patches(batch["images"], drawn, SIZE, MEAN, STD)
    assert torch.equal(maker(ALL).training(batch, step=7)["patches"], expected)


def test_depth_lies_under_the_first_view():
    batch = batch_of()
    drawn = draw_parameters(batch["sizes"], CONFIG, seeded("views", 7, 0))
    depth = maker(ALL).training(batch, step=7)["depth"]
    assert torch.equal(depth, resample_nearest(batch["depth"], drawn.crop, SIZE, drawn.flip))
    # Pixel numbers grow from left to right, and from right to left where the view is mirrored.
    assert drawn.flip.any()
    assert not drawn.flip.all()
    assert torch.equal((depth[:, :, 0] > depth[:, :, -1]).all(1), drawn.flip)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_make_the_views_that_one_process_would(world):
    batch = batch_of()
    alone = maker(ALL).training(batch, step=4)
    for rank in range(world):
        part = maker(ALL, rank, world).training({key: value[rank::world] for key, value in batch.items()}, step=4)
        assert part.keys() == alone.keys()
        for key, value in part.items():
            rows = (slice(None),) * (key in ("views", "local_views", "patches")) + (slice(rank, None, world),)
            torch.testing.assert_close(value, alone[key][rows], rtol=0, atol=1e-5)


def test_views_follow_from_the_seed_and_the_step_alone():
    batch = batch_of()
    views = maker(ALL)
    first = views.training(batch, step=4)
    views.training(batch, step=5)
    assert all(torch.equal(value, first[key]) for key, value in maker(ALL).training(batch, step=4).items())
    for other in (views.training(batch, step=5), maker(ALL, seed=SEED + 1).training(batch, step=4)):
        for key in ("views", "local_views", "patches", "depth"):
            assert not torch.equal(other[key], first[key])
    assert not torch.equal(first["views"][0], first["views"][1])


def test_the_central_view_is_224_of_256_of_the_short_side():
    batch = batch_of()
    expected = evaluation_view(batch["images"], batch["sizes"], SIZE, MEAN, STD, centre=224 / 256)
    assert torch.equal(maker(ALL).evaluation(batch), expected)


@pytest.mark.parametrize(
    ("keys", "wants", "message"),
    [
        ({"blur_probability": []}, Wants(), r"views.blur_probability=\[\] names no probability"),
        ({"solarize_probability": []}, Wants(), r"views.solarize_probability=\[\] names no probability"),
        ({"crop_pad": 0.125}, Wants(), r"views.crop_pad=0.125 is the border of crops of fixed size"),
        ({"size": 30}, Wants(views=0, patches=True), r"views.size=30 is larger than a cell"),
        ({}, Wants(views=0, depth=True), "must want a view"),
    ],
)
def test_what_contradicts_itself_is_one_clear_line(keys, wants, message):
    config = replace(CONFIG, **keys)
    with pytest.raises(ValueError, match=message) as raised:
        require_possible(config, wants)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=message):
        ViewMaker(config, SPEC, wants, SEED, CPU)


def test_a_size_that_fits_no_cell_matters_only_where_patches_are_wanted():
    require_possible(replace(CONFIG, size=30), Wants())


def test_views_of_several_steps_at_once_are_those_of_each(monkeypatch):
    """As a GPU has them; the batches differ in the largest of their images."""
    batches = []
    for number in range(5):
        batch = batch_of(seed=number)
        side = 48 + number % 2
        batch["images"] = torch.nn.functional.pad(batch["images"], (0, side - 48, 0, 0))
        batches.append(batch)
    monkeypatch.setattr(ViewMaker, "at_once", 2)
    together = list(maker(ALL).stream(batches, 7, StepTimer(CPU)))
    assert len(together) == 5
    for step, (made, batch) in enumerate(zip(together, batches, strict=True), 7):
        alone = maker(ALL).training(batch, step)
        assert made.keys() == alone.keys()
        for key in made:
            torch.testing.assert_close(made[key], alone[key], rtol=0, atol=1e-5)


def test_batches_are_brought_to_the_device_one_by_one_and_joined_there(monkeypatch):
    """The meta device stands for a GPU: what is there has left the CPU."""
    seen = []
    monkeypatch.setattr(ViewMaker, "training", lambda self, batch, step, steps: seen.append(batch) or {})
    monkeypatch.setattr("pretrain.views.split_batch", lambda made, parts: [made] * parts)
    views = ViewMaker(CONFIG, SPEC, Wants(label=True), SEED, torch.device("meta"))
    batches = [batch_of() | {"gaze": torch.zeros(IMAGES)} for _ in range(3)]
    assert len(list(views.stream(batches, 0, StepTimer(CPU)))) == 3
    devices = {key: value.device.type for key, value in seen[0].items()}
    assert devices == {"images": "meta", "index": "meta", "label": "meta", "sizes": "cpu"}, "and nothing unused"
    assert seen[0]["images"].shape == (3 * IMAGES, 3, 48, 48)


def test_views_of_clips_are_made_of_what_the_reader_gives():
    generator = seeded("clips")
    frames, sizes = torch.tensor([9, 12, 5]), torch.full((3, 2), 30)
    video = torch.randint(256, (3, 3, 12, 30, 30), generator=generator, dtype=torch.uint8)
    batch = {"video": video, "frames": frames, "sizes": sizes, "index": torch.arange(3)}
    config = replace(CONFIG, clip_frames=4)
    made = ViewMaker(config, SPEC, Wants(views=2), SEED, CPU).training(batch, step=3)
    assert made["views"].shape == (2, 3, 3, 4, SIZE, SIZE)
    for view in range(2):
        drawn = draw_clips(frames, sizes, config, seeded("views", 3, view), view)
        assert torch.equal(made["views"][view], make_clip_view(video, drawn, SIZE, MEAN, STD))


def test_views_are_the_same_within_autocast():
    batch = batch_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = maker(ALL).training(batch, 0), maker(ALL).evaluation(batch), maker(ALL).pair(batch)
    for key, value in maker(ALL).training(batch, 0).items():
        assert torch.equal(value, within[0][key]), key
    assert torch.equal(within[1], maker(ALL).evaluation(batch))
    assert torch.equal(within[2], maker(ALL).pair(batch))
