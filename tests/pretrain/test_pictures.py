"""Pictures: every tile is where its label says, and shows what training sees."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pretrain.checkpoint import BackboneSpec
from pretrain.config import ViewsConfig
from pretrain.objectives.objective import Wants
from pretrain.pictures import (
    FILTER_SIDE,
    GAP,
    HEADER,
    PATCH_SIDE,
    VIEW_SIDE,
    depth_tiles,
    patch_tiles,
    save_contact_sheet,
    save_filters,
    training_columns,
)
from pretrain.views import ViewMaker

SIZE, IMAGES = 24, 3
CONFIG = ViewsConfig(size=SIZE, local_size=12, patch_image=80, patch_field=75)
PLAIN = BackboneSpec("any", {}, SIZE, [0.0] * 3, [1.0] * 3)


def a_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "images": torch.randint(256, (IMAGES, 3, 40, 40), generator=generator, dtype=torch.uint8),
        "sizes": torch.full((IMAGES, 2), 40),
        "depth": torch.rand(IMAGES, 1, 40, 40, generator=generator),
        "index": torch.arange(IMAGES),
    }


def maker(wants: Wants) -> ViewMaker:
    return ViewMaker(CONFIG, PLAIN, wants, 0, torch.device("cpu"))


def tile(sheet: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    """A tile of a contact sheet, in 0..1."""
    top, left = HEADER + GAP + row * (side + GAP), GAP + column * (side + GAP)
    return sheet[top : top + side, left : left + side] / 255


@pytest.mark.parametrize(
    ("wants", "columns", "side"),
    [
        (Wants(), 6, VIEW_SIDE),
        (Wants(views=2), 5, VIEW_SIDE),
        (Wants(views=1, depth=True), 11, VIEW_SIDE),
        (Wants(views=2, local_views=6), 9, VIEW_SIDE),
        (Wants(views=0, patches=True), 6, 3 * PATCH_SIDE),
    ],
)
def test_a_contact_sheet_has_a_row_for_each_image_and_a_column_for_all_that_training_sees(
    wants, columns, side, tmp_path
):
    save_contact_sheet(a_batch(), maker(wants), tmp_path / "views.png")
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.size == (GAP + columns * (side + GAP), HEADER + GAP + IMAGES * (side + GAP))
        sheet = np.asarray(picture)
    header = sheet[:HEADER]
    for column in range(columns):
        left = GAP + column * (side + GAP)
        assert header[:, left : left + side].min() < 100, f"column {column} has no label"
        assert header[:, left + side - 2 : left + side + GAP].min() == 255, f"the label of column {column} is too long"


def test_tiles_of_a_contact_sheet_are_the_views_without_smoothing(tmp_path: Path):
    batch, views = a_batch(), maker(Wants(views=2, depth=True))
    save_contact_sheet(batch, views, tmp_path / "views.png")
    with Image.open(tmp_path / "views.png") as picture:
        sheet = np.asarray(picture)
    made = views.training(batch, step=0)
    shown = (views.evaluation(batch), made["views"][0], depth_tiles(made["depth"]), made["views"][1])
    step = VIEW_SIDE // SIZE
    for column, tiles in enumerate(shown):
        for row in range(IMAGES):
            found = tile(sheet, row, column, VIEW_SIDE)[step // 2 :: step, step // 2 :: step]
            np.testing.assert_allclose(found, tiles[row].permute(1, 2, 0), atol=0.5 / 255 + 1e-6)


def test_columns_are_named_and_depth_stands_beside_its_view():
    wants = Wants(views=2, local_views=2, patches=True, depth=True)
    labels = [label for label, _ in training_columns(maker(wants).training(a_batch(), step=0))]
    assert labels == ["view 1", "depth", "view 2", "local 1", "local 2", "patches"]


def test_patches_stand_as_a_block_in_their_order():
    patches = torch.arange(9.0).reshape(9, 1, 1, 1, 1).expand(9, 2, 3, 10, 10) / 9
    block = patch_tiles(patches)
    assert block.shape == (2, 3, 32, 32)
    centres = block[:, :, 5::11, 5::11]
    torch.testing.assert_close(centres, torch.arange(9.0).reshape(3, 3).expand(2, 3, 3, 3) / 9)
    assert (block[:, :, 10] == 1).all()
    assert (block[:, :, :, 21] == 1).all()


def test_depth_is_grey_from_its_own_smallest_value_to_its_largest():
    depth = torch.stack([torch.tensor([[5.0, 7.0], [6.0, 9.0]]), torch.full((2, 2), 4.0)])
    grey = depth_tiles(depth)
    assert grey.shape == (2, 3, 2, 2)
    assert torch.equal(grey[0, 1], torch.tensor([[0.0, 0.5], [0.25, 1.0]]))
    assert torch.equal(grey[1], torch.zeros(3, 2, 2))


def test_filters_are_tiles_with_grey_for_zero(tmp_path: Path):
    backbone = nn.Sequential(nn.Conv2d(3, 20, 4), nn.ReLU())
    with torch.no_grad():
        backbone[0].weight.zero_()
        backbone[0].weight[17, 0] = -2
    save_filters(backbone, tmp_path / "filters.png")
    with Image.open(tmp_path / "filters.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (GAP + 2 * (FILTER_SIDE + GAP), GAP + 16 * (FILTER_SIDE + GAP), 3)
    middle = GAP + FILTER_SIDE // 2
    assert pixels[middle, middle].tolist() == [128, 128, 128]
    assert pixels[middle + FILTER_SIDE + GAP, middle + FILTER_SIDE + GAP].tolist() == [0, 128, 128]


def test_a_backbone_without_colour_filters_has_no_picture(tmp_path: Path):
    save_filters(nn.Sequential(nn.Conv2d(1, 4, 3)), tmp_path / "filters.png")
    assert not list(tmp_path.iterdir())
