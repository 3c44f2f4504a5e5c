"""The published encoding models by name, at their published sizes.

What comes in: a name, facts about the animals, and what is to differ from what was published. What goes out: an
`Encoder` with fresh weights, into which `pretrain.checkpoint.load_published` loads the published ones.

| name | source |
|---|---|
| `dwiseneuro`, `dwiseneuro_distillation` | Baikulov 2023, https://github.com/lRomul/sensorium |
| `viv1t`, `viv1t_closed_loop` | Li et al., https://github.com/bryanlimy/ViV1T and .../ViV1T-closed-loop |
| `dynamic_vfm`, `dynamic_vfm_adaptive` | Zhu 2023, https://github.com/zhuyu-cs/Dynamic-VFM |
| `sensorium2023_*` | https://github.com/ecker-lab/sensorium_2023, https://arxiv.org/abs/2407.09100 |
| `v1t`, `v1t_franke2022` | Li et al. 2023, https://github.com/bryanlimy/V1T |
| `sensorium2022_*` | https://github.com/sinzlab/sensorium, https://arxiv.org/abs/2206.08666 |

`sensorium2022_cnn` and `_ln` are the baselines of the Sensorium+ track, which see behaviour and the pupil; those that
end in `_images` are of the other track, whose animals have neither.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transfer.encoder_spec import AnimalFacts, EncoderSpec, unknown

if TYPE_CHECKING:
    from transfer.encoder import Encoder

# In 2023, penalties of readouts have no weight.
GAUSSIAN_2023 = {"init_mu_range": 0.2, "init_sigma": 1.0, "feature_reg_weight": 0.0}
GAUSSIAN_2022 = {"init_mu_range": 0.3, "init_sigma": 0.1, "feature_reg_weight": 0.0076}
LINEAR = {"layers": 3, "linear": True}

DWISENEURO = EncoderSpec(
    "dwiseneuro",
    "grouped_linear",
    activation="softplus",
    activation_arguments={"beta": 0.07, "threshold": 20.0},
    readout_arguments={"groups": 2, "dropout": 0.4, "feature_reg_weight": 0.0},
    coordinate_axes=0,
    start_from_mean=False,
)
VIV1T = EncoderSpec("viv1t", "state_gaussian", "mlp", activation="exp", readout_arguments=GAUSSIAN_2023)
DYNAMIC_VFM = EncoderSpec(
    "dynamic_vfm",
    "hierarchical_gaussian",
    "mlp",
    readout_arguments={"levels": "2_4_8_16", "fusion": "mean", "feature_reg_weight": 0.0},
    shifter_arguments={"hidden": 16},
)
FACTORIZED_2023 = EncoderSpec("factorized3d", "gaussian", "mlp", readout_arguments=GAUSSIAN_2023)
V1T = EncoderSpec("v1t", "gaussian", "mlp", readout_arguments=GAUSSIAN_2022, start_from_mean=False)
CNN_2022 = EncoderSpec("stacked2d", "gaussian", "mlp", readout_arguments=GAUSSIAN_2022)
IMAGES = {"shifter": None, "core_arguments": {"behavior_channels": 0}}

PUBLISHED_ENCODERS: dict[str, EncoderSpec] = {
    "dwiseneuro": DWISENEURO,
    "dwiseneuro_distillation": DWISENEURO.changed(core="dwiseneuro_distillation"),
    "viv1t": VIV1T,
    "viv1t_closed_loop": EncoderSpec("viv1t_closed_loop", "gaussian", "mlp", readout_arguments=GAUSSIAN_2023),
    "dynamic_vfm": DYNAMIC_VFM,
    "dynamic_vfm_adaptive": DYNAMIC_VFM.changed(readout_arguments={"fusion": "adaptive"}),
    "sensorium2023_factorized": FACTORIZED_2023,
    "sensorium2023_gru": FACTORIZED_2023.changed(core="gru_rotation_equivariant"),
    "sensorium2023_gru_stacked2d": FACTORIZED_2023.changed(core="gru_stacked2d"),
    "sensorium2023_full3d": FACTORIZED_2023.changed(core="full3d"),
    "v1t": V1T,
    "v1t_franke2022": V1T.changed(core_arguments={"in_channels": 2}),
    "sensorium2022_cnn": CNN_2022,
    "sensorium2022_ln": CNN_2022.changed(core_arguments=LINEAR),
    "sensorium2022_cnn_images": CNN_2022.changed(**IMAGES),
    "sensorium2022_ln_images": CNN_2022.changed(core_arguments=LINEAR).changed(**IMAGES),
}


def published_spec(name: str, **overrides: Any) -> EncoderSpec:
    """What a published encoder is made of; `overrides` as of `EncoderSpec.changed`.

    Raises:
        ValueError: an unknown name or field, with the nearest ones.
    """
    if name not in PUBLISHED_ENCODERS:
        raise ValueError(f"there is no published encoder {unknown(name, PUBLISHED_ENCODERS)}")
    return PUBLISHED_ENCODERS[name].changed(**overrides)


def create_encoder(name: str, animals: Mapping[str, AnimalFacts], **overrides: Any) -> "Encoder":
    """A published encoder for some animals, at its published size but for `overrides`, with fresh weights.

    Args:
        name: of `PUBLISHED_ENCODERS`.
        animals: facts by the names that the animals are to have.
        overrides: fields of `EncoderSpec`; arguments of a part (`core_arguments={"channels": 8}`) are put over the
            published ones.

    Raises:
        ValueError: an unknown name or argument, or animals that do not fit.
    """
    from transfer.encoder_builder import build_encoder

    return build_encoder(published_spec(name, **overrides), animals)
