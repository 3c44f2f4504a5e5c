"""Points among the channels: neuralpredictors' numbers, several points per neuron, shifts, dropped neurons."""

import numpy as np
import pytest
import torch

from transfer.gaussian_3d import Gaussian3dReadout, UltraSparseReadout

IN_SHAPE, NEURONS = (6, 9, 13), 7
CASES = {
    "gaussian3d": (Gaussian3dReadout, {}),
    "ultrasparse": (UltraSparseReadout, {"num_filters": 3}),
    "ultrasparse_sharedmean": (UltraSparseReadout, {"num_filters": 3, "shared_mean": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_neuralpredictors(shared, name):
    with np.load(shared / f"reference/values/static/readout/{name}.npz", allow_pickle=False) as arrays:
        values = {key: torch.from_numpy(arrays[key]) for key in arrays}
    kind, options = CASES[name]
    readout = kind(IN_SHAPE, NEURONS, **options).eval()
    readout.load_state_dict({key[3:]: value for key, value in values.items() if key.startswith("sd/")})
    torch.testing.assert_close(readout(values["in/x"]), values["out/eval"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_training_dropping_and_shifting(name):
    torch.manual_seed(0)
    kind, options = CASES[name]
    readout = kind(IN_SHAPE, NEURONS, mean_responses=torch.rand(NEURONS), **options)
    video = torch.randn(2, 6, 4, 9, 13)
    assert not torch.equal(readout(video), readout(video))
    readout(video).sum().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in readout.parameters())
    readout.eval()
    before = readout(video, torch.full((2, 2), 0.1))
    assert before.shape == (2, NEURONS, 4)
    assert not torch.allclose(before, readout(video))
    torch.testing.assert_close(readout(video, torch.full((2, 2), 0.1), neurons=[3, 1]), before[:, [3, 1]])
    readout.keep_neurons([3, 1])
    torch.testing.assert_close(readout(video, torch.full((2, 2), 0.1)), before[:, [3, 1]])


def test_a_point_on_a_channel_reads_that_channel():
    readout = Gaussian3dReadout((3, 5, 7), 3).eval()
    with torch.no_grad():
        readout.mu.zero_()[0, 0, :, 0, 2] = torch.tensor([-1.0, 0.0, 1.0])
        readout.features.fill_(1)
    x = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(readout(x), x[:, :, 2, 3])
    assert readout.regularizer() == 3
