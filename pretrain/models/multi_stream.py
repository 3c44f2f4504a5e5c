"""Networks of parallel streams of mouse visual areas: one, two or six between VISp and the areas that are read out.

What comes in: images (batch, 3, height, width), 32 to 224 pixels, ImageNet-normalised. What goes out: (batch, output
areas x 256 x 36), or (batch, num_classes) with the last linear layer. Every edge of the graph of areas ends in a ReLU
or pool, and an area is the sum of the edges that enter it. Source: the "simplified MouseNet" of mouse-vision (Nayebi,
Kong et al. 2023, https://doi.org/10.1371/journal.pcbi.1011506), whose state-dict keys and order of creation these are.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce

import torch
from torch import Tensor, nn

from pretrain.models.sync_norm import SyncBatchNorm

INPUT = "input"
SKIP_SOURCE = "VISp"
VISUAL_CHANNELS, STREAM_CHANNELS, OUTPUT_CHANNELS = 64, 384, 256
POOL_SIZE = 6
# Below this side VISp has fewer than the 3 x 3 places that what follows it needs.
SMALLEST_SIDE = 31
OUTPUT_AREAS = ("VISpor", "VISam")
NORMS = {"batch": nn.BatchNorm2d, "sync_batch": SyncBatchNorm, "none": None}

SINGLE_STREAMS = ("ventral",)
DUAL_STREAMS = ("ventral", "dorsal")
SIX_STREAMS = ("VISl", "VISrl", "VISal", "VISli", "VISpm", "VISpl")

# The areas that mouse-vision fits to neurons, in its order.
SINGLE_FIT_LAYERS = ("VISp", "ventral", "VISpor")
DUAL_FIT_LAYERS = ("VISp", "ventral", "dorsal", "VISpor", "VISam")
SIX_FIT_LAYERS = ("VISp", "VISal", "VISli", "VISl", "VISrl", "VISpl", "VISpm", "VISpor", "VISam")
# The area that a layer models; "ventral" and "dorsal" stand for several at once, and so are not here.
AREAS = {area: area for area in (SKIP_SOURCE, *SIX_STREAMS, *OUTPUT_AREAS)}


class Area(nn.Module):
    """The activation of one area, under whose name hooks find it: the sum of what its incoming edges give."""

    def forward(self, *incoming: Tensor) -> Tensor:
        # Not in place: the first summand is a ReLU's output, which its gradient needs.
        return reduce(torch.add, incoming)


class MultiStream(nn.Module):
    """A graph of areas, read out from the last ones.

    Args:
        streams: names of the parallel areas between VISp and the built output areas, in their order of creation.
        outputs: output areas that are read out, concatenated in this order.
        built: output areas that exist; those not read out are fitted to nothing, as published ("VISpor only").
        skip: how VISp reaches the output areas directly: "conv", 3 x 3 with stride 2, or "pool", 1 x 1 and max pool.
        norm: "batch", "sync_batch" (over all processes) or "none", after every convolution.
        num_classes: outputs of the last linear layer; 0 leaves it out, as in label-free training.
        dropout: probability before that layer.
    """

    def __init__(
        self,
        streams: Sequence[str],
        outputs: Sequence[str] = OUTPUT_AREAS,
        built: Sequence[str] = OUTPUT_AREAS,
        skip: str = "conv",
        norm: str = "batch",
        num_classes: int = 1000,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        require_known(skip, ("conv", "pool"), "skip")
        require_known(norm, tuple(NORMS), "norm")
        for area in built:
            require_known(area, OUTPUT_AREAS, "built")
        for area in outputs:
            require_known(area, tuple(built), "outputs")
        if not outputs:
            raise ValueError(f"outputs must name at least one of {', '.join(built)}, found none")
        self.outputs = tuple(outputs)
        self.edges = tuple(edges_between(tuple(streams), tuple(built)))
        self.model_layers = nn.ModuleDict(
            {f"{source}_{target}": edge_block(source, target, skip, NORMS[norm]) for source, target in self.edges}
        )
        for area in self.areas():
            self.add_module(area, Area())
        self.avgpool = nn.AdaptiveAvgPool2d((POOL_SIZE, POOL_SIZE))
        self.classifier = classifier(self.feature_count, num_classes, dropout)

    @property
    def feature_count(self) -> int:
        """Length of the flattened output areas."""
        return len(self.outputs) * OUTPUT_CHANNELS * POOL_SIZE**2

    @property
    def unused_parameters(self) -> tuple[str, ...]:
        """Parameters that the output does not depend on: those of output areas that are not read out."""
        unread = tuple(
            f"model_layers.{source}_{target}."
            for source, target in self.edges
            if self.is_output(target) and target not in self.outputs
        )
        return tuple(name for name, _ in self.named_parameters() if name.startswith(unread))

    def is_output(self, area: str) -> bool:
        """Whether nothing else takes its input from this area."""
        return all(source != area for source, _ in self.edges)

    def areas(self) -> list[str]:
        """Names of the areas, each after those that it takes its input from."""
        targets = dict.fromkeys(target for _, target in self.edges)
        return sorted(targets, key=self.is_output)

    def activations(self, images: Tensor, run_edge: Callable[[str, Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """Activation (batch, channels, height, width) of every area, of the images as `input` too.

        Args:
            images: (batch, 3, height, width).
            run_edge: gives an edge's output, from the edge's name and its source's activation; the edge itself if None.

        Raises:
            ValueError: images too small for the pools.
        """
        if min(images.shape[2:]) < SMALLEST_SIDE:
            size = " x ".join(map(str, images.shape[2:]))
            raise ValueError(f"a multi-stream network takes images from {SMALLEST_SIDE} pixels a side, found {size}")
        run_edge = run_edge or (lambda edge, activation: self.model_layers[edge](activation))
        found = {INPUT: images}
        for area in self.areas():
            sources = [source for source, target in self.edges if target == area]
            found[area] = getattr(self, area)(*(run_edge(f"{source}_{area}", found[source]) for source in sources))
        return found

    def forward(self, images: Tensor) -> Tensor:
        found = self.activations(images)
        return self.classifier(self.avgpool(torch.cat([found[area] for area in self.outputs], 1)))


def require_known(value: str, allowed: Sequence[str], name: str) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, found {value!r}")


def edges_between(streams: Sequence[str], built: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(source, target) of every edge, in the published order of creation."""
    yield INPUT, SKIP_SOURCE
    yield from ((SKIP_SOURCE, stream) for stream in streams)
    yield from ((SKIP_SOURCE, output) for output in built)
    # Streams reach the output areas in the opposite order to the skips.
    yield from ((stream, output) for stream in streams for output in reversed(built))


