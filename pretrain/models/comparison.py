"""The networks that mouse-vision compares its own with: ResNets and VGG16, in torchvision's layout and initialisation.

What comes in: images (batch, 3, height, width), ImageNet-normalised, 64 pixels as published. What goes out:
(batch, features), or (batch, num_classes). Sources: He et al. 2016 (https://arxiv.org/abs/1512.03385), Simonyan &
Zisserman 2015 (https://arxiv.org/abs/1409.1556).
"""

from torch import nn
from torchvision import models

RESNET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
VGG_FIT_LAYERS = (
    "features.4", "features.9", "features.16", "features.23", "features.30", "classifier.1", "classifier.4",
)  # fmt: skip
# The indices above are the non-BN network's; these are the same layers of the one with batch norm.
VGG_BN_FIT_LAYERS = (
    "features.6", "features.13", "features.23", "features.33", "features.43", "classifier.1", "classifier.4",
)  # fmt: skip


def resnet(depth: int, num_classes: int = 1000, avgpool: bool = True) -> nn.Module:
    """A ResNet of 18, 34, 50, 101 or 152 layers.

    Args:
        num_classes: outputs of the last linear layer; 0 leaves it out.
        avgpool: average the last map; without it and without classes the map itself is the output, flattened.
    """
    model = models.get_model(f"resnet{depth}", weights=None, num_classes=num_classes or 1000)
    if not num_classes:
        model.fc = nn.Identity()
    if not avgpool:
        if num_classes:
            raise ValueError("a ResNet with classes needs its average pool; give num_classes=0 with avgpool=false")
        model.avgpool = nn.Identity()
    return model


def resnet_fit_layers(depth: int) -> tuple[str, ...]:
    """The first ReLU and pool, every block, and the average pool."""
    blocks = [f"layer{stage}.{n}" for stage, count in enumerate(RESNET_BLOCKS[depth], 1) for n in range(count)]
    return ("relu", "maxpool", *blocks, "avgpool")


def vgg16(batch_norm: bool = False, num_classes: int = 1000) -> nn.Module:
    """VGG16; without classes the output is the second hidden layer (batch, 4096), after its dropout."""
    model = models.get_model("vgg16_bn" if batch_norm else "vgg16", weights=None, num_classes=num_classes or 1000)
    if not num_classes:
        model.classifier = model.classifier[:-1]
    return model
