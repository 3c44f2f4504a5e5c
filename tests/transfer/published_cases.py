"""Published models with their states, inputs and outputs: one `Case` for each that the reference values have.

What comes in: the folder of the values and a name of `CASES`. What goes out: the small encoder, built by its published
name, the state in the form of the published file, what goes in, and what is to come out.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from pretrain.published_v1t import published_arguments as v1t_arguments
from pretrain.published_viv1t import published_arguments as viv1t_arguments
from tests.transfer.adaptive_fusion import adaptive_states
from transfer.encoder import Encoder
from transfer.encoder_spec import AnimalFacts
from transfer.modulators import VIV1T_MODES
from transfer.published_encoders import create_encoder

COMPETITION = (
    "parallel_beh2_exp", "parallel_qknorm_swiglu_softplus_shift2_sinus", "sequential_bmlp5_elu1_peg",
    "parallel_bmlp4_conv_posenc1_grid2", "parallel_noflash_posenc4_grid0_noshift", "mod1_mlp", "mod2_gru",
    "mod3_mlpv2", "mod4_mlpv3",
)  # fmt: skip
CLOSED_LOOP = (
    "default_causal_rope_reg", "noncausal_rope_reg", "causal_rope_noreg", "posenc2_rmsnorm_swiglu_qknorm_softplus",
    "posenc6_dyt_convpatch_exp_shift2", "posenc7_noflash_causal_sigmoid_grid2", "posenc4_nopad_beh1_noshift_act",
    "patchmode2", "readout_factorized", "readout_conv", "readout_attention",
)  # fmt: skip
PLANES = {"behavior_channels": 0}


@dataclass
class Case:
    """A published model.

    `expected` are rates by animal; `loss` makes of rates the number of which `described` has the value and the norms of
    the gradients; `animals` are names that the file has for the encoder's. `tolerance` is of gradients, relative;
    `penalty` what the core and the first animal add to the loss.
    """

    encoder: Encoder
    state: dict[str, Any]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    loss: Callable[[dict[str, Tensor]], Tensor] | None = None
    described: dict[str, Any] | None = None
    animals: dict[str, str] | None = None
    tolerance: float = 1e-4
    penalty: float | None = None


def arrays(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        pytest.skip(f"{path.name} is not among the reference values here")
    with np.load(path, allow_pickle=False) as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def variant(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Description, state, inputs and outputs of a variant of a video model."""
    outputs = arrays(folder / f"outputs_{name}.npz")
    described = json.loads((folder / "reference.json").read_text())["variants"][name.removesuffix("_perturbed")]
    return described, load_file(folder / f"state_{name}.safetensors"), arrays(folder / "inputs.npz"), outputs


def dwiseneuro(values: Path, name: str) -> Case:
    """Its planes come as they are, a video of five channels; animals have numbers in the file, and a weight each."""
    folder = values / "video" / "dwiseneuro"
    state, given = load_file(folder / f"state_{name}.safetensors"), arrays(folder / "inputs.npz")
    outputs = arrays(folder / f"outputs_{name}.npz")
    described = json.loads((folder / "reference.json").read_text())["variants"][name]
    facts = {animal: AnimalFacts(count, (18, 22), 5) for animal, count in zip("abc", (11, 14, 9), strict=True)}
    core = {
        "features": [12, 12, 20, 28], "strides": [2, 1, 2, 1], "cortex_features": [48, 100], "expansion": 3,
        "squeeze": 4, "canvas": [18, 22],
    }  # fmt: skip
    share = given["mice_weights"] / given["mice_weights"].sum()

    def loss(rates: dict[str, Tensor]) -> Tensor:
        each = [poisson(rates[animal], given[f"target{number}"]) for number, animal in enumerate("abc")]
        return sum((part * share[:, number, None, None]).sum() for number, part in enumerate(each))

    return Case(
        create_encoder("dwiseneuro", facts, core_arguments=core),
        {"model_name": "MouseModel", "nn_state_dict": state},
        {"stimuli": given["x"]},
        {animal: outputs[f"out{number}"] for number, animal in enumerate("abc")},
        loss,
        {"loss": described["loss"], "norms": described["grad_norms"]},
        {"0": "a", "1": "b", "2": "c"},
    )


