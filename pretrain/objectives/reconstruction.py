"""Images from the code of images: autoencoding, and the prediction of depth.

What comes in: one view of each image (1, batch, 3, size, size), normalised, and for depth the depth map of that view
(batch, size, size), in any units. What goes out: half the mean squared error of the picture that is drawn; an
autoencoder adds the mean magnitude of its code. Source: the hour-glasses of mouse-vision (Nayebi, Kong et al. 2023,
https://doi.org/10.1371/journal.pcbi.1011506).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import feature_size
from pretrain.objectives.objective import Objective, Wants, full_precision

CODE_DIM = 128
# Widths of our decoder's maps; each of the steps between them doubles the side.
DECODER_CHANNELS = (256, 128, 64, 32, 3)


class Reconstruction(Objective):
    """A backbone and the way back from it to an image.

    Hour-glasses (`<streams>_autoencoder`, `<streams>_depth`) have their own way back, as published. Any other backbone
    gets one of ours, `ImageDecoder`, for which there are no published results.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features), or to an hour-glass' dictionary.
        input_size: side of a view in pixels.
        code_dim: length of the code in our decoder (default 128); an hour-glass takes it as `model_args.compressed`.
    """

    def __init__(self, backbone: nn.Module, input_size: int = 64, code_dim: int | None = None) -> None:
        super().__init__(backbone)
        if code_dim is not None and not code_dim > 0:
            raise ValueError(f"objective_args.code_dim must be above 0, found {code_dim}")
        self.image_decoder = None
        if not is_hour_glass(backbone, input_size):
            self.image_decoder = ImageDecoder(feature_size(backbone, input_size), input_size, code_dim or CODE_DIM)
        elif code_dim is not None:
            raise ValueError(
                f"objective_args.code_dim={code_dim} is for backbones without a decoder, and this one has its own; "
                "set model_args.compressed instead"
            )

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Drawn images (batch, 3, size, size), and the code (batch, code) that they are drawn from."""
        if self.image_decoder is not None:
            return self.image_decoder(self.features(images))
        made = self.backbone(images)
        return made["output"], made["hidden_vec"]


class Autoencoding(Reconstruction):
    """A backbone that draws its own input from a sparse code.

    Args:
        backbone, input_size, code_dim: as in `Reconstruction`.
        sparsity: weight of the code's mean magnitude; the published trainings have 5e-4.
    """

    wants = Wants(views=1)
    per_image = True

    def __init__(
        self, backbone: nn.Module, input_size: int = 64, sparsity: float = 1e-4, code_dim: int | None = None
    ) -> None:
        super().__init__(backbone, input_size, code_dim)
        if not sparsity >= 0:
            raise ValueError(f"objective_args.sparsity must be at least 0, found {sparsity}")
        self.sparsity = sparsity

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (1, batch, 3, size, size) to `loss` and its parts."""
        images = batch["views"][0]
        return self.compare(images, *self.reconstruct(images))

    def compare(self, images: Tensor, drawn: Tensor, code: Tensor) -> dict[str, Tensor]:
        """The loss of drawn images, both (batch, 3, size, size), and of the code (batch, code).

        `squared_error` and `code_magnitude` are means over all values, before halving and weighting.
        """
        with full_precision(images):
            squared_error = F.mse_loss(drawn.float(), images.float())
            magnitude = code.float().abs().mean()
            loss = squared_error / 2 + self.sparsity * magnitude
        return {"loss": loss, "squared_error": squared_error, "code_magnitude": magnitude}


class DepthPrediction(Reconstruction):
    """A backbone that predicts how far away each pixel is, up to the mean and the spread of the image's depths.

    The published hour-glasses for it have no narrow code (`model_args.compressed` is 0).

    Args:
        backbone, input_size, code_dim: as in `Reconstruction`.
    """

    wants = Wants(views=1, depth=True)
    per_image = True

    def __init__(self, backbone: nn.Module, input_size: int = 64, code_dim: int | None = None) -> None:
        super().__init__(backbone, input_size, code_dim)
        self.decoder = nn.Conv2d(3, 1, kernel_size=3, padding=1, bias=False)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (1, batch, 3, size, size) and `depth` (batch, size, size) to `loss`."""
        drawn, _ = self.reconstruct(batch["views"][0])
        return self.compare(drawn, standardised(batch["depth"]))

    def compare(self, drawn: Tensor, depth: Tensor) -> dict[str, Tensor]:
        """The loss of drawn images (batch, 3, size, size) for standardised depth maps (batch, size, size)."""
        predicted = self.decoder(drawn)[:, 0]
        with full_precision(drawn):
            return {"loss": F.mse_loss(predicted.float(), depth.float()) / 2}


class ImageDecoder(nn.Module):
    """Features to a short code, and transposed convolutions from it to an image.

    This decoder is ours, laid out like the generator of DCGAN (Radford, Metz, Chintala 2016,
    https://arxiv.org/abs/1511.06434): each layer doubles the side, with batch norm and ReLU after all but the last.

    Args:
        features: length of a backbone's feature vector.
        size: side of the image in pixels; where 16 does not divide it, a slightly larger image is drawn and cut.
        code_dim: length of the code.
    """

    def __init__(self, features: int, size: int, code_dim: int) -> None:
        super().__init__()
        self.size = size
        side = -(-size // 2 ** (len(DECODER_CHANNELS) - 1))
        self.compress = nn.Linear(features, code_dim)
        self.decompress = nn.Linear(code_dim, DECODER_CHANNELS[0] * side**2)
        self.to_map = nn.Unflatten(1, (DECODER_CHANNELS[0], side, side))
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(DECODER_CHANNELS):
            layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Images (batch, 3, size, size) and codes (batch, code) of features (batch, d)."""
        code = self.compress(features)
        images = self.layers(self.to_map(self.decompress(code)))
        return images[:, :, : self.size, : self.size], code


def is_hour_glass(backbone: nn.Module, input_size: int) -> bool:
    """Whether a backbone brings its code back to an image by itself."""
    training = backbone.training
    device = next(backbone.parameters()).device
    with torch.no_grad():
        made = backbone.eval()(torch.zeros(1, 3, input_size, input_size, device=device))
    backbone.train(training)
    return isinstance(made, dict)


def standardised(depth: Tensor) -> Tensor:
    """Depth maps (batch, size, size) with mean 0 and standard deviation 1 each; a flat one is 0 everywhere.

    The standard deviation is at least 1 / sqrt(pixels), and it is the population's, without Bessel's correction.
    """
    depth = depth.float()
    mean = depth.mean((1, 2), keepdim=True)
    spread = depth.std((1, 2), correction=0, keepdim=True)
    return (depth - mean) / spread.clamp(min=depth[0].numel() ** -0.5)
