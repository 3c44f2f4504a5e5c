"""Output activations: neuralpredictors' numbers, closed forms, every project's own numbers for them."""

import numpy as np
import pytest
import torch

from transfer.activations import ACTIVATIONS, PUBLISHED, LearnedSoftplus, create_activation, published_activation


def test_neuralpredictors(shared):
    with np.load(shared / "reference/values/static/misc/activations.npz", allow_pickle=False) as arrays:
        values = {key: torch.from_numpy(arrays[key]) for key in arrays}
    z = values["in/z"]
    for ours, theirs in (
        (published_activation("neuralpredictors", "elu"), "elu1"),
        (published_activation("neuralpredictors", "Log1Exp"), "log1exp"),
        (published_activation("neuralpredictors", "SoftThreshold"), "soft_threshold"),
        (create_activation("elu1", offset=-0.3, floor=0.7), "adaptive_elu_x0.3_y0.7"),
    ):
        torch.testing.assert_close(ours(z), values[f"out/{theirs}"], rtol=1e-5, atol=1e-6)


def test_closed_forms():
    z = torch.linspace(-30, 30, 121, dtype=torch.float64)
    beta = 0.07
    expected = {
        "identity": z,
        "elu1": torch.where(z > 0, z + 1, z.exp()),
        "exp": z.exp(),
        "softplus": torch.log1p(z.exp()),
        "learned_softplus": torch.log1p(z.exp()),
        "sigmoid": 1 / (1 + (-z).exp()),
    }
    assert expected.keys() == ACTIVATIONS.keys()
    for name, rates in expected.items():
        torch.testing.assert_close(create_activation(name)(z), rates, rtol=1e-6, atol=1e-8)
    dwiseneuro = published_activation("dwiseneuro", "softplus")
    torch.testing.assert_close(dwiseneuro(z), torch.log1p((beta * z).exp()) / beta, rtol=1e-6, atol=1e-8)


def test_learned_softplus_learns_and_is_linear_above_the_threshold():
    activation = LearnedSoftplus()
    activation.log_beta.data.fill_(0.5)
    z = torch.tensor([-1.0, 2.0, 5000.0])
    beta = np.exp(0.5)
    torch.testing.assert_close(activation(z)[:2], torch.log1p((beta * z[:2]).exp()) / beta)
    assert activation(z)[2] == 5000
    activation(z).sum().backward()
    assert activation.log_beta.grad.isfinite()
    assert activation.log_beta.grad != 0


def test_the_same_number_means_different_things():
    z = torch.tensor([2.0])
    assert published_activation("viv1t", 1)(z) == z.exp()
    assert published_activation("viv1t_closed_loop", 1)(z) == 3
    for project, mode in PUBLISHED:
        assert published_activation(project, mode)(z).shape == (1,)


def test_mistakes():
    with pytest.raises(ValueError, match="there is no activation 'softplu'; nearest: softplus"):
        create_activation("softplu")
    with pytest.raises(ValueError, match="viv1t has no output mode 3; known: 0, 1, 2"):
        published_activation("viv1t", 3)
