"""Whole published models, built by name and loaded by `load_published`: published responses, losses and gradients."""

import json
import math
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

from pretrain.checkpoint import load_published
from pretrain.published_encoder import select_encoder_weights
from pretrain.published_v1t import published_arguments as v1t_arguments
from pretrain.published_viv1t import published_arguments as viv1t_arguments
from transfer.encoder import Encoder
from transfer.encoder_spec import AnimalFacts
from transfer.modulators import VIV1T_MODES
from transfer.published_encoders import create_encoder
from transfer.published_parts import load_published_encoder

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
    """A published model, what it was given, and what came out."""

    encoder: Encoder
    state: dict[str, Any]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    loss: Callable[[dict[str, Tensor]], Tensor] | None = None
    described: dict[str, Any] | None = None
    animals: dict[str, str] | None = None


@pytest.fixture(scope="module")
def values(shared: Path) -> Path:
    return shared / "reference" / "values"


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


def dynamic_vfm(values: Path, levels: str) -> Case:
    described, state, given, outputs = variant_of_vfm(values)
    facts = {
        animal: AnimalFacts(len(given[f"src_{animal}"]), (18, 22), 1, 2, 2, given[f"src_{animal}"])
        for animal in ("m0", "m1")
    }
    encoder = create_encoder(
        "dynamic_vfm",
        facts,
        core_arguments={"channels": 24, "blocks": 2, "heads": 3, "hidden": 20, "window": [4, 3, 5]},
        readout_arguments={"predictor_hidden": 8, "levels": levels},
        shifter_arguments={"hidden": 6},
    )
    # Rates (batch, neurons, 15) are of the last frames.
    target = given["target_m0"][..., -15:]
    whole = levels == "2_4_8_16"
    return Case(
        encoder,
        {f"module.{name}": value for name, value in state.items()},
        {"stimuli": given["x"], "behavior": given["behavior"], "pupil_center": given["pupil"]},
        {animal: outputs[f"y_{animal}_{levels}"].mT for animal in facts},
        (lambda rates: poisson(rates["m0"], target).sum()) if whole else None,
        {"loss": described["poisson_sum_2_4_8_16_m0"], "norms": described["grad_norms"]},
    )


def variant_of_vfm(values: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    folder = values / "video" / "dynamic_vfm"
    described = json.loads((folder / "reference.json").read_text())["variants"]["mean_perturbed"]
    state = load_file(folder / "state_mean_perturbed.safetensors")
    return described, state, arrays(folder / "inputs.npz"), arrays(folder / "outputs_mean_perturbed.npz")


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
    )


def v1t(values: Path, name: str) -> Case:
    case = arrays(values / "static" / "v1t" / f"{name}.npz")
    config = json.loads((values / "static" / "manifest.json").read_text())[f"v1t/{name}"]["config"]
    images = case["in/image"]
    facts = {
        animal: AnimalFacts(len(case[f"in/coord_{animal}"]), images.shape[2:], images.shape[1], 3, 2, coordinates)
        for animal in "AB"
        if (coordinates := case[f"in/coord_{animal}"]) is not None
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
    )


def poisson(rates: Tensor, target: Tensor) -> Tensor:
    return rates - target * torch.log(rates + 1e-8)


def below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


CASES = {
    **{f"dwiseneuro/{name}": (dwiseneuro, name) for name in ("perturbed", "init_repo", "init_default")},
    **{f"dynamic_vfm/{levels}": (dynamic_vfm, levels) for levels in ("2_4_8_16", "0", "4_16")},
    **{f"baseline/{name}": (baseline, name) for name in BASELINES},
    **{f"viv1t/{name}": (viv1t, "viv1t_competition", name) for name in COMPETITION},
    **{f"viv1t_closed_loop/{name}": (viv1t, "viv1t_closed_loop", name) for name in CLOSED_LOOP},
    "sensorium2022": (sensorium2022, "firing_rate_sensorium"),
    **{
        f"v1t/{name}": (v1t, name)
        for name in ("model_default", "model_crop_shift4_bias2", "model_franke_free_mu_bias1")
    },
}


@pytest.mark.parametrize("name", CASES)
def test_whole_models(values, name):
    build, *which = CASES[name]
    case = build(values, *which)
    if case.animals:
        load_published_encoder(case.encoder, case.state, case.animals)
    else:
        load_published(case.encoder, case.state)
    encoder = case.encoder.eval()
    rates = {animal: encoder(**case.inputs, animal=animal) for animal in case.expected}
    for animal, expected in case.expected.items():
        torch.testing.assert_close(rates[animal], expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    if case.loss is None:
        return
    loss = case.loss(rates)
    assert loss.item() == pytest.approx(case.described["loss"], rel=1e-5)
    loss.backward()
    check_gradients(case)


def check_gradients(case: Case) -> None:
    """The norm of each gradient to 1e-4, or to 1e-6 of the largest."""
    norms = case.described["norms"]
    largest = max(norm or 0.0 for norm in norms.values())
    for name, sources in sources_of(case).items():
        parameter = case.encoder.get_parameter(name)
        found = 0.0 if parameter.grad is None else parameter.grad.norm().item()
        expected = math.sqrt(sum((norms[source] or 0.0) ** 2 for source in sources))
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6 * largest), name


def sources_of(case: Case) -> dict[str, list[str]]:
    """Each of our weights with the published names of what it is made of, buffers left out."""
    account = select_encoder_weights(case.encoder, case.state, "it", case.animals)
    learned = {name for name, _ in case.encoder.named_parameters(remove_duplicate=False)}
    found: dict[str, list[str]] = {}
    for source in account.used:
        name = account.renamed.get(source, source)
        if name in learned:
            found.setdefault(name, []).append(source.removeprefix("module."))
    return found
