"""The recurrent baselines of Sensorium 2023: a two-dimensional core for every frame, then a convolutional GRU.

What comes in: video (batch, channels, time, height, width), per-frame normalised, and behaviour (batch, 2, time), which
fills two more channels. What goes out: (batch, channels, time, height - 8, width - 8) at the published size, of the
same length; a frame depends on no later one. Source: `RotationEquivariant2dCore` or `Stacked2dCore`, and `GRU_Module`,
of neuralpredictors in the configurations of ecker-lab/sensorium_2023 (https://github.com/ecker-lab/sensorium_2023;
Turishcheva et al. 2024, https://arxiv.org/abs/2407.09100).
"""

from torch import Tensor, nn

from pretrain.models.conv_gru import ConvGru
from pretrain.models.rotation_equivariant import RotationEquivariant2d
from pretrain.models.stacked2d import Stacked2d

# The plain core of the second baseline, in `models_demo.ipynb`.
STACKED2D = {
    "behavior_channels": 2, "hidden_conv": "plain", "hidden_bias": True, "final_nonlinearity": False,
    "gamma_input": 500.0, "gamma_hidden": 500_000.0,
}  # fmt: skip


class GruBaseline(nn.Module):
    """A static core frame by frame, and a GRU over its maps.

    Args:
        core: takes frames and behaviour, as `RotationEquivariant2d` and `Stacked2d` do.
        state_channels: of the GRU.
        input_kernel, state_kernel: sides of its convolutions, in pixels, odd.
    """

    def __init__(self, core: nn.Module, state_channels: int = 64, input_kernel: int = 9, state_kernel: int = 9) -> None:
        super().__init__()
        self.core = core
        self.gru = ConvGru(core.out_channels, state_channels, input_kernel, state_kernel)
        self.out_channels = state_channels

    def output_shape(self, time: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(channels, time, height, width) of the output for a video of this size."""
        _, height, width = self.core.output_shape(height, width)
        return self.out_channels, time, height, width

    def forward(
        self,
        video: Tensor,
        behavior: Tensor | None = None,
        pupil_center: Tensor | None = None,
        animal: str | None = None,
    ) -> Tensor:
        """(batch, channels, time, height', width'); behaviour and pupil centre are used as the core is built."""
        batch = video.shape[0]
        frames = video.transpose(1, 2).flatten(0, 1)
        signals = (
            None if signal is None else signal.transpose(1, 2).flatten(0, 1) for signal in (behavior, pupil_center)
        )
        return self.gru(self.core(frames, *signals, animal).unflatten(0, (batch, -1)))

    def regularizer_terms(self) -> dict[str, Tensor]:
        """Those of the core; the published configurations put no weight on the GRU's own."""
        return self.core.regularizer_terms()

    def regularizer(self) -> Tensor:
        """What training adds to the loss."""
        return self.core.regularizer()


def gru_rotation_equivariant(
    state_channels: int = 64, input_kernel: int = 9, state_kernel: int = 9, **core
) -> GruBaseline:
    """The baseline of the benchmark notebook; `core` are arguments of `RotationEquivariant2d`."""
    return GruBaseline(RotationEquivariant2d(**core), state_channels, input_kernel, state_kernel)


def gru_stacked2d(state_channels: int = 64, input_kernel: int = 7, state_kernel: int = 7, **core) -> GruBaseline:
    """The baseline of `models_demo.ipynb`; `core` are arguments of `Stacked2d`, over those of the baseline."""
    return GruBaseline(Stacked2d(**{**STACKED2D, **core}), state_channels, input_kernel, state_kernel)
