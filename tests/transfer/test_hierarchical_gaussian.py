"""The hierarchical Gaussian readout of Dynamic-VFM: the published responses of every combination of levels."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pretrain.published_dynamic_vfm import from_published
from tests.transfer.adaptive_fusion import around_core, fresh_mean
from transfer.hierarchical_gaussian import HierarchicalGaussianReadout
from transfer.shifters import MLPShifter


@pytest.fixture(scope="module")
def published(shared):
    from safetensors.torch import load_file

    folder = shared / "reference" / "values" / "video" / "dynamic_vfm"
    state = from_published(load_file(folder / "state_mean_perturbed.safetensors"))
    return state, np.load(folder / "inputs.npz"), np.load(folder / "outputs_mean_perturbed.npz")


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def test_published_responses_of_every_level(published):
    state, inputs, outputs = published
    features, pupil = torch.tensor(outputs["core"]), torch.tensor(inputs["pupil"])
    cases = [name for name in outputs.files if name != "core"]
    assert len(cases) > 15
    for name in cases:
        _, animal, levels = name.split("_", 2)
        coordinates, mean = (torch.tensor(inputs[f"{kind}_{animal}"]) for kind in ("src", "mean"))
        readout = HierarchicalGaussianReadout(
            (24, 9, 11), outputs[name].shape[-1], coordinates, mean, levels, predictor_hidden=8
        ).eval()
        readout.load_state_dict(part(state, f"readouts.{animal}."))
        shifter = MLPShifter(hidden=6)
        shifter.load_state_dict(part(state, f"shifters.{animal}."))
        responses = F.elu(readout(features, shifter(pupil[..., -15:]))) + 1
        found = responses.mT.detach().numpy()
        np.testing.assert_allclose(found, outputs[name], rtol=0, atol=1e-5 * np.abs(outputs[name]).max(), err_msg=name)


@pytest.mark.parametrize("fusion_levels", ["0", "2_4", "2_4_8_16"])
def test_only_levels_that_are_used_have_gradients(fusion_levels):
    torch.manual_seed(0)
    readout = HierarchicalGaussianReadout((6, 5, 7), 32, torch.randn(32, 2), torch.rand(32), fusion_levels)
    readout(torch.randn(2, 6, 3, 5, 7), torch.zeros(2, 2, 3)).square().sum().backward()
    reached = {name for name, p in readout.named_parameters() if p.grad is not None and name.startswith("_features")}
    wanted = {"_features"} | {f"_features{k}" for k in fusion_levels.split("_") if k != "0"}
    assert reached == wanted


def test_it_cannot_drop_neurons():
    with pytest.raises(ValueError, match="cannot drop neurons"):
        HierarchicalGaussianReadout((4, 3, 3), 20).keep_neurons(torch.arange(3))


def test_fresh_weights_are_drawn_again_as_they_were(shared):
    """What the states with adaptive fusion are made of gives the state with mean fusion, which is there."""
    from safetensors.torch import load_file

    folder = shared / "reference" / "values" / "video" / "dynamic_vfm"
    norms = json.loads((folder / "reference.json").read_text())["variants"]["mean_perturbed"]["grad_norms"]
    fresh = fresh_mean(load_file(folder / "state_mean_perturbed.safetensors"), norms)
    for name, value in around_core(fusion=False):
        torch.testing.assert_close(fresh[name], value, rtol=0, atol=1e-6)


def test_it_runs_in_half_and_in_double_precision():
    torch.manual_seed(0)
    readout = HierarchicalGaussianReadout((6, 5, 7), 32, torch.randn(32, 2)).eval()
    features, shift = torch.randn(2, 6, 3, 5, 7), 0.1 * torch.randn(2, 2, 3)
    expected = readout(features, shift)
    with torch.autocast("cpu", torch.bfloat16):
        found = readout(features.bfloat16(), shift.bfloat16())
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
    double = readout.double()(features.double(), shift.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected)