def edge_block(source: str, target: str, skip: str, norm: type[nn.Module] | None) -> nn.Sequential:
    """The layers of one edge."""
    convolved = partial(convolution, norm=norm)
    if source == INPUT:
        return nn.Sequential(*convolved(3, VISUAL_CHANNELS, 11, stride=4, padding=2), max_pool())
    if source != SKIP_SOURCE:
        return nn.Sequential(*convolved(STREAM_CHANNELS, OUTPUT_CHANNELS, 3, padding=1))
    if target not in OUTPUT_AREAS:
        return nn.Sequential(
            *convolved(VISUAL_CHANNELS, 192, 5, padding=2), max_pool(), *convolved(192, STREAM_CHANNELS, 3, padding=1)
        )
    if skip == "conv":
        return nn.Sequential(*convolved(VISUAL_CHANNELS, OUTPUT_CHANNELS, 3, stride=2))
    return nn.Sequential(*convolved(VISUAL_CHANNELS, OUTPUT_CHANNELS, 1), max_pool())


def convolution(
    inputs: int, outputs: int, kernel: int, norm: type[nn.Module] | None, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    """Convolution, norm if there is one, and ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, padding)]
    return [*layers, *([norm(outputs)] if norm else []), nn.ReLU(inplace=True)]


def max_pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size=3, stride=2)


def classifier(features: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Flatten, and the last linear layer where classes are wanted."""
    if not num_classes:
        return nn.Sequential(nn.Flatten())
    return nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(features, num_classes))


def single_stream(**kwargs) -> MultiStream:
    """One stream, read out from VISpor alone; VISam is not built."""
    return MultiStream(SINGLE_STREAMS, **{"outputs": ("VISpor",), "built": ("VISpor",), **kwargs})


def dual_stream(**kwargs) -> MultiStream:
    """A ventral and a dorsal stream."""
    return MultiStream(DUAL_STREAMS, **kwargs)


def six_stream(**kwargs) -> MultiStream:
    """A stream for each of six higher visual areas."""
    return MultiStream(SIX_STREAMS, **kwargs)
