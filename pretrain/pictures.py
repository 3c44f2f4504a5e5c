"""Pictures of what goes into training and what comes out of it.

What comes in: a batch and what makes its views, without normalisation; or a backbone. What goes out: PNG files.
"""

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.utils import make_grid

from pretrain.durable import write_atomically
from pretrain.views import ViewMaker

FILTER_SIDE = 44
VIEW_SIDE = 96
PATCH_SIDE = 64
GAP = 4
HEADER = 20
# Columns of views on a contact sheet, about; an objective that sees fewer in a step is shown several draws.
SHEET_COLUMNS = 5


def save_contact_sheet(batch: dict[str, Tensor], views: ViewMaker, path: Path) -> None:
    """A row for each image of a batch, under a row of labels: its central view, then all that training sees of it.

    `views` must not normalise: a mean of 0 and a standard deviation of 1.
    """
    columns = columns_of("central", views.evaluation(batch))
    wants = views.wants
    draws = max(1, SHEET_COLUMNS // max(1, wants.views + wants.local_views + wants.patches))
    for draw in range(draws):
        suffix = f" draw {draw + 1}" if draws > 1 else ""
        columns += [(label + suffix, tiles) for label, tiles in training_columns(views.training(batch, step=draw))]
    # Patches stay legible only where a tile holds nine of them.
    side = 3 * PATCH_SIDE if wants.patches else VIEW_SIDE
    tiles = torch.stack([resize_tiles(tiles, side) for _, tiles in columns], 1).flatten(0, 1)
    save_png(with_header(grid_image(tiles, len(columns)), [label for label, _ in columns], side), path)


def training_columns(made: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Labels and tiles (batch, 3, h, w) in 0..1 of what a training step sees; depth stands beside its view."""
    shown = (columns_of(f"view {number}", view) for number, view in enumerate(made.get("views", ()), 1))
    columns = [column for view in shown for column in view]
    if "depth" in made:
        columns.insert(1, ("depth", depth_tiles(made["depth"])))
    columns += [(f"local {number}", tiles) for number, tiles in enumerate(made.get("local_views", ()), 1)]
    if "patches" in made:
        columns.append(("patches", patch_tiles(made["patches"])))
    return columns


def columns_of(label: str, view: Tensor) -> list[tuple[str, Tensor]]:
    """Label and tiles (batch, 3, h, w) of a view; of clips (batch, 3, frames, h, w) first, middle and last frame."""
    if view.ndim == 4:
        return [(label, view)]
    frames = sorted({0, view.shape[2] // 2, view.shape[2] - 1})
    return [(f"{label} #{frame + 1}", view[:, :, frame]) for frame in frames]


def depth_tiles(depth: Tensor) -> Tensor:
    """Maps (batch, h, w) as grey pictures (batch, 3, h, w), each from black at its smallest value to white."""
    low, high = depth.amin((1, 2), keepdim=True), depth.amax((1, 2), keepdim=True)
    grey = (depth - low) / (high - low).clamp(min=torch.finfo(depth.dtype).tiny)
    return grey[:, None].expand(-1, 3, -1, -1)


def patch_tiles(patches: Tensor) -> Tensor:
    """Patches (9, batch, 3, side, side) as 3 x 3 blocks (batch, 3, h, w) with thin white lines between them."""
    line = max(1, patches.shape[-1] // 32)
    # The line beyond the last row and column is cut off.
    padded = F.pad(patches, (0, line, 0, line), value=1.0).unflatten(0, (3, 3))
    block = padded.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)
    return block[:, :, :-line, :-line]


def save_filters(backbone: nn.Module, path: Path) -> None:
    """The first convolution's filters, each scaled to its own largest absolute weight; grey is zero."""
    first = next((m for m in backbone.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels != 3:
        return
    weight = first.weight.detach().float().cpu()
    scaled = weight / weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12) / 2 + 0.5
    save_png(grid_image(resize_tiles(scaled, FILTER_SIDE), columns=16), path)


def resize_tiles(tiles: Tensor, side: int) -> Tensor:
    """Tiles (count, 3, h, w) as (count, 3, side, side) on the CPU, without smoothing."""
    return F.interpolate(tiles.float().cpu(), (side, side), mode="nearest-exact")


def grid_image(tiles: Tensor, columns: int) -> Image.Image:
    """Tiles (count, 3, side, side) in 0..1, row by row, on white."""
    grid = make_grid(tiles, nrow=columns, padding=GAP, pad_value=1.0)
    return Image.fromarray((grid.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def with_header(picture: Image.Image, labels: list[str], side: int) -> Image.Image:
    """The picture under a row with a label over each column of tiles."""
    sheet = Image.new("RGB", (picture.width, picture.height + HEADER), "white")
    sheet.paste(picture, (0, HEADER))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for column, label in enumerate(labels):
        draw.text((GAP + column * (side + GAP), 3), label, fill="black", font=font)
    return sheet


def save_png(picture: Image.Image, path: Path) -> None:
    write_atomically(path, lambda file: picture.save(file, "PNG"))
