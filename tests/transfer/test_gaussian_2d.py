"""The older Gaussian readouts in the plane: neuralpredictors' numbers, training, shifts, dropped neurons."""

import numpy as np
import pytest
import torch

from transfer.gaussian_2d import DeterministicGaussianReadout, Gaussian2dReadout

IN_SHAPE, NEURONS = (6, 9, 13), 7


@pytest.fixture
def load(shared):
    """Gives a readout the weights of a reference case, and returns its values."""

    def load(readout, name):
        with np.load(shared / f"reference/values/static/readout/{name}.npz", allow_pickle=False) as arrays:
            values = {key: torch.from_numpy(arrays[key]) for key in arrays}
        readout.load_state_dict({key[3:]: value for key, value in values.items() if key.startswith("sd/")})
        return values

    return load


def test_gaussian_2d(load):
    readout = Gaussian2dReadout(IN_SHAPE, NEURONS).eval()
    values = load(readout, "gaussian2d")
    torch.testing.assert_close(readout(values["in/x"]), values["out/eval"], rtol=1e-5, atol=1e-5)
    assert (readout.sigma >= 0).all()


def test_gaussian_2d_draws_with_its_deviations():
    torch.manual_seed(0)
    readout = Gaussian2dReadout(IN_SHAPE, NEURONS, fixed_sigma=True, init_sigma_range=0.2)
    assert (readout.sigma == 0.2).all()
    x, noise = torch.randn(3, *IN_SHAPE), torch.randn(3, NEURONS, 2)
    grid = torch.clamp(noise * 0.2 + readout.mu[:, :, 0], -1, 1)[:, :, None]
    sampled = torch.nn.functional.grid_sample(x, grid, align_corners=True).squeeze(-1)
    torch.testing.assert_close(readout(x, noise=noise), (sampled * readout.features[:, :, 0]).sum(1))
    assert not torch.equal(readout(x), readout(x))
    assert torch.equal(readout(x, sample=False), readout.eval()(x))


def test_deterministic(load):
    readout = DeterministicGaussianReadout(IN_SHAPE, NEURONS)
    values = load(readout, "deterministic_gaussian2d")
    torch.testing.assert_close(readout(values["in/x"]), values["out/eval"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(readout.mask()[0], values["out/mask"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(readout.regularizer(), values["out/reg"])


def test_deterministic_can_be_trained_and_shifted():
    torch.manual_seed(0)
    readout = DeterministicGaussianReadout((2, 9, 13), 3, init_sigma=0.1)
    x = torch.randn(4, 2, 9, 13)
    readout(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in (readout.mu, readout.log_var, readout.features))
    # One column to the right is 2 / 12 of the map.
    moved = readout(x, torch.tensor([[2 / 12, 0.0]]).expand(4, -1))
    readout.mu.data[:, 1] += 2 / 12
    torch.testing.assert_close(moved, readout(x))


@pytest.mark.parametrize("positivity", ["default", "abs", "elu"])
def test_deterministic_positivity(positivity):
    torch.manual_seed(0)
    readout = DeterministicGaussianReadout((2, 4, 5), 3, positivity=positivity)
    torch.nn.init.normal_(readout.features)
    assert (readout(torch.rand(4, 2, 4, 5)) >= 0).all()


@pytest.mark.parametrize("kind", [Gaussian2dReadout, DeterministicGaussianReadout])
def test_dropped_neurons(kind):
    readout = kind(IN_SHAPE, NEURONS, mean_responses=torch.rand(NEURONS)).eval()
    video = torch.randn(2, 6, 3, 9, 13)
    before = readout(video)
    readout.keep_neurons([6, 2])
    torch.testing.assert_close(readout(video), before[:, [6, 2]])
