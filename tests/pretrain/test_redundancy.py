"""What outputs repeat of each other: lightly's losses and their gradients, without picking the diagonal out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pretrain.objectives.barlow_twins import BarlowTwins
from pretrain.objectives.redundancy import redundancy
from pretrain.objectives.vicreg import covariance_loss


def test_the_diagonal_has_no_share_in_value_or_gradient():
    matrix = torch.randn(5, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = redundancy(matrix.clone())
    expected = matrix[~torch.eye(5, dtype=torch.bool)].square().sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    (slope,) = torch.autograd.grad(found, matrix)
    assert torch.equal(slope, torch.autograd.grad(expected, matrix)[0])


def test_little_beside_a_large_diagonal_is_not_lost_in_rounding():
    matrix = 1000 * torch.eye(8)
    matrix[0, 1] = 1e-3
    assert redundancy(matrix).item() == pytest.approx(1e-6, rel=1e-6)


def with_slopes(loss: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    return loss.detach(), torch.autograd.grad(loss, outputs)[0]


@settings(deadline=None, max_examples=25)
@given(batch=st.integers(3, 20), dim=st.integers(2, 12), scale=st.floats(0.1, 10), seed=st.integers(0, 2**31))
def test_covariances_are_lightlys(batch, dim, scale, seed):
    from lightly.loss.vicreg_loss import covariance_loss as reference

    outputs = scale * torch.randn(batch, dim, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    outputs.requires_grad_()
    for found, expected in zip(
        with_slopes(covariance_loss(outputs), outputs), with_slopes(reference(outputs), outputs), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=25)
@given(batch=st.integers(3, 20), dim=st.integers(2, 12), weight=st.floats(0.001, 2), seed=st.integers(0, 2**31))
def test_barlow_twins_is_lightlys(batch, dim, weight, seed):
    from lightly.loss import BarlowTwinsLoss

    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    objective = BarlowTwins(backbone, 2, hidden_dim=4, dim=dim, redundancy_weight=weight)
    objective.head = nn.Identity()
    outputs = torch.randn(2, batch, dim, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    found = with_slopes(objective.compare(*outputs)["loss"], outputs)
    for mine, expected in zip(found, with_slopes(BarlowTwinsLoss(weight)(*outputs), outputs), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
