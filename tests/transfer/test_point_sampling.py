"""Weighted features at points: the numbers and gradients of grid_sample, on both ways of computing them."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transfer import point_sampling
from transfer.point_sampling import bilinear_corners, by_grid_sample, weighted_points


@pytest.fixture(params=["products", "gathering"], autouse=True)
def way(request, monkeypatch):
    """Both ways of computing points that are the same in all frames, however few there are."""
    monkeypatch.setattr(point_sampling, "PRODUCTS_PAY", 0 if request.param == "products" else float("inf"))


def job(frames, same, height, width, neurons, spread, dtype=torch.float64):
    """Features, points up to `spread` times beyond the map, weights; all of which want gradients."""
    features = torch.randn(frames, 3, height, width, dtype=dtype)
    points = spread * (2 * torch.rand(1 if same else frames, neurons, 2, dtype=dtype) - 1)
    return [each.requires_grad_() for each in (features, points, torch.randn(3, neurons, dtype=dtype))]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.integers(1, 12),
    same=st.booleans(),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    neurons=st.integers(1, 9),
    spread=st.sampled_from([0.5, 1.0, 1.7]),
    align_corners=st.booleans(),
    seed=st.integers(0, 99),
)
def test_grid_sample(frames, same, size, neurons, spread, align_corners, seed):
    torch.manual_seed(seed)
    inputs = job(frames, same, *size, neurons, spread)
    found, expected = (way(*inputs, align_corners) for way in (weighted_points, by_grid_sample))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(expected)
    for ours, torchs in zip(*(torch.autograd.grad(each, inputs, upstream) for each in (found, expected)), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("align_corners", [True, False])
def test_single_precision(same, align_corners):
    torch.manual_seed(0)
    inputs = job(20, same, 18, 46, 300, 1.2, torch.float32)
    found, expected = (way(*inputs, align_corners) for way in (weighted_points, by_grid_sample))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    for ours, torchs in zip(*(torch.autograd.grad(each.sum(), inputs) for each in (found, expected)), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4 * float(torchs.abs().max()))


@pytest.mark.parametrize("same", [True, False])
def test_gradients_by_differences(same):
    torch.manual_seed(0)
    inputs = job(6, same, 4, 5, 6, 1.3)
    assert torch.autograd.gradcheck(weighted_points, inputs)


@pytest.mark.parametrize("same", [True, False])
def test_only_the_gradients_that_are_wanted(same):
    torch.manual_seed(0)
    inputs = job(9, same, 4, 5, 6, 1.0)
    every = torch.autograd.grad(weighted_points(*inputs).square().sum(), inputs)
    for place, expected in enumerate(every):
        some = [each if number == place else each.detach() for number, each in enumerate(inputs)]
        torch.testing.assert_close(torch.autograd.grad(weighted_points(*some).square().sum(), some[place])[0], expected)


def test_frames_of_video_lie_anywhere_in_memory():
    video = torch.randn(2, 3, 5, 4, 6)
    frames, points, weights = video.transpose(1, 2), torch.rand(10, 7, 2), torch.randn(3, 7)
    torch.testing.assert_close(
        weighted_points(frames, points, weights), by_grid_sample(frames.flatten(0, 1), points, weights, True)
    )


def test_known_corners():
    """The middle of a 2 x 2 map, its lower right corner, and one pixel to the left of the map."""
    points = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [-3.0, -1.0]]])
    index, share = bilinear_corners(points, 2, 2, True)
    assert index[0, 0].tolist() == [0, 1, 2, 3]
    assert share[0].tolist() == [[0.25] * 4, [1, 0, 0, 0], [0] * 4]
    assert index[0, 1, 0] == 3


@pytest.mark.parametrize("same", [True, False])
def test_half_precision_is_sampled_in_single(same):
    features, points, weights = (each.detach() for each in job(9, same, 4, 5, 6, 1.0, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        found = weighted_points(features.bfloat16().requires_grad_(), points, weights)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, weighted_points(features.bfloat16().float(), points, weights))
    found.sum().backward()


@pytest.mark.parametrize("same", [True, False])
def test_a_point_that_is_not_a_number_spoils_its_neuron_only(same):
    features, points, weights = (each.detach() for each in job(9, same, 4, 5, 6, 1.0))
    points[:, 2] = torch.nan
    found = weighted_points(features, points, weights)
    assert found[:, 2].isnan().all()
    assert found[:, [0, 1, 3, 4, 5]].isfinite().all()


def test_the_way_that_pays(monkeypatch):
    monkeypatch.setattr(point_sampling, "PRODUCTS_PAY", 25)
    features, points, weights = job(6, True, 2, 3, 25, 1.0)
    assert "SamePoints" in str(weighted_points(features, points, weights).grad_fn.next_functions)
    assert "PointsOfFrames" in str(weighted_points(features, points[:, :24], weights[:, :24]).grad_fn)
