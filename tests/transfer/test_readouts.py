"""Readouts by name: each one on images, video and half precision, its mistakes, and published names and shapes."""

import json

import numpy as np
import pytest
import torch

from pretrain.published import select_weights
from transfer.grid_predictor import grid_predictor, source_grid
from transfer.modulators import RecurrentModulator
from transfer.published_parts import from_published
from transfer.readout import chosen_neurons, of_frames
from transfer.readouts import ALIASES, READOUTS, create_readout
from transfer.shifters import MLPShifter

IN_SHAPE, NEURONS = (8, 9, 13), 6
# Groups of 16 neurons need more than there are here.
OPTIONS = {"hierarchical_gaussian": {"held_levels": (2,), "levels": "2"}}


def signals(batch, frames):
    """Shift, behaviour and pupil centre of video."""
    return [torch.rand(batch, 2, frames) - 0.5 for _ in range(3)]


@pytest.mark.parametrize("name", READOUTS)
def test_every_readout(name):
    """Responses of video are those of its frames; all weights get a gradient; mean responses are the start."""
    torch.manual_seed(0)
    mean = torch.rand(NEURONS)
    readout = create_readout(name, IN_SHAPE, NEURONS, mean_responses=mean, **OPTIONS.get(name, {})).eval()
    video, (shift, behavior, pupil) = torch.randn(3, 8, 4, 9, 13, requires_grad=True), signals(3, 6)
    found = readout(video, shift, behavior, pupil)
    assert found.shape[-3:] == (3, NEURONS, 4)
    now = [None if each is None else each[..., 4] for each in (shift, behavior, pupil)]
    torch.testing.assert_close(found[..., 2], readout(video[:, :, 2], *now), rtol=1e-4, atol=1e-5)
    assert torch.equal(found, readout(video, None, behavior, pupil)) != readout.has_positions
    if name not in ("state_gaussian", "query_attention", "hierarchical_gaussian"):
        nothing = readout(torch.zeros(1, *IN_SHAPE))
        torch.testing.assert_close(nothing, mean.expand_as(nothing))
    readout.train()
    readout(video, shift, behavior, pupil).square().sum().backward()
    assert video.grad.abs().sum() > 0
    idle = {"attention.conv1.bias", "grid"}
    for key, parameter in readout.named_parameters():
        assert key in idle or (parameter.grad is not None and parameter.grad.abs().sum() > 0), key
    assert readout.regularizer() > 0


