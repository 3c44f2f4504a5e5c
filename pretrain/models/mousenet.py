"""MouseNet: 22 layers of mouse visual areas, joined by 49 convolutions that are sparse as the connectome is.

What comes in: images (batch, 3, height, width), ImageNet-normalised; 64 x 64 where nothing is pooled before the output.
What goes out: (batch, features), the read-out layers pooled and flattened, or (batch, num_classes). A layer is
ReLU(BN(sum of masked convolutions)); LGNv is the masked convolution of the image alone. Which weights of a convolution
exist is drawn once, with probability peak x exp(-r^2 / 2 sigma^2) at distance r from its centre. Source: Shi et al.
(bioRxiv 2020.10.23.353151, later https://doi.org/10.1371/journal.pcbi.1010427), in the form, with the constants and the
state-dict keys, of mouse-vision (Nayebi, Kong et al. 2023, https://doi.org/10.1371/journal.pcbi.1011506).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.multi_stream import Area

INPUT = "input"
CHANNELS = {
    "input": 3, "LGNv": 5, "VISp4": 22, "VISp2/3": 45, "VISl4": 9, "VISrl4": 7, "VISli4": 4, "VISpl4": 8, "VISal4": 22,
    "VISpor4": 14, "VISp5": 40, "VISl2/3": 22, "VISrl2/3": 17, "VISli2/3": 10, "VISpl2/3": 18, "VISal2/3": 52,
    "VISpor2/3": 34, "VISl5": 18, "VISrl5": 14, "VISli5": 8, "VISpl5": 18, "VISal5": 53, "VISpor5": 28,
}  # fmt: skip
# (source, target, peak, sigma in pixels of the source), in the published order of creation and of summation.
CONNECTIONS = (
    ("input", "LGNv", 1, 4),
    ("LGNv", "VISp4", 1, 1),
    ("VISp4", "VISp2/3", 0.1618247181204468, 4.373461393573715),
    ("VISp4", "VISl4", 0.034912195639630085, 9.829922101651555),
    ("VISp4", "VISrl4", 0.037577178073911185, 9.62647371280456),
    ("VISp4", "VISli4", 0.037449852426863633, 9.312342560678996),
    ("VISp4", "VISpl4", 0.037737549420137274, 9.122277123908836),
    ("VISp4", "VISal4", 0.04582299564985576, 8.698111152169682),
    ("VISp4", "VISpor4", 0.015624046737049343, 8.68917420147244),
    ("VISp2/3", "VISp5", 0.16733836379893013, 1.875687381575286),
    ("VISp2/3", "VISl4", 0.0357372249704897, 9.648758580007351),
    ("VISp2/3", "VISrl4", 0.02971095178107225, 10.051600895829274),
    ("VISp2/3", "VISli4", 0.042097917460472346, 8.982344127733013),
    ("VISp2/3", "VISpl4", 0.044107426612921594, 8.417906307424047),
    ("VISp2/3", "VISal4", 0.05825007824673881, 7.881177496505771),
    ("VISp2/3", "VISpor4", 0.011840275898830133, 9.10446893778518),
    ("VISl4", "VISl2/3", 0.1618247181204468, 4.908689853497773),
    ("VISl4", "VISpor4", 0.02228886519414421, 7.210773738657816),
    ("VISrl4", "VISrl2/3", 0.1618247181204468, 5.757328262821668),
    ("VISrl4", "VISpor4", 0.10329409855623324, 4.017319565911084),
    ("VISli4", "VISli2/3", 0.1618247181204468, 8.166830772572673),
    ("VISli4", "VISpor4", 0.018471083439349053, 9.09279040974996),
    ("VISpl4", "VISpl2/3", 0.1618247181204468, 8.58362181881933),
    ("VISpl4", "VISpor4", 0.07510132356117454, 1.3667550904906651),
    ("VISal4", "VISal2/3", 0.1618247181204468, 6.43880724752149),
    ("VISal4", "VISpor4", 0.22673891001537122, 1.7552967865784397),
    ("VISpor4", "VISpor2/3", 0.1618247181204468, 6.233913519810125),
    ("VISp5", "VISl4", 0.03388534685980559, 9.751817168318247),
    ("VISp5", "VISrl4", 0.033449050398161526, 9.74783302631345),
    ("VISp5", "VISli4", 0.03439205629544149, 9.838764315797347),
    ("VISp5", "VISpl4", 0.04282976789181918, 8.709977858622878),
    ("VISp5", "VISal4", 0.05152652598864332, 7.482449550640896),
    ("VISp5", "VISpor4", 0.012734222793549202, 9.33667743711479),
    ("VISl2/3", "VISl5", 0.16733836379893013, 2.144073754616868),
    ("VISl2/3", "VISpor4", 0.015374443484884934, 7.128501966356189),
    ("VISrl2/3", "VISrl5", 0.16733836379893013, 2.43908311658361),
    ("VISrl2/3", "VISpor4", 0.08197499618177426, 4.0596254132643175),
    ("VISli2/3", "VISli5", 0.16733836379893013, 3.1801753087496003),
    ("VISli2/3", "VISpor4", 0.019500176808407967, 8.500519928431299),
    ("VISpl2/3", "VISpl5", 0.16733836379893013, 2.5469288681099593),
    ("VISpl2/3", "VISpor4", 0.0502379863688434, 2.3936095353633857),
    ("VISal2/3", "VISal5", 0.16733836379893013, 2.756878958780832),
    ("VISal2/3", "VISpor4", 1.2581895617439574, 0.6014396216421058),
    ("VISpor2/3", "VISpor5", 0.16733836379893013, 1.724692214155501),
    ("VISl5", "VISpor4", 0.020882959846672787, 7.549486682662879),
    ("VISrl5", "VISpor4", 0.08328209629620217, 4.306473892530217),
    ("VISli5", "VISpor4", 0.038070707825689616, 7.820253760755574),
    ("VISpl5", "VISpor4", 0.08320538639455688, 2.1374090891846036),
    ("VISal5", "VISpor4", 1.1923705757318432, 0.6768369853389479),
)
HIGHER_AREAS = ("VISal", "VISpl", "VISli", "VISrl", "VISl", "VISpor")
# In the order of evaluation.
FIT_LAYERS = (
    "LGNv", "VISp4", "VISp2/3", "VISp5", *(f"{area}{layer}" for area in HIGHER_AREAS for layer in ("4", "2/3", "5"))
)  # fmt: skip
AREAS = {layer: layer.rstrip("2/345") for layer in FIT_LAYERS if layer != "LGNv"}
OUTPUTS = ("VISp5", "VISl5", "VISrl5", "VISli5", "VISpl5", "VISal5", "VISpor5")
POOL_SIZE = 4
INPUT_SIZE = 64


class MaskedConv2d(nn.Conv2d):
    """A convolution of which only the weights under a fixed random mask exist.

    Args:
        inputs, outputs: channels.
        peak, sigma: of the Gaussian probability that a weight exists; the kernel reaches `int(sigma)` pixels.
        stride: 1, or 2 where the image is halved; then one row and column of padding less is on the left and top.
        random: where the mask is drawn from.
    """

    def __init__(
        self, inputs: int, outputs: int, peak: float, sigma: float, stride: int, random: np.random.RandomState
    ) -> None:
        reach = int(sigma)
        kernel = 2 * reach + 1
        super().__init__(inputs, outputs, kernel, stride)
        before = reach - (stride - 1)
        self.border = (before, reach, before, reach)
        offset = np.arange(-reach, reach + 1)
        squared = offset[:, None] ** 2 + offset[None, :] ** 2
        probability = peak * np.exp(-squared / (2 * sigma**2))
        mask = random.random_sample((outputs, inputs, kernel, kernel)) < probability
        self.mask = nn.Parameter(torch.tensor(mask, dtype=torch.float32), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(F.pad(images, self.border), self.weight * self.mask, self.bias, self.stride)


class MouseNet(nn.Module):
    """All 22 layers, read out from some of them.

    Args:
        outputs: layers that are read out; the first one comes last in the output, as published.
        pool_size: side of the grid that each of them is pooled to; 0 for no pooling, which needs 64 x 64 images.
        num_classes: outputs of the last linear layer; 0 leaves it out, as in label-free training.
        mask_seed: seed of the masks, which are part of the network as its weights are.
    """

    def __init__(
        self,
        outputs: Sequence[str] = OUTPUTS,
        pool_size: int = POOL_SIZE,
        num_classes: int = 1000,
        mask_seed: int = 0,
    ) -> None:
        super().__init__()
        for name in outputs:
            if name not in FIT_LAYERS:
                raise ValueError(f"outputs must be layers of MouseNet ({', '.join(FIT_LAYERS)}), found {name!r}")
        self.outputs, self.pool_size = tuple(outputs), pool_size
        random = np.random.RandomState(mask_seed)
        self.Convs = nn.ModuleDict(
            {
                f"{source}_{target}": MaskedConv2d(
                    CHANNELS[source], CHANNELS[target], peak, sigma, stride_between(source, target), random
                )
                for source, target, peak, sigma in CONNECTIONS
            }
        )
        targets = dict.fromkeys(target for _, target, _, _ in CONNECTIONS)
        self.BNs = nn.ModuleDict({target: nn.BatchNorm2d(CHANNELS[target]) for target in targets})
        for layer in FIT_LAYERS:
            self.add_module(layer, Area())
        features = sum(CHANNELS[name] * (pool_size or map_side(name)) ** 2 for name in outputs)
        self.classifier = nn.Sequential(nn.Linear(features, num_classes)) if num_classes else nn.Identity()

    @property
    def unused_parameters(self) -> tuple[str, ...]:
        """Parameters that the output does not depend on: LGNv's batch norm, and layers that lead to no output."""
        read = set(self.outputs)
        for source, target, _, _ in reversed(CONNECTIONS * len(FIT_LAYERS)):
            if target in read:
                read.add(source)
        unread = [f"Convs.{source}_{target}." for source, target, _, _ in CONNECTIONS if target not in read]
        unread += ["BNs.LGNv.", *(f"BNs.{layer}." for layer in FIT_LAYERS if layer not in read)]
        return tuple(name for name, _ in self.named_parameters() if name.startswith(tuple(unread)))

    def activations(self, images: Tensor) -> dict[str, Tensor]:
        """Activation (batch, channels, height, width) of every layer."""
        found = {INPUT: images}
        for layer in FIT_LAYERS:
            total = sum(
                self.Convs[f"{source}_{target}"](found[source])
                for source, target, _, _ in CONNECTIONS
                if target == layer
            )
            # LGNv has a batch norm in the published state dict, which its forward pass leaves out.
            activation = total if layer == "LGNv" else F.relu(self.BNs[layer](total))
            found[layer] = getattr(self, layer)(activation)
        return found

    def forward(self, images: Tensor) -> Tensor:
        if not self.pool_size and images.shape[2:] != (INPUT_SIZE, INPUT_SIZE):
            raise ValueError(
                f"MouseNet without pooling (pool_size=0) takes {INPUT_SIZE} x {INPUT_SIZE} images, found "
                f"{images.shape[2]} x {images.shape[3]}; give pool_size=4 for other sizes"
            )
        found = self.activations(images)
        pooled = [self.pooled(found[name]).flatten(1) for name in reversed(self.outputs)]
        return self.classifier(torch.cat(pooled, 1))

    def pooled(self, activation: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(activation, self.pool_size) if self.pool_size else activation


def stride_between(source: str, target: str) -> int:
    """2 from VISp to the higher areas, whose maps are half as wide."""
    return 2 if AREAS.get(source) == "VISp" and AREAS[target] != "VISp" else 1


def map_side(layer: str) -> int:
    """Height and width of a layer's map where the image is 64 x 64."""
    return INPUT_SIZE if AREAS.get(layer, "VISp") == "VISp" else INPUT_SIZE // 2


def mousenet_vispor5(**kwargs) -> MouseNet:
    """MouseNet read out from layer 5 of VISpor alone, not pooled."""
    return MouseNet(**{"outputs": ("VISpor5",), "pool_size": 0, **kwargs})
