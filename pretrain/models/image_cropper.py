"""V1T's image cropper: the middle of the screen, moved with the animal's gaze, at the size that the transformer sees.

What comes in: images (batch, channel, height, width) of any size, and where the crop follows the gaze the pupil's
centre (batch, 2), with the behaviour (batch, K) if that moves it too. What goes out: (batch, channel, *image_size). A
crop of scale s has int(s height) x int(s width) pixels, at positions that are evenly spaced over [-s, s] of the
screen's [-1, 1]; it is then resized bilinearly, without a low-pass filter. Source: Li et al. 2023 (V1T,
https://openreview.net/forum?id=qHZs2p4ZD4)."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PUPIL_CHANNELS = 2
HIDDEN_UNITS = 10
SAMPLING = ("bilinear", "nearest")


class ImageCropper(nn.Module):
    """Crops, moves and resizes images.

    `sampling="nearest"` is the published way, which published weights with a crop need. It gives the shift no gradient,
    so that its weights never learn; the default, bilinear, mends that. At `center_crop=1` both leave the image as it
    is, and there is no room for a shift.

    Args:
        image_size: (height, width) in pixels of what goes out.
        center_crop: share s of the height and of the width that is kept, in (0, 1].
        animals: those that have a shift of their own.
        shift_inputs: how many values move the crop: 0 for none, 2 for the pupil's centre, 2 + K with K of behaviour.
        sampling: "bilinear" or "nearest".

    Raises:
        ValueError: a crop or a sampling that is not one of these.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        center_crop: float = 1.0,
        animals: Sequence[str] = (),
        shift_inputs: int = 0,
        sampling: str = "bilinear",
    ) -> None:
        super().__init__()
        if not 0 < center_crop <= 1:
            raise ValueError(f"center_crop must be above 0 and at most 1, found {center_crop}")
        if sampling not in SAMPLING:
            raise ValueError(f"sampling must be one of {', '.join(SAMPLING)}, found {sampling!r}")
        self.image_size, self.center_crop, self.sampling = tuple(image_size), center_crop, sampling
        self.shift_inputs = shift_inputs
        self.shifters = nn.ModuleDict()
        for animal in animals:
            self.add_animal(animal)

    def add_animal(self, animal: str) -> None:
        """A shift with fresh weights for one animal, where crops are shifted at all."""
        if self.shift_inputs:
            self.shifters[animal] = shift_network(self.shift_inputs)

    def remove_animal(self, animal: str) -> None:
        """Take an animal's own shift away, if it has one."""
        if animal in self.shifters:
            del self.shifters[animal]

    def forward(
        self,
        images: Tensor,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        animal: str | None = None,
    ) -> Tensor:
        """Crops (batch, channel, *image_size) of images (batch, channel, height, width)."""
        if self.center_crop < 1:
            shift = self.shift(behavior, pupil_center, animal) if self.shift_inputs else None
            images = self.cropped(images, shift)
        if images.shape[-2:] == self.image_size:
            return images
        return F.interpolate(images, self.image_size, mode="bilinear", align_corners=False)

    def shift(self, behavior: Tensor | None, pupil_center: Tensor | None, animal: str | None) -> Tensor:
        """How far crops move, (batch, 2) of x and y in units of half the screen, within what the crop leaves free."""
        if animal not in self.shifters:
            raise ValueError(f"no image shift for animal={animal!r}; known are {', '.join(self.shifters) or 'none'}")
        with_behavior = self.shift_inputs > PUPIL_CHANNELS
        if pupil_center is None or (with_behavior and behavior is None):
            wanted = "pupil_center and behavior" if with_behavior else "pupil_center"
            raise ValueError(f"the image shift needs {wanted}, found None; give it, or set shift_mode=2")
        inputs = torch.cat((behavior, pupil_center), dim=-1) if with_behavior else pupil_center
        return self.shifters[animal](inputs) * (1 - self.center_crop)

    def cropped(self, images: Tensor, shift: Tensor | None) -> Tensor:
        """The crop at the resolution of the images; `shift` (batch, 2) moves it."""
        height, width = images.shape[-2:]
        # Made on the CPU on every device: some positions lie halfway between pixels, where the last bit decides.
        rows = crop_positions(height, self.center_crop).to(images.device)[None]
        columns = crop_positions(width, self.center_crop).to(images.device)[None]
        if shift is not None:
            columns, rows = columns + shift[:, :1], rows + shift[:, 1:]
        if self.sampling == "nearest":
            # Rows and columns move apart from each other, so a gather along each does what `grid_sample` would.
            row, column = nearest_pixels(rows, height), nearest_pixels(columns, width)
            return images.take_along_dim(row[:, None, :, None], 2).take_along_dim(column[:, None, None, :], 3)
        return bilinear_samples(images, rows, columns)


def shift_network(inputs: int) -> nn.Sequential:
    """inputs -> 10 -> 10 -> 2, tanh after each."""
    layers: list[nn.Module] = []
    for outputs in (HIDDEN_UNITS, HIDDEN_UNITS, PUPIL_CHANNELS):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        inputs = outputs
    return nn.Sequential(*layers)


@cache
def crop_positions(size: int, scale: float) -> Tensor:
    """Where a crop of a side of `size` pixels samples, int(scale size) places in [-scale, scale]."""
    return torch.linspace(-scale, scale, int(size * scale))


def nearest_pixels(positions: Tensor, size: int) -> Tensor:
    """Index of the pixel nearest to each position in [-1, 1], whose ends are the centres of the outermost pixels."""
    return ((positions + 1) / 2 * (size - 1)).round().long().clamp(0, size - 1)


def bilinear_samples(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Images at rows (batch or 1, h) x columns (batch or 1, w), positions in [-1, 1]: (batch, channel, h, w)."""
    shape = (len(images), rows.shape[1], columns.shape[1])
    grid = torch.stack((columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)), dim=-1)
    # Half precision would place pixels a tenth of a pixel beside where they are.
    dtype = torch.promote_types(images.dtype, grid.dtype)
    return F.grid_sample(images.to(dtype), grid.to(dtype), padding_mode="border", align_corners=True).to(images.dtype)
