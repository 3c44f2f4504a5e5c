"""Point readouts over scales: neuralpredictors' numbers, a plain transcription, video, pruning."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from transfer.pooled_readout import (
    PointPooledReadout,
    PointPyramidReadout,
    SpatialTransformerPooledReadout,
    pruning_scores,
)

IN_SHAPE, NEURONS = (6, 9, 13), 7


@pytest.fixture
def values(shared):
    """Reads a reference case."""

    def read(name):
        file = shared / f"reference/values/static/readout/{name}.npz"
        if not file.exists():
            pytest.skip(f"{file.name} is not among the reference values here")
        with np.load(file, allow_pickle=False) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays}

    return read


def load(readout, values):
    """The reference's weights, all of them."""
    readout.load_state_dict({key[3:]: value for key, value in values.items() if key.startswith("sd/")})
    return readout.eval()


def agree(found, expected):
    """Equal up to rounding."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [("point_pooled2d", {}), ("point_pooled2d_k3", {"pool_steps": 1, "pool_kernel": 3, "bias": False})],
)
def test_point_pooled(values, name, options):
    case = values(name)
    readout = load(PointPooledReadout(IN_SHAPE, NEURONS, **options), case)
    agree(readout(case["in/x"]), case["out/eval"])
    agree(readout(case["in/x"], case["in/shift"]), case["out/eval_shift"])
    agree(readout.regularizer(), case["out/reg_sum"])


@pytest.mark.parametrize(("steps", "kernel"), [(0, 2), (1, 3), (3, 2)])
def test_point_pooled_in_the_published_operations(steps, kernel):
    torch.manual_seed(0)
    readout = PointPooledReadout(IN_SHAPE, NEURONS, steps, kernel, init_range=1.0)
    torch.nn.init.normal_(readout.features)
    x, shift = torch.randn(10, *IN_SHAPE), torch.rand(10, 2) - 0.5
    maps = [x]
    for _ in range(steps):
        maps.append(torch.nn.AvgPool2d(kernel, kernel, count_include_pad=False)(maps[-1]))
    grid = readout.grid.expand(10, -1, -1, -1) + shift[:, None, None, :]
    sampled = torch.cat([F.grid_sample(each, grid, align_corners=True) for each in maps], 1).squeeze(-1)
    agree(readout(x, shift), (sampled * readout.features.view(1, -1, NEURONS)).sum(1))


@pytest.mark.parametrize(("name", "downsample"), [("point_pyramid2d_down", True), ("point_pyramid2d_flat", False)])
def test_point_pyramid(values, name, downsample):
    case = values(name)
    readout = PointPyramidReadout((6, 16, 24), NEURONS, 2, downsample=downsample)
    torch.testing.assert_close(readout.gauss_pyramid.filter, case["sd/gauss_pyramid.filter"], rtol=0, atol=0)
    agree(load(readout, case)(case["in/x"]), case["out/eval"])


@pytest.mark.parametrize("filter_name", ["gauss5x5", "gauss3x3", "laplace5x5"])
def test_a_pyramid_adds_up_to_the_map(filter_name):
    readout = PointPyramidReadout((2, 11, 14), 3, 3, filter_name, downsample=False)
    maps = torch.randn(2, 2, 11, 14)
    torch.testing.assert_close(sum(readout.maps(maps)), maps)


def test_spatial_transformer(values):
    case = values("spatial_transformer_pooled3d")
    readout = load(SpatialTransformerPooledReadout(IN_SHAPE, NEURONS), case)
    agree(readout(case["in/x"]).mT, case["out/eval"])
    agree(readout(case["in/x"], case["in/shift"].mT).mT, case["out/eval_shift"])


def test_stopped_gradient_and_pruning():
    torch.manual_seed(0)
    readout = SpatialTransformerPooledReadout(IN_SHAPE, NEURONS, stop_grad=True)
    torch.nn.init.normal_(readout.features)
    features = torch.randn(3, *IN_SHAPE, requires_grad=True)
    readout(features).square().sum().backward()
    assert features.grad is None
    for _ in range(2):
        scores = pruning_scores(readout)
        lowest = scores.masked_fill(readout.mask == 0, torch.inf).amin(1)
        readout.prune(scores)
        assert (scores.amin(1) <= lowest).all()
    assert (readout.mask.sum((0, 1, 2)) == 12 - 2).all()
    assert (readout.features[readout.mask == 0] == 0).all()


def test_video_chosen_and_dropped_neurons():
    torch.manual_seed(0)
    readout = PointPooledReadout(IN_SHAPE, NEURONS, positive=True, mean_responses=torch.rand(NEURONS))
    torch.nn.init.normal_(readout.features)
    video = torch.randn(2, 6, 5, 9, 13)
    found = readout(video)
    assert (readout.features >= 0).all()
    agree(found[..., 3], readout(video[:, :, 3]))
    agree(readout(video, neurons=[4, 1]), found[:, [4, 1]])
    readout.keep_neurons([4, 1])
    agree(readout(video), found[:, [4, 1]])


def test_mistakes():
    with pytest.raises(ValueError, match="init_range is 0"):
        PointPooledReadout(IN_SHAPE, NEURONS, init_range=0)
    with pytest.raises(ValueError, match="filter_name is 'box', expected one of gauss5x5"):
        PointPyramidReadout(IN_SHAPE, NEURONS, filter_name="box")
    with pytest.raises(ValueError, match="the readout was built for"):
        PointPooledReadout(IN_SHAPE, NEURONS)(torch.randn(1, 6, 8, 13))