@pytest.mark.parametrize("name", READOUTS)
def test_half_precision_runs(name):
    readout = create_readout(name, IN_SHAPE, NEURONS, **OPTIONS.get(name, {}))
    video, (shift, behavior, pupil) = torch.randn(2, 8, 3, 9, 13), signals(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = readout(video.bfloat16(), shift, behavior, pupil)
    found.float().sum().backward()
    assert found.isfinite().all()


@pytest.mark.parametrize("name", READOUTS)
def test_nothing_is_needed_to_count_parameters(name):
    with torch.device("meta"):
        readout = create_readout(name, (64, 18, 46), 8000)
    assert all(each.is_meta for each in readout.parameters())


def test_names():
    assert type(create_readout("FullGaussian2d", IN_SHAPE, 3)) is READOUTS["gaussian"]
    assert set(ALIASES.values()) <= READOUTS.keys()
    with pytest.raises(ValueError, match="there is no readout 'gausian'; nearest: gaussian"):
        create_readout("gausian", IN_SHAPE, 3)


def described(file):
    """Tensors without content, by the keys, shapes and types of a published state dict."""
    entries = json.loads(file.read_text())
    return {
        key: torch.empty(shape, dtype=getattr(torch, kind.removeprefix("torch.")), device="meta")
        for key, (shape, kind) in entries.items()
    }


def part(values, prefix):
    """Entries below a prefix."""
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


@pytest.mark.parametrize(
    ("file", "prefix", "readout", "in_shape", "neurons"),
    [
        ("viv1t_competition/default_state_dict_keys", "readouts.A.", "state_gaussian", (112, 15, 29), 7440),
        ("viv1t_closed_loop/default_state_dict_keys", "readouts.A.", "gaussian", (112, 18, 32), 7440),
        ("dwiseneuro/default_state_dict_keys", "readouts.0.", "grouped_linear", (4096, 1, 1), 7863),
        ("eckerlab_baseline/default_state_dict_keys_factorised", "readout.", "gaussian", (128, 18, 46), None),
    ],
)
def test_published_keys(shared, file, prefix, readout, in_shape, neurons):
    """All names and shapes of a published state dict are ours, at the published sizes."""
    state = part(described(shared / f"reference/values/video/{file}.json"), prefix)
    if neurons is None:
        state = part(state, next(iter(state)).split(".")[0] + ".")
        neurons = state["bias"].shape[0]
    with torch.device("meta"):
        options = {"coordinates": torch.empty(neurons, 2)} if "gaussian" in readout else {}
        module = create_readout(readout, in_shape, neurons, **options)
    published = {name: value.shape for name, value in from_published(state).items()}
    assert published == {name: value.shape for name, value in module.state_dict().items()}


def test_a_published_part_that_does_not_fit_is_one_line():
    state = from_published(create_readout("gaussian", IN_SHAPE, 5).state_dict())
    with pytest.raises(ValueError, match=r"'bias' has shape \(5,\) in model.pt, \(6,\) in the model"):
        select_weights(create_readout("gaussian", IN_SHAPE, 6), state, "model.pt")


def test_published_names_and_constants():
    """V1T's features have four axes, ViV1T's three; the rest of their extras are constants."""
    readout = create_readout("gaussian", IN_SHAPE, 5)
    for shape in ((1, 8, 1, 5), (1, 8, 5)):
        features = torch.randn(shape)
        state = {"_mu": readout._mu, "sigma": readout.sigma, "bias": readout.bias, "features": features}
        readout.load_state_dict(from_published(state | {"reg_scale": torch.zeros(())}))
        assert torch.equal(readout._features.flatten(), features.flatten())
    shifter = MLPShifter()
    shifter.load_state_dict(from_published(shifter.state_dict() | {"reg_scale": torch.zeros(())}))
    older = create_readout("Gaussian2d", IN_SHAPE, 5)
    older.load_state_dict(from_published(older.state_dict()))
    own = RecurrentModulator(3, 2).state_dict()
    assert from_published(own).keys() == own.keys()


def test_signals_are_cut_to_the_last_frames():
    signal = torch.arange(24.0).view(2, 2, 6)
    video = torch.zeros(2, 3, 4, 5, 5)
    assert torch.equal(of_frames(signal, video, "x"), signal[..., 2:].mT.reshape(8, 2))
    assert torch.equal(of_frames(signal[..., 0], video, "x"), signal[..., 0].repeat_interleave(4, 0))
    assert torch.equal(of_frames(signal[..., 0], video[:, :, 0], "x"), signal[..., 0])
    for wrong in (signal[..., :3], signal[None]):
        with pytest.raises(ValueError, match="x has shape"):
            of_frames(wrong, video, "x")
    with pytest.raises(ValueError, match="x has shape"):
        of_frames(signal, video[:, :, 0], "x")


def test_chosen_neurons():
    assert chosen_neurons(None, 4) is None
    assert chosen_neurons(np.array([True, False, True, True]), 4).tolist() == [0, 2, 3]
    assert chosen_neurons([3, 0], 4).tolist() == [3, 0]
    with pytest.raises(ValueError, match=r"a mask of neurons has shape \(3,\), expected \(4,\)"):
        chosen_neurons(np.ones(3, bool), 4)


def test_source_grid():
    """Column means go, then one largest absolute value for all columns."""
    grid = source_grid(np.array([[0, 10], [4, 30], [2, 20]]), 3)
    assert grid.tolist() == [[pytest.approx(-0.2), -1], [pytest.approx(0.2), 1], [0, 0]]
    again = source_grid(grid, 3)
    torch.testing.assert_close(again, grid)


@pytest.mark.parametrize(("layers", "places"), [(0, [0]), (1, [0, 2]), (3, [0, 2, 4, 6])])
def test_grid_predictor(layers, places):
    predictor = grid_predictor(3, layers, 20, tanh=False)
    assert [int(name.split(".")[0]) for name, _ in predictor.named_parameters()][::2] == places
    assert predictor(torch.randn(5, 3)).shape == (5, 2)
    assert grid_predictor(3, layers)(100 * torch.randn(5, 3)).abs().max() <= 1