def dynamic_vfm(values: Path, fusion: str, state_name: str, levels: str = "2_4_8_16") -> Case:
    """With adaptive fusion there are no rates, but a loss and gradients.

    Fresh adaptive weights have gradients of positions that are sums of much larger numbers, because all features weigh
    the same: the published norms, in single precision, are up to 1.8e-4 from those in double precision.
    """
    folder = values / "video" / "dynamic_vfm"
    given, described = arrays(folder / "inputs.npz"), json.loads((folder / "reference.json").read_text())["variants"]
    state = load_file(folder / "state_mean_perturbed.safetensors")
    if fusion == "adaptive":
        state = dict(zip(("init", "perturbed"), adaptive_states(state, described), strict=True))[state_name]
    outputs = arrays(folder / "outputs_mean_perturbed.npz") if fusion == "mean" else {}
    facts = {
        animal: AnimalFacts(len(given[f"src_{animal}"]), (18, 22), 1, 2, 2, given[f"src_{animal}"])
        for animal in ("m0", "m1")
    }
    encoder = create_encoder(
        "dynamic_vfm" if fusion == "mean" else "dynamic_vfm_adaptive",
        facts,
        core_arguments={"channels": 24, "blocks": 2, "heads": 3, "hidden": 20, "window": [4, 3, 5]},
        readout_arguments={"predictor_hidden": 8, "levels": levels},
        shifter_arguments={"hidden": 6},
    )
    described = described[f"{fusion}_{state_name}"]
    return Case(
        encoder,
        {f"module.{name}": value for name, value in state.items()},
        {"stimuli": given["x"], "behavior": given["behavior"], "pupil_center": given["pupil"]},
        {animal: outputs[f"y_{animal}_{levels}"].mT for animal in facts if outputs},
        # Targets are the last of the clip's frames.
        (lambda rates: poisson(rates["m0"], given["target_m0"][..., -15:]).sum()) if levels == "2_4_8_16" else None,
        {"loss": described["poisson_sum_2_4_8_16_m0"], "norms": described["grad_norms"]},
        tolerance=2e-4 if state_name == "init" else 1e-4,
    )


BASELINES = {
    "factorised": ("sensorium2023_factorized", {"channels": [6, 8, 10]}),
    "factorised_factorizedreadout": ("sensorium2023_factorized", {"channels": [6, 8, 10]}),
    "gru_equivariant": (
        "sensorium2023_gru",
        {"state_channels": 6, "input_kernel": 5, "state_kernel": 3, "features": 2, "layers": 2, "rotations": 4},
    ),
    "gru_stacked2d": (
        "sensorium2023_gru_stacked2d",
        {"state_channels": 5, "input_kernel": 3, "state_kernel": 3, "channels": 6, "layers": 3},
    ),
    "basic3d": (
        "sensorium2023_full3d",
        {"channels": [4, 5], "spatial_kernels": [7, 5], "temporal_kernels": [5, 3]},
    ),
}


def baseline(values: Path, name: str) -> Case:
    """The video comes with behaviour as two of its channels."""
    described, state, given, outputs = variant(values / "video" / "eckerlab_baseline", f"{name}_perturbed")
    animals = ("m0", "m1")
    facts = {
        animal: AnimalFacts(len(given[f"src_{animal}"]), (26, 30), 3, 0, 2, given[f"src_{animal}"])
        for animal in animals
    }
    published, core = BASELINES[name]
    changes: dict[str, Any] = {"core_arguments": core}
    if described["readout"] == "factorised":
        changes |= {"readout": "factorized", "readout_arguments": {"bias": False, "normalize": False}}
    target = given["target_m0"]
    return Case(
        create_encoder(published, facts, **changes),
        state,
        {"stimuli": given["x"], "pupil_center": given["pupil"]},
        {animal: outputs[f"y_{animal}"].mT for animal in animals},
        lambda rates: poisson(rates["m0"], target[..., -rates["m0"].shape[-1] :]).sum(),
        {"loss": described["poisson_sum_m0_perturbed"], "norms": described["grad_norms_m0_perturbed"]},
        penalty=None if "factorizedreadout" in name else sum(described["core_regularizer_perturbed"]),
    )


