"""Cores of encoding models by name: what turns images or video into features that readouts of neurons look at.

What comes in: a name, and constructor arguments; the defaults are the published sizes. What goes out: an `nn.Module`,
`core(stimuli, behavior=None, pupil_center=None, animal=None)`, and the facts about it. Images are (batch, channels,
height, width), video is (batch, channels, time, height, width), and features have the axes of what came in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from pretrain.models.backbone_core import backbone_core
from pretrain.models.dwiseneuro import DwiseNeuro
from pretrain.models.dynamic_vfm import DynamicVFM
from pretrain.models.factorized3d import Factorized3d
from pretrain.models.full3d import Full3d
from pretrain.models.gru_baseline import gru_rotation_equivariant, gru_stacked2d
from pretrain.models.rotation_equivariant import RotationEquivariant2d
from pretrain.models.stacked2d import Stacked2d
from pretrain.models.v1t import V1T
from pretrain.models.viv1t import viv1t, viv1t_closed_loop


@dataclass(frozen=True)
class CoreInfo:
    """What a user of a core must know.

    `input` is the published one, (channels[, frames], height, width), `behavior` the number of behaviour's channels,
    `weights` what was published of the model.
    """

    name: str
    build: Callable[..., nn.Module]
    input: tuple[int, ...]
    paper: str
    weights: str = ""
    behavior: int = 2

    @property
    def video(self) -> bool:
        """Whether it takes video."""
        return len(self.input) == 4

    def stimulus_shapes(self, frames: int | None = None) -> tuple[tuple[int, ...], ...]:
        """Shapes of stimuli, behaviour and pupil centre for a batch of one, with other `frames` than the published."""
        channels, *time, height, width = self.input
        time = [frames] if frames and time else time
        return (1, channels, *time, height, width), (1, self.behavior, *time), (1, 2, *time)


SENSORIUM_2023 = "Turishcheva 2024, https://arxiv.org/abs/2407.09100"
SENSORIUM_2022 = "Willeke 2022, https://arxiv.org/abs/2206.08666"
DWISENEURO = "Baikulov 2023, https://github.com/lRomul/sensorium"
VIV1T = "Li, https://github.com/bryanlimy/ViV1T"
CORES = {
    info.name: info
    for info in (
        CoreInfo("dwiseneuro", DwiseNeuro, (1, 16, 36, 64), DWISENEURO, "true_batch_001"),
        CoreInfo(
            "dwiseneuro_distillation",
            partial(DwiseNeuro, expansion=6),
            (1, 16, 36, 64),
            DWISENEURO,
            "distillation_001",
        ),
        CoreInfo("viv1t", viv1t, (1, 140, 36, 64), VIV1T, "bryanlimy/ViV1T viv1t_001 to 005"),
        CoreInfo("viv1t_closed_loop", viv1t_closed_loop, (1, 300, 36, 64), VIV1T, "bryanlimy/ViV1T-closed-loop"),
        CoreInfo(
            "dynamic_vfm", DynamicVFM, (1, 30, 36, 64), "https://github.com/zhuyu-cs/Dynamic-VFM", "31 files, five mice"
        ),
        CoreInfo("factorized3d", Factorized3d, (1, 80, 36, 64), SENSORIUM_2023),
        CoreInfo("full3d", Full3d, (1, 40, 36, 64), SENSORIUM_2023),
        CoreInfo("gru_rotation_equivariant", gru_rotation_equivariant, (1, 80, 36, 64), SENSORIUM_2023),
        CoreInfo("gru_stacked2d", gru_stacked2d, (1, 80, 36, 64), SENSORIUM_2023),
        CoreInfo("v1t", V1T, (1, 36, 64), "Li 2023, https://openreview.net/forum?id=qHZs2p4ZD4", "bryanlimy/V1T", 3),
        CoreInfo("stacked2d", Stacked2d, (1, 36, 64), SENSORIUM_2022, "four checkpoints of Sensorium 2022", 0),
        CoreInfo(
            "rotation_equivariant",
            RotationEquivariant2d,
            (1, 36, 64),
            "Ecker 2019, https://openreview.net/forum?id=H1fU8iAqKX",
        ),
        CoreInfo("backbone", backbone_core, (3, 64, 64), "any backbone, cut at a layer"),
    )
}


def list_cores() -> list[str]:
    """Names of all cores."""
    return sorted(CORES)
