"""Linear readouts without space: DwiseNeuro's and ViV1T's numbers, surplus outputs, published sizes."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from transfer.activations import published_activation
from transfer.grouped_linear_readout import GroupedLinearReadout
from transfer.published_parts import from_published


def read(file):
    """Arrays of a reference case as tensors."""
    with np.load(file, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def part(values, prefix):
    """Entries below a prefix."""
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


@pytest.mark.parametrize("variant", ["init_default", "init_repo", "perturbed"])
def test_dwiseneuro(shared, variant):
    folder = shared / "reference/values/video/dwiseneuro"
    outputs, weights = read(folder / f"outputs_{variant}.npz"), load_file(folder / f"state_{variant}.safetensors")
    neurons = json.loads((folder / "reference.json").read_text())["config"]["readout_outputs"]
    activation = published_activation("dwiseneuro", "softplus")
    for mouse, count in enumerate(neurons):
        readout = GroupedLinearReadout((outputs["cortex"].shape[1], 1, 1), count).eval()
        readout.load_state_dict(from_published(part(weights, f"readouts.{mouse}.")))
        expected = outputs[f"out{mouse}"]
        for features in (outputs["cortex"], outputs["cortex"][..., None, None]):
            found = activation(readout(features))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("animal", ["A", "F"])
def test_viv1t_closed_loop(shared, animal):
    folder = shared / "reference/values/video/viv1t_closed_loop"
    outputs = read(folder / "outputs_readout_conv_perturbed.npz")
    weights = load_file(folder / "state_readout_conv_perturbed.safetensors")
    core, expected = outputs[f"core_{animal}"], outputs[f"y_{animal}"]
    readout = GroupedLinearReadout((core.shape[1], *core.shape[3:]), expected.shape[1], groups=1).eval()
    readout.load_state_dict(from_published(part(weights, f"readouts.{animal}.")))
    found = published_activation("viv1t_closed_loop", 1)(readout(core))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_published_sizes():
    """Ten mice: 161,580,042 parameters, two more outputs than neurons where their number is odd."""
    neurons = (7863, 7908, 8202, 7939, 8122, 7440, 7928, 8285, 7671, 7495)
    with torch.device("meta"):
        readouts = [GroupedLinearReadout((4096, 1, 1), each) for each in neurons]
    assert sum(each.numel() for readout in readouts for each in readout.parameters()) == 161_580_042


def test_each_group_reads_its_channels():
    readout = GroupedLinearReadout((4, 1, 1), 3, mean_responses=torch.tensor([1.0, 2.0, 3.0])).eval()
    features = torch.zeros(2, 4, 5)
    assert readout(features)[0, :, 0].tolist() == [1, 2, 3]
    features[:, :2] = 1
    assert (readout(features) != readout(torch.zeros(2, 4, 5))).all(2)[0].tolist() == [True, True, False]
    assert readout(torch.zeros(2, 4, 6, 7)).shape == (2, 3)


def test_mistakes():
    with pytest.raises(ValueError, match="5 channels cannot be divided into 2 groups"):
        GroupedLinearReadout((5, 1, 1), 3)
    with pytest.raises(ValueError, match="features have 3 channels, the readout was built for 4"):
        GroupedLinearReadout((4, 1, 1), 3)(torch.zeros(1, 3, 5))
    with pytest.raises(ValueError, match="cannot drop neurons"):
        GroupedLinearReadout((4, 1, 1), 3).keep_neurons([0])
