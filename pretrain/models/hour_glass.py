"""Hour-glasses: a network of streams, and its mirror image that brings the code back to an image.

What comes in: images (batch, 3, height, width) of any height and width from 31 pixels. What goes out: a dictionary of
`output` (batch, 3, height, width), `hidden_vec` (batch, compressed) and `encoder_output` (batch, output areas x 256 x
36). Each edge runs backwards: transposed convolutions, and unpooling where the encoder's maxima were; an area is the
sum of the mirrored edges that enter it. Source: the autoencoders and depth predictors of mouse-vision (Nayebi, Kong
et al. 2023, https://doi.org/10.1371/journal.pcbi.1011506), whose state-dict keys these are.

Windows of a pool overlap and can share a maximum. Unpooling then keeps one of the values that meet there, on CUDA not
always the same one, so that a step on CUDA can give slightly different numbers when it is repeated.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.multi_stream import (
    DUAL_STREAMS,
    INPUT,
    OUTPUT_AREAS,
    OUTPUT_CHANNELS,
    POOL_SIZE,
    SINGLE_STREAMS,
    SIX_STREAMS,
    MultiStream,
)

FORMS = {
    "single_stream": (SINGLE_STREAMS, ("VISpor",)),
    "dual_stream": (DUAL_STREAMS, OUTPUT_AREAS),
    "six_stream": (SIX_STREAMS, OUTPUT_AREAS),
}


@dataclass(frozen=True)
class Passed:
    """What the mirror of a layer needs: the height and width that went in, and where a pool found its maxima."""

    size: tuple[int, int]
    maxima: Tensor | None = None


class HourGlass(MultiStream):
    """A multi-stream network with batch norm and its mirror image.

    Args:
        streams, built: as in `MultiStream`; all output areas are read out.
        compressed: length of `hidden_vec` between two linear layers; 0 for none, as depth prediction has it.
        norm: "batch" or "sync_batch".
    """

    def __init__(
        self,
        streams: Sequence[str],
        built: Sequence[str] = OUTPUT_AREAS,
        compressed: int = 128,
        norm: str = "batch",
    ) -> None:
        if compressed < 0:
            raise ValueError(f"compressed must be 0 (no linear layers) or above, found {compressed}")
        super().__init__(streams, outputs=built, built=built, norm=norm, num_classes=0)
        features = self.feature_count
        self.compress_fc = nn.Linear(features, compressed) if compressed else nn.Identity()
        self.decompress_fc = nn.Linear(compressed, features) if compressed else nn.Identity()
        self.decoder_layers = nn.ModuleDict(
            {
                f"{target}_{source}": mirrored(self.model_layers[f"{source}_{target}"])
                for source, target in reversed(self.edges)
            }
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        passed: dict[str, list[Passed]] = {}

        def run_edge(edge: str, activation: Tensor) -> Tensor:
            activation, passed[edge] = run_forwards(self.model_layers[edge], activation)
            return activation

        found = self.activations(images, run_edge)
        read_out = torch.cat([found[area] for area in self.outputs], 1)
        code = self.classifier(self.avgpool(read_out))
        hidden = self.compress_fc(code)
        grid = self.decompress_fc(hidden).unflatten(1, (-1, POOL_SIZE, POOL_SIZE))
        grid = F.adaptive_avg_pool2d(grid, read_out.shape[2:])
        blocks = dict(zip(self.outputs, grid.split(OUTPUT_CHANNELS, 1), strict=True))
        return {"output": self.decode(blocks, passed), "hidden_vec": hidden, "encoder_output": code}

    def decode(self, blocks: dict[str, Tensor], passed: dict[str, list[Passed]]) -> Tensor:
        """Image (batch, 3, height, width) from the blocks of the output areas."""
        found = dict(blocks)
        for source, target in reversed(self.edges):
            mirror = self.decoder_layers[f"{target}_{source}"]
            image = run_backwards(mirror, found[target], passed[f"{source}_{target}"])
            found[source] = found[source] + image if source in found else image
        return found[INPUT]


def mirrored(block: nn.Sequential) -> nn.Sequential:
    """The layers of an edge in opposite order and direction."""
    return nn.Sequential(*(mirrored_layer(layer) for layer in reversed(block)))


def mirrored_layer(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return nn.ConvTranspose2d(layer.out_channels, layer.in_channels, layer.kernel_size, layer.stride, layer.padding)
    if isinstance(layer, nn.MaxPool2d):
        return nn.MaxUnpool2d(layer.kernel_size, layer.stride, layer.padding)
    # Not in place: two mirrored edges can start from the same activation.
    return nn.ReLU() if isinstance(layer, nn.ReLU) else copy.deepcopy(layer)


def run_forwards(block: nn.Sequential, activation: Tensor) -> tuple[Tensor, list[Passed]]:
    """An edge's output, and what each of its layers passed."""
    passed = []
    for layer in block:
        size, maxima = tuple(activation.shape[2:]), None
        if isinstance(layer, nn.MaxPool2d):
            activation, maxima = F.max_pool2d(activation, layer.kernel_size, layer.stride, return_indices=True)
        else:
            activation = layer(activation)
        passed.append(Passed(size, maxima))
    return activation, passed


def run_backwards(mirror: nn.Sequential, activation: Tensor, passed: list[Passed]) -> Tensor:
    """The mirrored edge's output, in the sizes that the encoder's layers had."""
    for layer, forwards in zip(mirror, reversed(passed), strict=True):
        if isinstance(layer, nn.ConvTranspose2d):
            activation = layer(activation, output_size=forwards.size)
        elif isinstance(layer, nn.MaxUnpool2d):
            activation = layer(activation, forwards.maxima, output_size=forwards.size)
        else:
            activation = layer(activation)
    return activation


def hour_glass(form: str, compressed: int = 128, **kwargs) -> HourGlass:
    """The hour-glass of "single_stream", "dual_stream" or "six_stream"; `compressed=0` is the depth predictor."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, found {form!r}")
    streams, built = FORMS[form]
    return HourGlass(streams, built, compressed, **kwargs)
