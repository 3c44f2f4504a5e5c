"""Whole models of ecker-lab/sensorium_2023 and sinzlab/sensorium by our names: outputs, gradients, keys, refusals.

The readout and the shifter that follow the core are written here from their description: a bilinear sample at each
neuron's position, which a small network predicts from its place in cortex, moved by a shift from the pupil centre.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.factorized3d import Factorized3d
from pretrain.models.full3d import Full3d
from pretrain.models.gru_baseline import gru_rotation_equivariant, gru_stacked2d
from pretrain.models.stacked2d import Stacked2d
from pretrain.published_names import require_fit
from pretrain.published_neuralpredictors import RELEASED, from_published

PLANES = {"behavior_channels": 0}
FACTORISED = {"video_channels": 3, **PLANES, "channels": (6, 8, 10)}
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "factorised": lambda: Factorized3d(**FACTORISED),
    "factorised_factorizedreadout": lambda: Factorized3d(**FACTORISED),
    "gru_equivariant": lambda: gru_rotation_equivariant(
        6, 5, 3, image_channels=3, **PLANES, features=2, layers=2, rotations=4
    ),
    "gru_stacked2d": lambda: gru_stacked2d(5, 3, 3, image_channels=3, **PLANES, channels=6, layers=3),
    "basic3d": lambda: Full3d(3, 0, channels=(4, 5), spatial_kernels=(7, 5), temporal_kernels=(5, 3)),
}
ANIMALS = ("m0", "m1")


@pytest.fixture(scope="module")
def baselines(shared) -> Path:
    return shared / "reference" / "values" / "video" / "eckerlab_baseline"


@pytest.fixture(scope="module")
def inputs(baselines) -> dict[str, Tensor]:
    with np.load(baselines / "inputs.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def mlp(values: Tensor, weights: dict[str, Tensor], *activations: Callable[[Tensor], Tensor]) -> Tensor:
    for number, activation in enumerate(activations):
        values = activation(F.linear(values, weights[f"{2 * number}.weight"], weights[f"{2 * number}.bias"]))
    return values


def gaussian_readout(features: Tensor, weights: dict[str, Tensor], shift: Tensor) -> Tensor:
    """Maps (frames, channels, height, width) and shifts (frames, 2) to (frames, neurons), in evaluation mode."""
    position = mlp(weights["source_grid"].float(), below(weights, "mu_transform."), F.elu, torch.tanh)
    grid = position.clamp(-1, 1)[None, :, None] + shift[:, None, None]
    sampled = F.grid_sample(features, grid, align_corners=True)[..., 0]
    return torch.einsum("bcn,cn->bn", sampled, weights["_features"][0, :, 0]) + weights["bias"]


def factorised_readout(features: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Maps (frames, channels, height, width) weighed by place and by channel; that of the starter kit has no bias."""
    return torch.einsum("bchw,nhw,nc->bn", features, weights["spatial"], weights["_features"])


def responses(core: nn.Module, weights: dict[str, Tensor], inputs: dict[str, Tensor], animal: str) -> Tensor:
    """(batch, time', neurons) of one animal."""
    maps = core(inputs["x"])
    frames = maps.transpose(1, 2).flatten(0, 1)
    readout = below(weights, f"readouts.{animal}.")
    if "spatial" in readout:
        rates = factorised_readout(frames, readout)
    else:
        gaze = inputs["pupil"][:, :, -maps.shape[2] :].transpose(1, 2).flatten(0, 1)
        rates = gaussian_readout(
            frames, readout, mlp(gaze, below(weights, f"shifters.{animal}.mlp."), *[torch.tanh] * 3)
        )
    return F.elu(rates).unflatten(0, maps.shape[::2][:2]) + 1


