"""SimCLR's views as users of torchvision make them, for benchmarks that run beside ours.

What comes in: the side of the views, the mean and the standard deviation. What goes out: a transform of uint8 images
(3, height, width), or of clips (frames, 3, height, width), all frames alike.
"""

import torch
from torchvision.transforms import v2


def simclr_transform(size: int, mean: list[float], std: list[float]) -> v2.Compose:
    """Parameters of SimCLR (Chen et al., 2020), as `murine pretrain recipe=alexnet_bn_simclr` has them."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
