"""AlexNet for low-resolution mouse vision, with and without batch norm.

What comes in: images (batch, 3, height, width), 32 to 224 pixels, ImageNet-normalised. What goes out: (batch, 4096),
or (batch, num_classes) with the last linear layer. The layout is torchvision's ("one weird trick", Krizhevsky 2014,
https://arxiv.org/abs/1404.5997), batch norm after every convolution and hidden linear layer as in mouse-vision
(Nayebi, Kong et al. 2023, https://doi.org/10.1371/journal.pcbi.1011506); state-dict keys are mouse-vision's.
"""

from itertools import pairwise

from torch import Tensor, nn

CHANNELS = (3, 64, 192, 384, 256, 256)
KERNEL_STRIDE_PADDING = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
POOLED_STAGES = (0, 1, 4)
HIDDEN = 4096

# The layers that mouse-vision fits to neurons; its README recommends the first four of the batch-norm net.
FIT_LAYERS = (
    "features.2",
    "features.5",
    "features.7",
    "features.9",
    "features.12",
    "classifier.2",
    "classifier.5",
)
FIT_LAYERS_BN = (
    "features.3", "features.7", "features.10", "features.13", "features.17", "classifier.3", "classifier.7",
)  # fmt: skip


class AlexNet(nn.Module):
    """AlexNet whose activations before the classifier are pooled, or at 64 x 64 input replicated, to a fixed grid.

    Args:
        batch_norm: normalise after every convolution and hidden linear layer.
        pool_size: side of the grid that the adaptive average pool makes; 6 as published, 1 for a small classifier.
        num_classes: outputs of the last linear layer; 0 leaves it out, as in label-free training.
        dropout: probability before each hidden linear layer.
    """

    def __init__(
        self, batch_norm: bool = False, pool_size: int = 6, num_classes: int = 1000, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.features = convolutions(batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d((pool_size, pool_size))
        widths = (CHANNELS[-1] * pool_size**2, HIDDEN, HIDDEN)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            norm = [nn.BatchNorm1d(outputs)] if batch_norm else []
            layers += [nn.Dropout(dropout), nn.Linear(inputs, outputs), *norm, nn.ReLU(inplace=True)]
        if num_classes:
            layers.append(nn.Linear(HIDDEN, num_classes))
        self.classifier = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


def convolutions(batch_norm: bool) -> nn.Sequential:
    """The five convolutional stages; 64 x 64 input leaves them as (batch, 256, 1, 1)."""
    layers: list[nn.Module] = []
    for stage, ((inputs, outputs), shape) in enumerate(zip(pairwise(CHANNELS), KERNEL_STRIDE_PADDING, strict=True)):
        kernel, stride, padding = shape
        layers.append(nn.Conv2d(inputs, outputs, kernel, stride, padding))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU(inplace=True))
        if stage in POOLED_STAGES:
            layers.append(nn.MaxPool2d(kernel_size=3, stride=2))
    return nn.Sequential(*layers)
