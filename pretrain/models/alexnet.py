"""AlexNet for low-resolution mouse vision, with and without batch norm, whole or shortened.

What comes in: images (batch, 3, height, width), 32 to 224 pixels, ImageNet-normalised. What goes out: (batch, 4096),
or (batch, num_classes) with the last linear layer. The layout is torchvision's ("one weird trick", Krizhevsky 2014,
https://arxiv.org/abs/1404.5997), batch norm after every convolution and hidden linear layer as in mouse-vision
(Nayebi, Kong et al. 2023, https://doi.org/10.1371/journal.pcbi.1011506); state-dict keys are mouse-vision's.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = (3, 64, 192, 384, 256, 256)
KERNEL_STRIDE_PADDING = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
POOLED_STAGES = (0, 1, 4)
POOL_KERNEL = 3
HIDDEN = 4096
ROTNET_GRID = 6

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

ROTNET_FIT_LAYERS = (*FIT_LAYERS_BN[:5], "classifier.2", "classifier.5")
EDGES = (
    "input_pool1", "pool1_pool2", "pool2_conv3", "conv3_conv4", "conv4_pool5", "pool5_fc1", "fc1_fc2", "fc2_fc3",
)  # fmt: skip
EDGES_FIT_LAYERS = tuple(f"model_layers.{edge}" for edge in EDGES[:-1])


class AlexNet(nn.Module):
    """AlexNet whose activations before the classifier are pooled, or at 64 x 64 input replicated, to a fixed grid.

    Args:
        batch_norm: normalise after every convolution and hidden linear layer.
        pool_size: side of the grid that the adaptive average pool makes; 6 as published, 1 for a small classifier, 0
            for none: then the last map (batch, channels, height, width) is the output.
        num_classes: outputs of the last linear layer; 0 leaves it out, as in label-free training.
        dropout: probability before each linear layer but the last of several.
        stages: convolutional stages, from 1 to 5; fewer make the shortened networks.
        hidden_layers: hidden linear layers, from 0 to 2. One of them without a last layer is the published "fc6 out",
            which ends in a dropout.
    """

    def __init__(
        self,
        batch_norm: bool = False,
        pool_size: int = 6,
        num_classes: int = 1000,
        dropout: float = 0.5,
        stages: int = 5,
        hidden_layers: int = 2,
    ) -> None:
        super().__init__()
        for name, value, high in (("stages", stages, 5), ("hidden_layers", hidden_layers, 2)):
            if not int(name == "stages") <= value <= high:
                raise ValueError(f"{name} of AlexNet must be from {int(name == 'stages')} to {high}, found {value}")
        self.features = convolutions(batch_norm, stages)
        if pool_size:
            self.avgpool = nn.AdaptiveAvgPool2d((pool_size, pool_size))
            features = CHANNELS[stages] * pool_size**2
            self.classifier = classifier(features, hidden_layers, num_classes, batch_norm, dropout)

    def forward(self, images: Tensor) -> Tensor:
        activations = self.features(images)
        if not hasattr(self, "classifier"):
            return activations
        return self.classifier(self.avgpool(activations).flatten(1))


class MaxPool(nn.MaxPool2d):
    """A max pool that takes a map smaller than its window whole, as images below 63 pixels make it in AlexNet."""

    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool2d(input, [min(self.kernel_size, side) for side in input.shape[2:]], self.stride)


def convolutions(batch_norm: bool, stages: int = 5) -> nn.Sequential:
    """The convolutional stages; 64 x 64 input leaves all five as (batch, 256, 1, 1)."""
    layers: list[nn.Module] = []
    shapes = zip(pairwise(CHANNELS), KERNEL_STRIDE_PADDING, strict=True)
    for stage, ((inputs, outputs), (kernel, stride, padding)) in enumerate(list(shapes)[:stages]):
        layers.append(nn.Conv2d(inputs, outputs, kernel, stride, padding))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU(inplace=True))
        if stage in POOLED_STAGES:
            layers.append(MaxPool(POOL_KERNEL, stride=2))
    return nn.Sequential(*layers)


def classifier(features: int, hidden_layers: int, num_classes: int, batch_norm: bool, dropout: float) -> nn.Sequential:
    """Hidden linear layers, and the last one where classes are wanted."""
    layers: list[nn.Module] = []
    widths = (features, *[HIDDEN] * hidden_layers)
    for inputs, outputs in pairwise(widths):
        norm = [nn.BatchNorm1d(outputs)] if batch_norm else []
        layers += [nn.Dropout(dropout), nn.Linear(inputs, outputs), *norm, nn.ReLU(inplace=True)]
    if num_classes:
        layers += [nn.Dropout(dropout)] if not hidden_layers else []
        layers.append(nn.Linear(widths[-1], num_classes))
    elif hidden_layers == 1:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


class RotNetAlexNet(nn.Module):
    """AlexNet as the RotNet authors have it: batch norm, no adaptive pool, linear layers without bias, no dropout.

    The convolutions without the last pool are registered a second time, as `readout_features`, so that their weights
    are twice in the state dict, as published. Images are 224 x 224.

    Args:
        transfer: give the readout features (batch, 256, 13, 13) rather than the output (batch, 4096).
    """

    def __init__(self, transfer: bool = False) -> None:
        super().__init__()
        self.transfer = transfer
        self.features = convolutions(batch_norm=True)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((CHANNELS[-1] * ROTNET_GRID**2, HIDDEN, HIDDEN)):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
        self.classifier = nn.Sequential(*layers)
        self.readout_features = nn.Sequential(*self.features[:-1])

    @property
    def unused_parameters(self) -> tuple[str, ...]:
        """Parameters that the output does not depend on."""
        return tuple(f"classifier.{name}" for name, _ in self.classifier.named_parameters()) if self.transfer else ()

    def forward(self, images: Tensor) -> Tensor:
        if self.transfer:
            return self.readout_features(images)
        pooled = self.features(images)
        if pooled.shape[2:] != (ROTNET_GRID, ROTNET_GRID):
            raise ValueError(f"RotNet's AlexNet takes 224 x 224 images, found {images.shape[2]} x {images.shape[3]}")
        return self.classifier(pooled.flatten(1))


class AlexNetEdges(nn.Module):
    """AlexNet without batch norm, its layers named by what they join, in one `ModuleDict` `model_layers`.

    The names are the published ones; within a name our numbering is an inference, as the published one is not known.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        features = convolutions(batch_norm=False)
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        last = classifier(CHANNELS[-1] * 36, 2, num_classes, False, dropout)
        slices = (features[0:3], features[3:6], features[6:8], features[8:10], features[10:13], last[0:3], last[3:6])
        blocks = [*slices, last[6:7]] if num_classes else slices
        self.model_layers = nn.ModuleDict(dict(zip(EDGES, blocks, strict=False)))

    def forward(self, images: Tensor) -> Tensor:
        activations = images
        for name, edge in self.model_layers.items():
            if name == "pool5_fc1":
                activations = self.avgpool(activations).flatten(1)
            activations = edge(activations)
        return activations