@pytest.mark.parametrize("variant", BUILDERS)
def test_whole_models(baselines, inputs, variant):
    """Outputs to 1e-5 of their scale, the loss, the regulariser, and the norm of every gradient to 1e-4."""
    reference = json.loads((baselines / "reference.json").read_text())["variants"][variant]
    state = load_file(baselines / f"state_{variant}_perturbed.safetensors")
    for name in reference["grad_norms_m0_perturbed"]:
        state[name].requires_grad_()
    weights = from_published(state)
    core = BUILDERS[variant]().eval()
    require_fit(below(weights, "core."), core.state_dict(), variant)
    core.load_state_dict(below(weights, "core."))
    with np.load(baselines / f"outputs_{variant}_perturbed.npz") as file:
        for animal in ANIMALS:
            expected = torch.from_numpy(file[f"y_{animal}"])
            found = responses(core, weights, inputs, animal)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    found = responses(core, weights, inputs, "m0")
    target = inputs["target_m0"][:, :, -found.shape[1] :].transpose(1, 2)
    loss = (found - target * torch.log(found + 1e-8)).sum()
    assert float(loss.detach()) == pytest.approx(reference["poisson_sum_m0_perturbed"], rel=1e-5)
    loss.backward()
    # Gradients of the core's own parameters go back to the published ones that they were made of.
    made = {f"core.{name}": p.grad for name, p in core.named_parameters() if weights[f"core.{name}"].requires_grad}
    torch.autograd.backward([weights[name] for name in made], list(made.values()))
    scale = max(norm or 0 for norm in reference["grad_norms_m0_perturbed"].values())
    for name, norm in reference["grad_norms_m0_perturbed"].items():
        gradient = state[name].grad
        assert (0 if gradient is None else float(gradient.norm())) == pytest.approx(
            norm or 0, rel=1e-4, abs=1e-6 * scale
        )
    assert float(core.regularizer().detach()) == pytest.approx(sum(reference["core_regularizer_perturbed"]), rel=1e-5)


@pytest.mark.parametrize(
    ("file", "build", "animals"),
    [("factorised", Factorized3d, 5), ("gru", gru_rotation_equivariant, 5)],
)
def test_keys_of_the_published_sizes(baselines, file, build, animals):
    """Every key of the default configuration has its place, and no weight of the core is missing."""
    described = json.loads((baselines / f"default_state_dict_keys_{file}.json").read_text())
    state = {name: torch.zeros(shape) for name, (shape, _) in described.items() if not is_constant(name)}
    weights = from_published(state)
    require_fit(below(weights, "core."), build().state_dict(), file)
    recordings = {name.split(".")[1] for name in weights if name.startswith("readouts.")}
    assert len(recordings) == animals
    assert recordings == {name.split(".")[1] for name in weights if name.startswith("shifters.")}
    assert sum(value.numel() for value in weights.values()) == sum(value.numel() for value in state.values())


def is_constant(name: str) -> bool:
    return "laplace.filter" in name or "rotate_hermite" in name


def test_the_static_encoder(shared):
    """Sensorium+ with fewer channels: core, shift, rates and a given shift."""
    with np.load(shared / "reference" / "values" / "static" / "encoder" / "firing_rate_sensorium.npz") as file:
        values = {name: torch.from_numpy(file[name]) for name in file.files}
    weights = from_published({k.removeprefix("sd/"): v for k, v in values.items() if k.startswith("sd/")})
    core = Stacked2d(image_channels=4, channels=8, hidden_bias=True)
    core.load_state_dict(below(weights, "core."))
    maps = core.eval()(values["in/x"])
    torch.testing.assert_close(maps, values["out/core"], rtol=1e-5, atol=1e-5)
    shift = mlp(values["in/pupil_center"], below(weights, "shifters.k.mlp."), *[torch.tanh] * 3)
    torch.testing.assert_close(shift, values["out/shift"], rtol=1e-5, atol=1e-6)
    rates = F.elu(gaussian_readout(maps, below(weights, "readouts.k."), shift)) + 1
    torch.testing.assert_close(rates, values["out/eval"], rtol=1e-5, atol=1e-5)


