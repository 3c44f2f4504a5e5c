"""Published V1T models under our names: whole models against their published outputs, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.published.v1t import published_v1t
from pretrain.checkpoint import load_published
from pretrain.models.v1t import V1T
from pretrain.published_v1t import core_from_published, from_published, published_animals, published_arguments

WHOLE_CASES = ("model_default", "model_crop_shift4_bias2", "model_franke_free_mu_bias1")
TINY = {"image_size": (9, 14), "patch": 4, "width": 10, "depth": 1, "heads": 2, "hidden": 14}
ARGS = {
    "core": "vit", "input_shape": "(1, 144, 256)", "center_crop": 1.0, "patch_size": 8, "emb_dim": 155,
    "num_blocks": 4, "num_heads": 4, "mlp_dim": 488, "behavior_mode": 3, "shift_mode": 2, "p_dropout": 0.0229,
    "t_dropout": 0.2544, "core_reg_scale": 0.5379,
}  # fmt: skip


@pytest.fixture(scope="module")
def values(shared: Path) -> Path:
    return shared / "reference" / "values" / "static"


@pytest.fixture(scope="module")
def manifest(values: Path) -> dict[str, dict]:
    return json.loads((values / "manifest.json").read_text())


def tensors(arrays: dict[str, tuple[list[int], str]]) -> dict[str, Tensor]:
    """A state dict of the shapes that the manifest has for a case, with the constants that are checked."""
    state = {key[3:]: torch.zeros(shape) for key, (shape, _) in arrays.items() if key.startswith("sd/")}
    return {
        key: value + 10**-0.5 if key.endswith("mha.scale") and not value.ndim else value for key, value in state.items()
    }


def core_of(config: dict, animals: list[str]) -> V1T:
    arguments = published_arguments(config) | {"animals": animals}
    if "core_input_shape" in config:
        channels, *size = config["core_input_shape"]
        arguments |= {"in_channels": channels - 3 * (config["behavior_mode"] == 1), "image_size": tuple(size)}
    return V1T(**arguments)


def below(named: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def test_every_published_layout_fits(manifest) -> None:
    cases = {name: entry for name, entry in manifest.items() if name.startswith("v1t/")}
    assert len(cases) == 12
    for entry in cases.values():
        state = tensors(entry["arrays"])
        whole = any(name.startswith("core.") for name in state)
        core = core_of(entry["config"], ["A", "B"])
        named = from_published(state) if whole else core_from_published(state)
        core.load_state_dict(below(named, "core.") if whole else named)
        if whole:
            assert published_animals(state) == ["A", "B"]
            assert {name.split(".")[0] for name in named} == {"core", "readouts", "shifters"}


def responses(named: dict[str, Tensor], core: V1T, inputs: tuple[Tensor, Tensor, Tensor], animal: str) -> Tensor:
    """Core, shifter, Gaussian readout at its mean positions: what the model gives before ELU + 1."""
    readout, shifter = below(named, f"readouts.{animal}."), below(named, f"shifters.{animal}.mlp.")
    shift = inputs[2]
    for layer in (0, 2, 4):
        shift = torch.tanh(shift @ shifter[f"{layer}.weight"].T + shifter[f"{layer}.bias"])
    if "_mu" in readout:
        position = readout["_mu"][0, :, 0]
    else:
        hidden = F.elu(readout["source_grid"] @ readout["mu_transform.0.weight"].T + readout["mu_transform.0.bias"])
        position = torch.tanh(hidden @ readout["mu_transform.2.weight"].T + readout["mu_transform.2.bias"])
    grid = position.clamp(-1, 1)[None, :, None] + shift[:, None, None]
    sampled = F.grid_sample(core(*inputs, animal), grid, align_corners=True)[..., 0]
    return (sampled * readout["_features"][0, :, 0]).sum(1) + readout["bias"]


@pytest.mark.parametrize("name", WHOLE_CASES)
def test_published_responses(values, manifest, name) -> None:
    path = values / "v1t" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here")
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    checkpoint = {"epoch": 1, "model": {key[3:]: arrays[key] for key in arrays if key.startswith("sd/")}}
    named = from_published(checkpoint)
    core = core_of(manifest[f"v1t/{name}"]["config"], ["A", "B"]).eval()
    core.load_state_dict(below(named, "core."))
    inputs = (arrays["in/image"], arrays["in/behavior"], arrays["in/pupil_center"])
    with torch.no_grad():
        assert torch.equal(core.image_cropper(*inputs, "B"), arrays["out/crop_B"])
        found = {animal: responses(named, core, inputs, animal) for animal in ("A", "B")}
    for expected, got in (
        (arrays["out/B_no_activation"], found["B"]),
        (arrays["out/B"], F.elu(found["B"]) + 1),
        (arrays["out/A"], F.elu(found["A"]) + 1),
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    l1 = core.regularizer() + 0.0076 * named["readouts.A._features"].abs().sum()
    torch.testing.assert_close(l1.detach(), arrays["out/reg_A"], rtol=1e-5, atol=0)


def test_settings_of_older_files_are_those_of_their_time() -> None:
    arguments = published_arguments(ARGS)
    with torch.device("meta"):
        core = V1T(**arguments)
    assert sum(weight.numel() for weight in core.parameters()) == 2_465_200
    assert (arguments["patch_mode"], arguments["patch_stride"], arguments["use_bias"]) == (0, 1, True)
    assert not arguments["square_grid"]
    assert published_arguments(ARGS | {"patch_stride": 2, "patch_size": 7, "resize_image": 0})["image_size"] == (
        144,
        256,
    )
    franke = published_arguments(ARGS | {"input_shape": (2, 36, 64), "ds_name": "franke2022", "center_crop": 0.8})
    assert (franke["image_size"], franke["in_channels"]) == ((28, 51), 2)
    assert published_arguments(ARGS | {"patch_stride": 5, "patch_size": 8})["square_grid"] is True


def test_compiled_models_are_named_alike() -> None:
    state = {f"core.{name}": value for name, value in published_v1t(**TINY).state_dict().items()}
    compiled = {f"_orig_mod.{name}": value for name, value in state.items()}
    assert list(from_published(compiled)) == list(from_published(state))


def test_what_is_not_v1t_is_refused_in_one_line() -> None:
    state = published_v1t(**TINY).state_dict()
    whole = {"core." + name: value for name, value in state.items()}
    for wrong, message in (
        (whole | {"core.transformer.norm.weight": torch.ones(3)}, "have no 'transformer.norm.weight'"),
        (whole | {"head.weight": torch.ones(1)}, "have no 'head.weight'"),
        ({"core.conv.weight": torch.ones(1)}, r"layers \[\] of patch_embedding.projection are those of none"),
        ({"backbone.conv.weight": torch.ones(1)}, "starts with 'core.'; found backbone.conv.weight"),
        ({"core.x": [1, 2]}, "has list at 'core.x', expected a tensor"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            from_published(wrong)
        assert "\n" not in str(refused.value)
    scaled = state | {"transformer.blocks.0.mha.scale": torch.tensor(0.5)}
    with pytest.raises(ValueError, match=r"is 0.5, expected 1 / sqrt\(10\)"):
        core_from_published(scaled)
    with pytest.raises(ValueError, match="no 'emb_dim'"):
        published_arguments({key: value for key, value in ARGS.items() if key != "emb_dim"})
    with pytest.raises(ValueError, match="core is 'stacked2d'"):
        published_arguments(ARGS | {"core": "stacked2d"})


def test_weights_of_another_size_are_refused_with_both_shapes() -> None:
    weights = core_from_published(published_v1t(**TINY).state_dict())
    core = V1T(image_size=(9, 14), patch_size=4, emb_dim=10, num_blocks=1, num_heads=2, mlp_dim=16)
    with pytest.raises(
        ValueError, match=r"'blocks.0.mlp.1.weight' has shape \(14, 10\) in .*, \(16, 10\) in the model"
    ):
        load_published(core, weights)
