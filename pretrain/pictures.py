"""Pictures of what goes into training and what comes out of it.

What comes in: views in 0..1 (batch, 3, size, size), or a backbone. What goes out: PNG files.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

from pretrain.durable import write_atomically

FILTER_SIDE = 44
VIEW_SIDE = 96


def save_views(originals: Tensor, views: Tensor, path: Path) -> None:
    """A row per image: the central view (batch, 3, size, size), then its random views (views, batch, 3, size, size)."""
    rows = torch.cat([originals[None], views]).transpose(0, 1)
    save_grid(rows.flatten(0, 1), len(views) + 1, VIEW_SIDE, path)


def save_filters(backbone: nn.Module, path: Path) -> None:
    """The first convolution's filters, each scaled to its own largest absolute weight; grey is zero."""
    first = next((m for m in backbone.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels != 3:
        return
    weight = first.weight.detach().float().cpu()
    scaled = weight / weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12) / 2 + 0.5
    save_grid(scaled, columns=16, side=FILTER_SIDE, path=path)


def save_grid(images: Tensor, columns: int, side: int, path: Path) -> None:
    """Tiles (count, 3, h, w) in 0..1, enlarged to `side` pixels without smoothing, on white."""
    tiles = nn.functional.interpolate(images, (side, side), mode="nearest-exact")
    grid = make_grid(tiles, nrow=columns, padding=4, pad_value=1.0)
    pixels = (grid.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    write_atomically(path, lambda file: Image.fromarray(pixels).save(file, "PNG"))