def viv1t(values: Path, version: str, name: str) -> Case:
    described, state, given, outputs = variant(values / "video" / version, f"{name}_perturbed")
    args = described["args"]
    facts = {
        animal: AnimalFacts(len(given[f"coords_{animal}"]), (17, 23), 1, 2, 2, given[f"coords_{animal}"])
        for animal in "AF"
    }
    core = {key: value for key, value in viv1t_arguments(args).items() if key != "animals"}
    changes = {"core_arguments": core, "coordinate_axes": {0: 0, 1: 2, 2: 3}[args["readout_grid_mode"]]}
    changes |= {"shifter": "mlp" if args["shifter_mode"] else None}
    if args["shifter_mode"] == 2:
        changes["shifter_arguments"] = {"behavior_inputs": 2}
    if args.get("modulator_mode"):
        changes["modulator"] = VIV1T_MODES[args["modulator_mode"]]
    if args.get("modulator_mode") == 2:
        changes["modulator_arguments"] = {"hidden": args["modulator_hidden_dim"]}
    outputs_by_mode = {
        "viv1t_competition": ("elu1", "exp", "softplus"),
        "viv1t_closed_loop": ("identity", "elu1", "exp", "learned_softplus", "sigmoid"),
    }
    changes["activation"] = outputs_by_mode[version][args["output_mode"]]
    changes |= {
        "factorized": {"readout": "factorized", "readout_arguments": {"bias": False, "normalize": False}},
        "conv": {"readout": "grouped_linear", "readout_arguments": {"groups": 1}},
        "attention": {"readout": "query_attention", "readout_arguments": {"embedding": 16}},
    }.get(args["readout"], {})
    builder = {"viv1t_competition": "viv1t", "viv1t_closed_loop": "viv1t_closed_loop"}[version]
    target = given["target_A"]
    return Case(
        create_encoder(builder, facts, **changes),
        {"epoch": 3, "model": state} if version == "viv1t_competition" else state,
        {"stimuli": given["x"], "behavior": given["behavior"], "pupil_center": given["pupil"]},
        {animal: outputs[f"y_{animal}"] for animal in "AF"},
        lambda rates: F.mse_loss(rates["A"], target[..., -rates["A"].shape[-1] :]),
        {"loss": described["mse_A_perturbed"], "norms": described["grad_norms_A_perturbed"]},
    )


def sensorium2022(values: Path, name: str) -> Case:
    """The small Sensorium+ model of neuralpredictors from GitHub, whose hidden convolutions have biases."""
    case = arrays(values / "static" / "encoder" / f"{name}.npz")
    facts = {"k": AnimalFacts(9, (18, 26), 4, 0, 2, case["in/coord"])}
    return Case(
        create_encoder("sensorium2022_cnn", facts, core_arguments={"channels": 8, "hidden_bias": True}),
        below(case, "sd/"),
        {"stimuli": case["in/x"], "pupil_center": case["in/pupil_center"]},
        {"k": case["out/eval"]},
        penalty=case["out/regularizer"].item(),
    )


def v1t(values: Path, name: str) -> Case:
    case = arrays(values / "static" / "v1t" / f"{name}.npz")
    config = json.loads((values / "static" / "manifest.json").read_text())[f"v1t/{name}"]["config"]
    images = case["in/image"]
    places = {animal: case[f"in/coord_{animal}"] for animal in "AB"}
    facts = {
        animal: AnimalFacts(len(coordinates), images.shape[2:], images.shape[1], 3, 2, coordinates)
        for animal, coordinates in places.items()
    }
    axes = 0 if config["disable_grid_predictor"] else config["grid_predictor_dim"]
    return Case(
        create_encoder(
            "v1t_franke2022" if "franke" in name else "v1t",
            facts,
            core_arguments=v1t_arguments(config),
            coordinate_axes=axes,
        ),
        {"epoch": 1, "model": below(case, "sd/")},
        {"stimuli": images, "behavior": case["in/behavior"], "pupil_center": case["in/pupil_center"]},
        {animal: case[f"out/{animal}"] for animal in "AB"},
        penalty=case["out/reg_A"].item(),
    )


def poisson(rates: Tensor, target: Tensor) -> Tensor:
    return rates - target * torch.log(rates + 1e-8)


def below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


CASES = {
    **{f"dwiseneuro/{name}": (dwiseneuro, name) for name in ("perturbed", "init_repo", "init_default")},
    **{f"dynamic_vfm/{levels}": (dynamic_vfm, "mean", "perturbed", levels) for levels in ("2_4_8_16", "0", "4_16")},
    **{f"dynamic_vfm_adaptive/{state}": (dynamic_vfm, "adaptive", state) for state in ("perturbed", "init")},
    **{f"baseline/{name}": (baseline, name) for name in BASELINES},
    **{f"viv1t/{name}": (viv1t, "viv1t_competition", name) for name in COMPETITION},
    **{f"viv1t_closed_loop/{name}": (viv1t, "viv1t_closed_loop", name) for name in CLOSED_LOOP},
    "sensorium2022": (sensorium2022, "firing_rate_sensorium"),
    **{
        f"v1t/{name}": (v1t, name)
        for name in ("model_default", "model_crop_shift4_bias2", "model_franke_free_mu_bias1")
    },
}
