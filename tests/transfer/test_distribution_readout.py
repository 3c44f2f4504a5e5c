"""Several numbers per neuron: neuralpredictors' numbers, and one readout per parameter."""

import numpy as np
import torch

from transfer.distribution_readout import DistributionGaussianReadout, DistributionPooledReadout
from transfer.gaussian_readout import GaussianReadout, Shared
from transfer.pooled_readout import PointPooledReadout

IN_SHAPE, NEURONS = (6, 9, 13), 7


def test_neuralpredictors(shared):
    file = shared / "reference/values/static/readout/generalized_full_gaussian2d.npz"
    with np.load(file, allow_pickle=False) as arrays:
        values = {key: torch.from_numpy(arrays[key]) for key in arrays}
    readout = DistributionGaussianReadout(IN_SHAPE, NEURONS).eval()
    readout.load_state_dict({key[3:]: value for key, value in values.items() if key.startswith("sd/")})
    torch.testing.assert_close(readout(values["in/x"]), values["out/eval"], rtol=1e-5, atol=1e-5)


def test_each_parameter_is_a_readout_of_its_own():
    torch.manual_seed(0)
    for kind, single in (
        (DistributionGaussianReadout, GaussianReadout),
        (DistributionPooledReadout, PointPooledReadout),
    ):
        several = kind(IN_SHAPE, NEURONS, parameters=3).eval()
        one = single(IN_SHAPE, NEURONS).eval()
        for parameter in several.parameters():
            torch.nn.init.normal_(parameter, 0, 0.4)
        for x in (torch.randn(1, *IN_SHAPE), torch.randn(2, 6, 5, 9, 13)):
            found = several(x)
            assert found.shape[:3] == (3, len(x), NEURONS)
            for number in range(3):
                state = several.state_dict()
                weights = "_features" if "_features" in state else "features"
                one.load_state_dict(state | {name: state[name][number] for name in (weights, "bias")})
                torch.testing.assert_close(found[number], one(x))
            torch.testing.assert_close(several(x, neurons=[2, 5]), found[:, :, [2, 5]])
        several.keep_neurons([2, 5])
        torch.testing.assert_close(several(x), found[:, :, [2, 5]])


def test_shared_features_have_a_scale_per_parameter():
    readout = DistributionGaussianReadout(IN_SHAPE, NEURONS, shared_features=Shared(np.arange(7) % 3))
    assert readout.scales.shape == (2, 1, 1, 1, NEURONS)
    assert readout._features.shape == (2, 1, 6, 1, 3)
    assert readout(torch.randn(2, *IN_SHAPE)).shape == (2, 2, NEURONS)
