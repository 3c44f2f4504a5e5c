"""Penalties on kernels: the published values, and what they say of smooth and rough kernels."""

import numpy as np
import pytest
import torch

from pretrain.models.regularizers import (
    INPUT_REGULARIZERS,
    centre_bump,
    flat_laplace_l2_3d,
    group_sparsity,
    input_penalty,
    laplace_l1,
    laplace_l2,
    laplace_l2_3d,
    laplace_l2norm,
    temporal_laplace,
)


@pytest.fixture(scope="module")
def values(shared) -> dict[str, torch.Tensor]:
    with np.load(shared / "reference" / "values" / "static" / "misc" / "regularizers.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.mark.parametrize("name", ["LaplaceL2", "LaplaceL2norm", "LaplaceL1"])
@pytest.mark.parametrize("padding", [None, 0, 1])
@pytest.mark.parametrize("average", [True, False])
def test_laplace_as_published(values, name, padding, average):
    expected = values[f"out/{name}_pad{padding}_avg{int(average)}"]
    torch.testing.assert_close(INPUT_REGULARIZERS[name](values["in/w"], padding, average), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [5, 7])
def test_larger_laplace_filters_as_published(values, size):
    expected = values[f"out/LaplaceL2_filter{size}_avg1"]
    torch.testing.assert_close(laplace_l2(values["in/w"], size=size), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("average", [True, False])
def test_gaussian_and_temporal_laplace_as_published(values, average):
    for name in ("GaussianLaplaceL2", "GaussianLaplaceL2Adaptive"):
        found = INPUT_REGULARIZERS[name](values["in/w"], average=average)
        torch.testing.assert_close(found, values[f"out/{name}_avg{int(average)}"], rtol=1e-5, atol=0)
    found = temporal_laplace(values["in/wt"], average=average)
    torch.testing.assert_close(found, values[f"out/DepthLaplaceL21d_avg{int(average)}"], rtol=1e-5, atol=0)


def test_spatio_temporal_laplace_as_published(values):
    torch.testing.assert_close(laplace_l2_3d(values["in/w3"]), values["out/LaplaceL23d"], rtol=1e-5, atol=0)
    torch.testing.assert_close(centre_bump(7, 9), values["out/gaussian2d_7x9_sigma1.75"], rtol=0, atol=1e-6)


def test_a_ramp_is_smooth_and_a_checkerboard_is_not():
    ramp = torch.arange(7.0)[:, None].expand(7, 7)[None, None]
    checkers = ((-1.0) ** (torch.arange(7)[:, None] + torch.arange(7)))[None, None]
    for penalty in (laplace_l2, laplace_l2norm, laplace_l1):
        assert penalty(ramp, 0) == 0
        assert penalty(checkers, 0) > 1
    assert laplace_l2norm(checkers, 0, average=True) == 64


def test_the_normalised_penalty_does_not_know_scale():
    weight = torch.randn(3, 2, 5, 5)
    torch.testing.assert_close(laplace_l2norm(9 * weight), laplace_l2norm(weight))
    assert laplace_l2(9 * weight) > 80 * laplace_l2(weight)


def test_group_sparsity_counts_kernels_not_weights():
    weight = torch.zeros(2, 3, 5, 5)
    weight[0, 0] = 1
    torch.testing.assert_close(group_sparsity(weight), torch.tensor(5.0 / 6))


def test_flat_kernels_have_one_time_step():
    weight = torch.randn(3, 2, 1, 5, 5)
    torch.testing.assert_close(flat_laplace_l2_3d(weight), laplace_l2(weight[:, :, 0]))
    with pytest.raises(ValueError, match="one time step, found 4"):
        flat_laplace_l2_3d(torch.randn(3, 2, 4, 5, 5))


def test_unknown_names_list_those_there_are():
    with pytest.raises(ValueError, match="LaplaceL2norm"):
        input_penalty("LaplaceL3")
    with pytest.raises(ValueError, match="3, 5, 7, found 4"):
        laplace_l2(torch.randn(1, 1, 5, 5), size=4)
