"""The factorised readout: neuralpredictors' and ViV1T's numbers and gradients, positivity, sharing."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from transfer.activations import published_activation
from transfer.factorized_readout import FactorizedReadout
from transfer.gaussian_readout import Shared
from transfer.published_parts import from_published

IN_SHAPE, NEURONS = (6, 9, 13), 7
CASES = {
    "full_factorized2d": {},
    "full_factorized2d_unnorm": {"normalize": False, "bias": False},
    "full_factorized2d_posspatial": {"positivity": "spatial"},
    "full_factorized2d_constrainpos": {"positivity": "all"},
}


def read(file):
    """Arrays of a reference case as tensors."""
    if not file.exists():
        pytest.skip(f"{file.name} is not among the reference values here")
    with np.load(file, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def part(values, prefix):
    """Entries below a prefix."""
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def agree(found, expected, tolerance=1e-5):
    """Equal up to rounding."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_neuralpredictors(shared, name):
    values = read(shared / f"reference/values/static/readout/{name}.npz")
    options = {"spatial_and_feature_reg_weight": 0.3, "published_penalty": True, **CASES[name]}
    readout = FactorizedReadout(IN_SHAPE, NEURONS, **options)
    readout.load_state_dict(part(values, "sd/"))
    responses = readout(values["in/x"])
    agree(responses, values["out/eval"])
    agree(readout.masks(), values["out/normalized_spatial"])
    agree(readout._features, values["out/features_after"])
    agree(readout.regularizer(), values["out/reg_sum"])
    agree(readout.regularizer("mean"), values["out/reg_mean"])
    responses.square().sum().backward()
    for key, expected in part(values, "grad/").items():
        agree(readout.get_parameter(key).grad, expected, 1e-4)


def test_shared_features(shared):
    values = read(shared / "reference/values/static/readout/full_factorized2d_shared.npz")
    ids = Shared(np.array([3, 0, 3, 1, 0, 7, 1]))
    readout = FactorizedReadout(IN_SHAPE, NEURONS, shared_features=ids)
    readout.load_state_dict(part(values, "sd/"))
    agree(readout(values["in/x"]), values["out/eval"])
    borrower = FactorizedReadout(IN_SHAPE, NEURONS, shared_features=Shared(ids.match_ids, readout))
    assert borrower._features is readout._features


@pytest.mark.parametrize("normalize", [True, False])
def test_cut_at_zero_in_the_published_operations(normalize):
    """Weights are cut through `.data`, so that gradients pass where they were cut."""
    torch.manual_seed(0)
    readout = FactorizedReadout(IN_SHAPE, NEURONS, normalize=normalize, positivity="all", init_noise=1.0)
    x = torch.randn(4, *IN_SHAPE)
    spatial, features = (each.detach().clone().requires_grad_() for each in (readout.spatial, readout._features))
    features.data.clamp_min_(0)
    mask = spatial / (spatial.pow(2).sum((1, 2), keepdim=True).sqrt() + 1e-6) if normalize else spatial
    mask.data.clamp_min_(0)
    expected = torch.einsum("nco,oc->no", torch.einsum("ncwh,owh->nco", x, mask), features)
    expected.square().sum().backward()
    found = readout(x)
    found.square().sum().backward()
    agree(found, expected)
    agree(readout.spatial.grad, spatial.grad, 1e-4)
    agree(readout._features.grad, features.grad, 1e-4)
    agree(readout.spatial, spatial)


@pytest.mark.parametrize("animal", ["A", "F"])
def test_viv1t_closed_loop(shared, animal):
    folder = shared / "reference/values/video/viv1t_closed_loop"
    outputs = read(folder / "outputs_readout_factorized_perturbed.npz")
    weights = load_file(folder / "state_readout_factorized_perturbed.safetensors")
    core, expected = outputs[f"core_{animal}"], outputs[f"y_{animal}"]
    in_shape = (core.shape[1], *core.shape[3:])
    readout = FactorizedReadout(in_shape, expected.shape[1], bias=False, normalize=False).eval()
    readout.load_state_dict(from_published(part(weights, f"readouts.{animal}.")))
    agree(published_activation("viv1t_closed_loop", 1)(readout(core)), expected)


def test_penalty_of_each_neuron():
    torch.manual_seed(0)
    readout = FactorizedReadout(IN_SHAPE, NEURONS, normalize=False)
    expected = sum(readout.spatial[n].abs().sum() * readout._features[n].abs().sum() for n in range(NEURONS))
    torch.testing.assert_close(readout.regularizer(), expected)


def test_dropped_neurons():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3, 9, 13)
    for options in ({}, {"shared_features": Shared(np.arange(7) % 3)}):
        readout = FactorizedReadout(IN_SHAPE, NEURONS, **options)
        before = readout(x)
        readout.keep_neurons(np.arange(7) % 2 == 0)
        torch.testing.assert_close(readout(x), before[:, ::2])


def test_masks_do_not_move():
    readout, features = FactorizedReadout(IN_SHAPE, NEURONS), torch.randn(1, *IN_SHAPE)
    assert torch.equal(readout(features, torch.ones(1, 2)), readout(features))


def test_mistakes():
    with pytest.raises(ValueError, match="positivity is 'some', expected \"none\""):
        FactorizedReadout(IN_SHAPE, NEURONS, positivity="some")
    with pytest.raises(ValueError, match="reduction is 'max'"):
        FactorizedReadout(IN_SHAPE, NEURONS).regularizer("max")
