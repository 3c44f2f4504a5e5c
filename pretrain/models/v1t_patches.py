"""V1T's tokens: overlapping patches of an image, projected, behind a class token, with learned positions.

What comes in: images (batch, channel, height, width). What goes out: tokens (batch, 1 + rows x columns, width), the
class token first, then the patches row by row; rows = (height - patch) // stride + 1, and columns likewise. Sources: Li
et al. 2023 (V1T, https://openreview.net/forum?id=qHZs2p4ZD4); shifted patches are those of Lee et al. 2021
(https://arxiv.org/abs/2112.13492), two norms those of Kumar et al. 2023 (https://arxiv.org/abs/2302.01327)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.dropping import Dropout

LINEAR, CONVOLUTION, SHIFTED, DUAL_NORM = range(4)
DIAGONALS = 4


class PatchEmbedding(nn.Module):
    """Patches to tokens in one of V1T's four `patch_mode`s.

    0, linear: as torch draws the weights of a linear layer. 1, convolution: the same numbers from weights that are
    drawn as He et al. 2015 do. 2, shifted: four copies of the image, moved by half a patch along the diagonals, are
    further channels; layer norm, linear. 3, dual norm: layer norm, linear, layer norm.

    The published code runs mode 2 with one channel only, because it counts the copies wrongly; ours takes any number.

    Args:
        channels: of the images.
        image_size: (height, width) in pixels.
        width: of a token.
        patch_mode, patch_size, stride: patches are squares of `patch_size` pixels, `stride` pixels apart.
        dropout: share of the tokens' entries that are dropped in training.

    Raises:
        ValueError: unknown mode, a stride beyond 1..patch_size, or an image smaller than a patch.
    """

    def __init__(
        self,
        channels: int,
        image_size: tuple[int, int],
        width: int,
        patch_mode: int = LINEAR,
        patch_size: int = 8,
        stride: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if patch_mode not in range(4):
            raise ValueError(f"patch_mode must be 0, 1, 2 or 3, found {patch_mode!r}")
        if not 1 <= stride <= patch_size:
            raise ValueError(f"patch_stride must be from 1 to patch_size={patch_size}, found {stride}")
        if min(image_size) < patch_size:
            raise ValueError(f"images of {image_size[0]} x {image_size[1]} pixels are smaller than {patch_size=}")
        self.patch_mode, self.patch_size, self.stride = patch_mode, patch_size, stride
        rows, columns = ((side - patch_size) // stride + 1 for side in image_size)
        self.grid = (rows, columns)
        if patch_mode == SHIFTED:
            channels *= 1 + DIAGONALS
        entries = channels * patch_size**2
        self.norm = nn.LayerNorm(entries) if patch_mode in (SHIFTED, DUAL_NORM) else None
        if patch_mode == CONVOLUTION:
            self.projection = nn.Conv2d(channels, width, patch_size, stride)
            nn.init.kaiming_normal_(self.projection.weight)
        else:
            self.projection = nn.Linear(entries, width)
        self.projection_norm = nn.LayerNorm(width) if patch_mode == DUAL_NORM else None
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1 + rows * columns, width))
        self.dropout = Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Tokens (batch, 1 + patches, width) of images (batch, channel, height, width)."""
        patches = self.convolved(images) if self.norm is None else self.normed(images)
        class_token = self.class_token.expand(len(patches), -1, -1)
        return self.dropout(torch.cat((class_token, patches), dim=1) + self.positions)

    def convolved(self, images: Tensor) -> Tensor:
        """Projected patches, of which no copies are made: a linear layer on patches is a convolution."""
        weight = self.projection.weight.view(-1, images.shape[1], self.patch_size, self.patch_size)
        return F.conv2d(images, weight, self.projection.bias, self.stride).flatten(2).transpose(1, 2)

    def normed(self, images: Tensor) -> Tensor:
        """Projected patches that are normed first, each over its own pixels."""
        if self.patch_mode == SHIFTED:
            images = with_diagonal_shifts(images, self.patch_size // 2)
        patches = F.unfold(images, self.patch_size, stride=self.stride).transpose(1, 2)
        projected = self.projection(self.norm(patches))
        return projected if self.projection_norm is None else self.projection_norm(projected)


def with_diagonal_shifts(images: Tensor, shift: int) -> Tensor:
    """Images (batch, channel, height, width), then copies of them with zeros where nothing has moved to.

    Their content has moved by `shift` pixels down-right, down-left, up-right, up-left: (batch, 5 channel, height,
    width).
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (shift,) * 4)
    starts = [(row, column) for row in (0, 2 * shift) for column in (0, 2 * shift)]
    moved = [padded[..., row : row + height, column : column + width] for row, column in starts]
    return torch.cat((images, *moved), dim=1)
