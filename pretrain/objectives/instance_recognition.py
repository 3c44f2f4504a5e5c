"""Instance recognition: each image is its own class, told apart from noise images by a memory bank.

What comes in: one view of each image (1, batch, channels, height, width) and the images' global indices (batch,).
What goes out: the loss of noise-contrastive estimation and its two parts. Source: Wu, Xiong, Yu, Lin 2018
(https://arxiv.org/abs/1805.01978), with the constants of mouse-vision (Nayebi, Kong et al. 2023).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models import feature_size
from pretrain.objectives.objective import Objective, full_precision
from pretrain.objectives.processes import gather_processes

# The partition function that Wu et al. estimated once, for ImageNet; it scales with the number of images.
IMAGENET_IMAGES = 1_281_167
IMAGENET_PARTITION = 2_876_934.2
NCE_EPSILON = 1e-7

# Up to this many bank rows per noise draw, multiplying with the whole bank moves less memory than gathering rows.
WHOLE_BANK_ROWS_PER_DRAW = 32


class InstanceRecognition(Objective):
    """Backbone, linear embedding and a bank with one unit vector per training image.

    Args:
        backbone: maps (batch, 3, H, W) to (batch, features).
        num_samples: training images, which is the number of rows of the bank.
        input_size: side of a view in pixels.
        dim: length of an embedding.
        negatives: noise rows drawn per image, uniformly with replacement, anew at each step.
        temperature: divides the inner products.
        momentum: share of the old row that an update keeps.
    """

    per_image = True

    def __init__(
        self,
        backbone: nn.Module,
        num_samples: int,
        input_size: int = 64,
        dim: int = 128,
        negatives: int = 4096,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__(backbone)
        check_constants(num_samples, dim, negatives, temperature, momentum)
        self.embedding = nn.Linear(feature_size(backbone, input_size), dim)
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        bound = 1 / math.sqrt(dim / 3)
        self.register_buffer("bank", F.normalize(torch.empty(num_samples, dim).uniform_(-bound, bound), dim=1))
        self.updated: list[tuple[Tensor, Tensor]] = []

    @property
    def partition(self) -> float:
        """The constant Z of P(i|v) = exp(bank_i · v / temperature) / Z."""
        return IMAGENET_PARTITION / IMAGENET_IMAGES * len(self.bank)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`views` (1, batch, C, H, W) and `index` (batch,) to `loss`, `data_loss` and `noise_loss`."""
        features = self.features(batch["views"][0])
        noise = batch["noise"] if "noise" in batch else self.draw_noise(batch["index"])
        return self.contrast(features, batch["index"], noise)

    def with_draws(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with its noise rows, `noise` (batch, negatives)."""
        return {**batch, "noise": self.draw_noise(batch["index"])}

    def draw_noise(self, index: Tensor) -> Tensor:
        """Noise rows (batch, negatives) for the images `index` (batch,)."""
        return torch.randint(len(self.bank), (len(index), self.negatives), device=index.device)

    def contrast(self, features: Tensor, index: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """The loss of backbone features (batch, d) for their rows `index` and noise rows (batch, negatives)."""
        # In half precision exp(1 / 0.07) is already inexact, so the loss leaves autocast.
        with full_precision(features):
            embedded = F.normalize(self.embedding(features.float()), dim=1, eps=0.0)
            data, drawn = self.similarities(embedded, index, noise)
            noise_share = noise.shape[1] / len(self.bank)
            p_data = (data / self.temperature).exp() / self.partition
            p_noise = (drawn / self.temperature).exp() / self.partition
            data_loss = -(p_data / (p_data + noise_share + NCE_EPSILON)).log().mean()
            noise_loss = -(noise_share / (p_noise + noise_share + NCE_EPSILON)).log().sum(1).mean()
        rows = self.momentum * self.bank[index] + (1 - self.momentum) * embedded.detach()
        if self.training:
            self.updated.append((index, F.normalize(rows, dim=1, eps=0.0)))
        return {"loss": data_loss + noise_loss, "data_loss": data_loss, "noise_loss": noise_loss}

    def similarities(self, embedded: Tensor, index: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Inner products with the own row (batch,) and with the noise rows (batch, negatives)."""
        if len(self.bank) <= WHOLE_BANK_ROWS_PER_DRAW * noise.shape[1]:
            products = embedded @ self.bank.T
            return products.gather(1, index[:, None])[:, 0], products.gather(1, noise)
        own = (embedded * self.bank[index]).sum(1)
        return own, torch.bmm(self.bank[noise], embedded[:, :, None])[:, :, 0]

    @torch.no_grad()
    def after_step(self) -> None:
        """Write this step's rows of every process into the bank; called after the optimiser's step."""
        if not self.updated:
            return
        index, rows = (gather_processes(torch.cat(parts)) for parts in zip(*self.updated, strict=True))
        self.bank[index] = rows
        self.updated = []


def check_constants(num_samples: int, dim: int, negatives: int, temperature: float, momentum: float) -> None:
    """One line for a constant out of range."""
    if num_samples < 2:
        raise ValueError(f"instance recognition needs at least 2 training images, found {num_samples}")
    for name, value in (("dim", dim), ("negatives", negatives), ("temperature", temperature)):
        if not value > 0:
            raise ValueError(f"objective_args.{name} must be above 0, found {value}")
    if not 0 <= momentum < 1:
        raise ValueError(f"objective_args.momentum must be from 0 to below 1, found {momentum}")
