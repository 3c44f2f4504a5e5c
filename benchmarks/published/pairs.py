"""Each published model beside ours: both built, given the same weights, and asked for the same responses.

What comes in: a name of `PAIRS`, and whether the small size of both is wanted. What goes out: modules, inputs at random
(stimuli (batch, channels[, frames], height, width), behavior (batch, K[, frames]), pupil_center (batch, 2[, frames])),
and what a module answers to them. All are whole models: core, readouts, shifters, output. DwiseNeuro and Dynamic-VFM
have ten animals, as more than one of them is computed there at a time; the others have the first.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.published_neuralpredictors import from_published as from_neuralpredictors
from pretrain.published_v1t import core_from_published
from transfer.encoder import Encoder
from transfer.encoder_spec import AnimalFacts
from transfer.published_encoders import create_encoder

from .dwiseneuro import PlainDwiseNeuro
from .dynamic_vfm import PlainDynamicVFM
from .encoder import NEURONS, PlainEncoder, PlainGaussian
from .factorized3d import published_factorized3d
from .gru_baseline import published_gru_rotation_equivariant
from .v1t import published_v1t
from .viv1t import published_viv1t, published_viv1t_closed_loop

# So much is added to all weights: biases of zero and features that are all alike would hide differences.
PERTURBATION = 0.02
FIRST_ANIMAL = "animal0"
# Of V1T's mouse A.
IMAGE_NEURONS = (8372,)
Signals = tuple[Tensor, Tensor, Tensor]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """A published model and ours.

    `small_ours` and `small_theirs` are arguments for the small size, `shape` and `small_shape` what the stimuli have
    but for the batch, `behavior` counts its channels and `batch` is the published one. `renamed` gives their state
    dict our names; `ask_theirs` gives what it answers, of all animals that it computes.
    """

    theirs: Callable[..., nn.Module]
    ours: Callable[..., nn.Module]
    renamed: Callable[[State], State]
    shape: tuple[int, ...]
    batch: int
    small_theirs: Mapping[str, object]
    small_ours: Mapping[str, object]
    small_shape: tuple[int, ...]
    behavior: int = 2
    ask_theirs: Callable[[nn.Module, Signals], list[Tensor]] = lambda model, signals: [model(*signals)]

    def build(self, side: str, small: bool) -> nn.Module:
        """Ours or theirs, always with the same weights."""
        torch.manual_seed(0)
        theirs = self.theirs(**(self.small_theirs if small else {}))
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=PERTURBATION * parameter.requires_grad)
        if side == "theirs":
            return theirs
        ours = self.ours(**(self.small_ours if small else {}))
        ours.load_state_dict(self.renamed(theirs.state_dict()))
        return ours

    def signals(self, batch: int, small: bool) -> Signals:
        """Stimuli, behaviour and pupil centre, N(0, 1)."""
        channels, *frames, height, width = self.small_shape if small else self.shape
        generator = torch.Generator().manual_seed(1)
        shapes = (channels, *frames, height, width), (self.behavior, *frames), (2, *frames)
        return tuple(torch.randn(batch, *shape, generator=generator) for shape in shapes)

    def ask(self, side: str, model: nn.Module, signals: Signals) -> list[Tensor]:
        """Responses; the first are those of the animal that is shown the stimuli."""
        return (ask_encoder if side == "ours" else self.ask_theirs)(model, signals)


def loss_of(answers: list[Tensor]) -> Tensor:
    """What is differentiated; animals that are not shown the stimuli count with a weight of 0, as in DwiseNeuro."""
    first, *others = (answer.square().mean() for answer in answers)
    return first + sum(0.0 * other for other in others)


def without_dropping(model: nn.Module) -> nn.Module:
    """Evaluation, but for batch norm: fresh running statistics would leave activations at any scale."""
    model.eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    return model


def ours(name: str, behavior: int = 2, neurons: Sequence[int] = NEURONS[:1], **core: object) -> Encoder:
    """Our published encoder of this name, with other sizes of the core where they are given."""
    size = core.get("input_size") or core.get("image_size") or (36, 64)
    animals = {
        f"animal{number}": AnimalFacts(
            count, size, behavior_channels=behavior, pupil_channels=2, coordinates=torch.rand(count, 2)
        )
        for number, count in enumerate(neurons)
    }
    return create_encoder(name, animals, core_arguments=core)


def theirs(
    core: Callable[..., nn.Module],
    neurons: Sequence[int] = NEURONS[:1],
    init_sigma: float = 1.0,
    state: bool = False,
    exponential: bool = False,
    **sizes: object,
) -> PlainEncoder:
    """A published core with the Gaussian readout of one animal."""
    made = core(**sizes)
    readout = PlainGaussian(made.out_channels, *neurons, init_sigma=init_sigma, state=state)
    return PlainEncoder(made, FIRST_ANIMAL, readout, exponential)


def published_dynamic_vfm(neurons: tuple[int, ...] = NEURONS, **sizes: object) -> PlainDynamicVFM:
    return PlainDynamicVFM({f"animal{number}": count for number, count in enumerate(neurons)}, **sizes)


def planes_of(video: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
    """The video in the middle of 64 x 64 zeros, and a plane for each scalar, as DwiseNeuro is shown them."""
    planes = video.new_zeros(len(video), 5, video.shape[2], 64, 64)
    top, left = (64 - video.shape[3]) // 2, (64 - video.shape[4]) // 2
    planes[:, :1, :, top : top + video.shape[3], left : left + video.shape[4]] = video
    planes[:, 1:] = torch.cat((behavior, pupil_center), 1)[..., None, None]
    return planes


def by_patterns(*patterns: tuple[str, str]) -> Callable[[State], State]:
    """Renames by the first regular expression that fits the whole name; None for what is left out."""

    def our_name(name: str) -> str | None:
        for pattern, ours in patterns:
            if found := re.fullmatch(pattern, name):
                return found.expand(ours) if ours else None
        return name

    return lambda state: {ours: value for name, value in state.items() if (ours := our_name(name))}


def of_core(rename: Callable[[State], State]) -> Callable[[State], State]:
    """Renames a core alone: readouts and shifters have our names there."""

    def renamed(state: State) -> State:
        core = rename({name.removeprefix("core."): value for name, value in state.items() if name.startswith("core.")})
        others = {name: value for name, value in state.items() if not name.startswith("core.")}
        return others | {f"core.{name}": value for name, value in core.items()}

    return renamed


def from_neuralpredictors_core(state: State) -> State:
    """The published names below `core.`; those of a GRU have their own place already."""
    whole = state if "gru_module.gru.reset_gate_input.weight" in state else {f"core.{n}": v for n, v in state.items()}
    return {name.removeprefix("core."): value for name, value in from_neuralpredictors(whole).items()}


def ask_encoder(encoder: Encoder, signals: Signals) -> list[Tensor]:
    stimuli, behavior, pupil_center = signals
    return [encoder(stimuli, FIRST_ANIMAL, behavior, pupil_center)]


DWISENEURO_NAMES = by_patterns(
    (r"stem\.0\.(.+)", r"core.stem.\1"),
    (r"stem\.1\.(.+)", r"core.stem.norm.\1"),
    (r"blocks\.(\d+)\.conv_pw\.0\.(.+)", r"core.blocks.\1.expand.\2"),
    (r"blocks\.(\d+)\.conv_pw\.1\.(.+)", r"core.blocks.\1.expand.norm.\2"),
    (r"blocks\.(\d+)\.spat_conv_dw\.0\.(.+)", r"core.blocks.\1.spatial.\2"),
    (r"blocks\.(\d+)\.spat_conv_dw\.1\.(.+)", r"core.blocks.\1.spatial.norm.\2"),
    (r"blocks\.(\d+)\.temp_conv_dw\.0\.(.+)", r"core.blocks.\1.temporal.\2"),
    (r"blocks\.(\d+)\.temp_conv_dw\.1\.(.+)", r"core.blocks.\1.temporal.norm.\2"),
    (r"blocks\.(\d+)\.conv_(reduce|expand)\.(.+)", r"core.blocks.\1.gate.\2.\3"),
    (r"blocks\.(\d+)\.conv_pwl\.0\.(.+)", r"core.blocks.\1.project.\2"),
    (r"blocks\.(\d+)\.conv_pwl\.1\.(.+)", r"core.blocks.\1.project.norm.\2"),
    (r"blocks\.(\d+)\.bn_sc\.(.+)", r"core.blocks.\1.shortcut_norm.\2"),
    (r"cortex\.(\d+)\.conv\.(.+)", r"core.cortex.\1.conv.\2"),
    (r"cortex\.(\d+)\.bn\.(.+)", r"core.cortex.\1.norm.\2"),
    (r"cortex\.(\d+)\.bn_sc\.(.+)", r"core.cortex.\1.shortcut_norm.\2"),
    (r"readouts\.(\d+)\.conv\.(.+)", r"readouts.animal\1.layer.1.\2"),
)
DYNAMIC_VFM_NAMES = by_patterns(
    (r"proj\.(.+)", r"core.embed.\1"),
    (r"norm\.(.+)", r"core.embed_norm.\1"),
    (r".+\.relative_position_index", ""),
    (r"readouts\.\w+\.fuse\..+", ""),
    (r"blocks\.(\d+)\.attention\.(.+)", r"core.blocks.\1.attention.\2"),
    (r"blocks\.(\d+)\.behavior\.(.+)", r"core.blocks.\1.behavior.layers.\2"),
    (r"blocks\.(\d+)\.linear1\.(.+)", r"core.blocks.\1.mlp.expand.\2"),
    (r"blocks\.(\d+)\.conv\.(.+)", r"core.blocks.\1.mlp.conv.\2"),
    (r"blocks\.(\d+)\.linear2\.(.+)", r"core.blocks.\1.mlp.project.\2"),
    *((rf"readouts\.(\w+)\.features\.{i}", rf"readouts.\1._features{2 ** (i + 1)}") for i in range(4)),
    *((rf"readouts\.(\w+)\.refine\.{i}\.(.+)", rf"readouts.\1.up_refine{2 ** (i + 1)}.\2") for i in range(4)),
)
SMALL_NEURONS = (40, 41)
SMALL_ONE = {"neurons": SMALL_NEURONS[:1]}
SMALL_VIV1T = SMALL_ONE | {
    "spatial_depth": 2, "temporal_depth": 2, "heads": 2, "head_dim": 6, "width": 12, "ff_dim": 10,
    "frames": 5, "patch": 4, "max_frames": 20,
}  # fmt: skip
SMALL_VFM = {"neurons": SMALL_NEURONS, "channels": 32, "blocks": 2, "heads": 2, "hidden": 24, "window": (4, 3, 3)}
SMALL_LAYERS = SMALL_ONE | {"channels": (4, 6, 5), "spatial_kernels": (7, 5, 3), "temporal_kernels": (5, 3, 3)}
SMALL_GRU = SMALL_ONE | {"features": 4, "layers": 2, "rotations": 4, "state_channels": 16}
SMALL_DWISENEURO = {
    "neurons": SMALL_NEURONS, "features": (16, 32), "strides": (2, 2), "cortex_features": (64, 128)
}  # fmt: skip

PAIRS = {
    "dwiseneuro": Pair(
        PlainDwiseNeuro, partial(ours, "dwiseneuro", neurons=NEURONS), DWISENEURO_NAMES, (1, 16, 36, 64), 32,
        SMALL_DWISENEURO, SMALL_DWISENEURO, (1, 8, 36, 64),
        ask_theirs=lambda model, signals: model(planes_of(*signals)),
    ),
    "viv1t": Pair(
        partial(theirs, published_viv1t, state=True, exponential=True), partial(ours, "viv1t"), of_core(dict),
        (1, 140, 36, 64), 6,
        {**SMALL_VIV1T, "stride": 3, "grid": (3, 4)},
        {**SMALL_VIV1T, "patch_stride": 3, "input_size": (10, 13)}, (1, 12, 10, 13),
    ),
    "viv1t_closed_loop": Pair(
        partial(theirs, published_viv1t_closed_loop), partial(ours, "viv1t_closed_loop"), of_core(dict),
        (1, 300, 36, 64), 1,
        {**SMALL_VIV1T, "stride": 3, "padding": (1, 2, 1, 1, 4, 0), "grid": (4, 5), "registers": 3},
        {**SMALL_VIV1T, "patch_stride": 3, "input_size": (11, 13), "registers": 3}, (1, 12, 11, 13),
    ),
    "dynamic_vfm": Pair(
        published_dynamic_vfm, partial(ours, "dynamic_vfm", neurons=NEURONS), DYNAMIC_VFM_NAMES, (1, 30, 36, 64), 32,
        SMALL_VFM, SMALL_VFM, (1, 12, 12, 16),
        ask_theirs=lambda model, signals: [model(*signals, FIRST_ANIMAL).transpose(1, 2)],
    ),
    "factorized3d": Pair(
        partial(theirs, published_factorized3d), partial(ours, "sensorium2023_factorized"),
        of_core(from_neuralpredictors_core), (1, 80, 36, 64), 8, SMALL_LAYERS, SMALL_LAYERS, (1, 14, 20, 24),
    ),
    "gru_rotation_equivariant": Pair(
        partial(theirs, published_gru_rotation_equivariant), partial(ours, "sensorium2023_gru"),
        of_core(from_neuralpredictors_core), (1, 80, 36, 64), 8,
        {**SMALL_GRU, "gru_kernels": (9, 5)}, {**SMALL_GRU, "input_kernel": 9, "state_kernel": 5}, (1, 40, 18, 19),
    ),
    "v1t": Pair(
        partial(theirs, published_v1t, neurons=IMAGE_NEURONS, init_sigma=0.1),
        partial(ours, "v1t", behavior=3, neurons=IMAGE_NEURONS),
        of_core(core_from_published), (1, 36, 64), 16,
        SMALL_ONE | {"image_size": (9, 14), "patch": 4, "width": 10, "depth": 2, "heads": 2, "hidden": 14},
        SMALL_ONE
        | {"image_size": (9, 14), "patch_size": 4, "emb_dim": 10, "num_blocks": 2, "num_heads": 2, "mlp_dim": 14},
        (1, 9, 14), behavior=3,
    ),
}  # fmt: skip