def released_state(name: str) -> dict[str, Tensor]:
    """Zeros by the keys and shapes of a file that sinzlab/sensorium released, as its description has them."""
    file = RELEASED[name]
    channels, neurons = 1 + file.core.get("behavior_channels", 0), file.neurons
    shapes: dict[str, tuple[int, ...]] = {"core.features.layer0.conv.weight": (64, channels, 9, 9)}
    for layer in range(file.core.get("layers", 4)):
        start = f"core.features.layer{layer}."
        if layer:
            shapes[f"{start}ds_conv.in_depth_conv.weight"] = (64, 64, 1, 1)
            shapes[f"{start}ds_conv.spatial_conv.weight"] = (64, 1, 7, 7)
            shapes[f"{start}ds_conv.out_depth_conv.weight"] = (64, 64, 1, 1)
        shapes |= {f"{start}norm.{part}": (64,) for part in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{start}norm.num_batches_tracked"] = ()
    readout = f"readout.{file.recording}."
    shapes |= {f"{readout}sigma": (1, neurons, 2, 2), f"{readout}_features": (1, 64, 1, neurons)}
    shapes |= {f"{readout}bias": (neurons,), f"{readout}source_grid": (neurons, 2)}
    shapes |= {f"{readout}mu_transform.0.weight": (30, 2), f"{readout}mu_transform.0.bias": (30,)}
    shapes |= {f"{readout}mu_transform.2.weight": (2, 30), f"{readout}mu_transform.2.bias": (2,)}
    if file.pupil:
        for number, (outputs, inputs) in enumerate(((5, 2), (5, 5), (2, 5))):
            start = f"shifter.{file.recording}.mlp.{2 * number}."
            shapes |= {f"{start}weight": (outputs, inputs), f"{start}bias": (outputs,)}
    laplace = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])[None, None]
    return {"core._input_weights_regularizer.laplace.filter": laplace} | {
        key: torch.zeros(shape) for key, shape in shapes.items()
    }


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_files_fit_the_default_core(name):
    weights = from_published(released_state(name))
    core = Stacked2d(**RELEASED[name].core)
    require_fit(below(weights, "core."), core.state_dict(), name)
    assert core.linear == ("ln" in name)
    recording = RELEASED[name].recording
    assert weights[f"readouts.{recording}._features"].shape == (1, 64, 1, RELEASED[name].neurons)
    assert (f"shifters.{recording}.mlp.4.weight" in weights) == RELEASED[name].pupil


def test_the_described_files_are_those_whose_outputs_are_known(shared):
    manifest = json.loads((shared / "reference" / "values" / "static" / "manifest.json").read_text())
    for name, file in RELEASED.items():
        config = manifest.get("cases", manifest)[f"official/{name}"]["config"]
        assert (file.sha256, file.recording, file.neurons) == (
            config["ckpt_sha256"], config["data_key"], config["n_neurons"]
        )  # fmt: skip
        assert file.core.get("layers", 4) == config["layers"]
        assert 1 + file.core.get("behavior_channels", 0) == config["input_channels"]


def test_what_does_not_fit_is_one_line():
    state = released_state("sensorium_sota_model")
    with pytest.raises(ValueError, match=r"features.0.conv.weight' has shape \(64, 1, 9, 9\) in it, \(32, 1, 9, 9\)"):
        require_fit(below(from_published(state), "core."), Stacked2d(channels=32).state_dict(), "it")
    with pytest.raises(ValueError, match=r"it has no 'features.1.ds_conv.in_depth_conv.bias', shape \(64,\)"):
        require_fit(below(from_published(state), "core."), Stacked2d(hidden_bias=True).state_dict(), "it")
    with pytest.raises(ValueError, match=r"it has 'features.3.ds_conv.*, which the model does not have"):
        require_fit(below(from_published(state), "core."), Stacked2d(layers=3).state_dict(), "it")
    for key in ("core.blocks.0.weight", "optimizer.state", "readout.sigma", "gru_module.gru.in.weight"):
        with pytest.raises(ValueError, match=f"'{key}', shape .* is no part of a"):
            from_published({key: torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"without 'gru_module.gru.update_gate_input.weight'"):
        from_published({"gru_module.gru.reset_gate_input.weight": torch.zeros(2, 3, 3, 3)})


def test_other_constants_are_refused():
    with pytest.raises(ValueError, match="another constant"):
        from_published({"core._input_weights_regularizer.laplace.filter": torch.zeros(1, 1, 3, 3)})
    basis = "core.features.layer0.hermite_conv.rotate_hermite."
    with pytest.raises(ValueError, match="another constant"):
        from_published({f"{basis}H": torch.zeros(15, 10, 10)})
    with pytest.raises(ValueError, match="another constant"):
        from_published({f"{basis}Rs.0": torch.eye(15), f"{basis}Rs.1": torch.eye(15)})
