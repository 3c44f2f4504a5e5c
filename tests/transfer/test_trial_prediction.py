"""Batched windows equal one window at a time, as the published programs predict; whole trials, images, what is NaN."""

import numpy as np
import pytest
import torch

from pretrain.models.cores import CORES
from transfer.encoder import Encoder
from transfer.grouped_linear_readout import GroupedLinearReadout
from transfer.trial_prediction import TrialPredictor

SMALL = {
    "dwiseneuro": {
        "features": (8, 8, 16), "strides": (2, 2, 2), "cortex_features": (32, 64), "expansion": 2, "squeeze": 4,
        "canvas": (16, 16),
    },
    "dynamic_vfm": {"channels": 8, "blocks": 1, "heads": 2, "hidden": 8},
}  # fmt: skip
HEIGHT, WIDTH, NEURONS = 12, 16, 7


def encoder_of(core: str, channels: int) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(CORES[core].build(**SMALL[core]))
    encoder.add_animal("a", GroupedLinearReadout((channels, 1, 1), NEURONS, groups=1))
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


def trial_of(frames: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"video": (1, frames, HEIGHT, WIDTH), "behavior": (2, frames), "pupil_center": (2, frames)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@torch.no_grad()
def winner(encoder: Encoder, trial: dict[str, np.ndarray], frames: int, stride: int) -> np.ndarray:
    """lRomul/sensorium `src/predictors.py`, one window at a time, "ones" weights."""
    behind = (frames - 1) * stride
    inputs = {name: torch.from_numpy(values) for name, values in trial.items()}
    length = inputs["video"].shape[1]
    responses, blend_weights = torch.zeros(NEURONS, length), torch.zeros(length)
    for index in range(behind, length):
        indexes = list(range(index - behind, index + 1, stride))
        clip = {name: values[:, indexes][None] for name, values in inputs.items()}
        responses[:, indexes] += encoder(clip["video"], "a", clip["behavior"], clip["pupil_center"])[0]
        blend_weights[indexes] += 1.0
    return (responses / blend_weights.clamp(min=1.0)).numpy()


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("frames", [32, 48, 53])
def test_the_winners_prediction_window_by_window(batch_size, frames):
    encoder, trial = encoder_of("dwiseneuro", 64), trial_of(frames)
    expected = winner(encoder, trial, 16, 2)
    assert expected.std() > 0.05
    (found,) = TrialPredictor(encoder, 16, 2, "ones", batch_size).video("a", [trial])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@torch.no_grad()
@pytest.mark.parametrize("frames", [79, 80])
def test_dynamic_vfms_stitching_window_by_window(frames):
    """Windows from the first frame that counts less 15, every 15, and one that ends the trial, of which 9 are used."""
    encoder, trial = encoder_of("dynamic_vfm", 8), trial_of(frames)
    inputs = {name: torch.from_numpy(values)[None] for name, values in trial.items()}
    first = (frames - 9) % 15 + 15
    expected = []
    for start in [*range(first - 15, frames - 30, 15), frames - 30]:
        clip = {name: values[:, :, start : start + 30] for name, values in inputs.items()}
        expected.append(encoder(clip["video"], "a", clip["behavior"], clip["pupil_center"])[0])
    stitched = torch.cat([*expected[:-1], expected[-1][:, -9:]], 1).numpy()
    (found,) = TrialPredictor(encoder, 30, 1, "dynamic_vfm", 4).video("a", [trial])
    np.testing.assert_allclose(found[:, first:], stitched, rtol=0, atol=1e-6)
    assert np.isnan(found[:, :15]).all()
    assert not np.isnan(found[:, 15:]).any()


def test_whole_trials_of_several_lengths():
    encoder = encoder_of("dwiseneuro", 64)
    trials = [trial_of(frames, seed) for seed, frames in enumerate((20, 24, 20, 20))]
    together = TrialPredictor(encoder, batch_size=2).video("a", trials)
    for trial, found in zip(trials, together, strict=True):
        assert found.shape == (NEURONS, trial["video"].shape[1])
        (alone,) = TrialPredictor(encoder, batch_size=1).video("a", [trial])
        np.testing.assert_allclose(found, alone, rtol=0, atol=1e-5)


def test_outputs_are_those_of_the_last_frames():
    encoder = encoder_of("dynamic_vfm", 8)
    (found,) = TrialPredictor(encoder).video("a", [trial_of(40)])
    assert np.isnan(found[:, :20]).all()
    assert not np.isnan(found[:, 20:]).any()


def test_images():
    torch.manual_seed(0)
    core = CORES["stacked2d"].build(channels=4, layers=2)
    encoder = Encoder(core)
    encoder.add_animal("a", GroupedLinearReadout((core.out_channels, 1, 1), NEURONS, groups=1))
    images = np.random.default_rng(0).normal(size=(5, 1, 24, 32)).astype(np.float32)
    found = TrialPredictor(encoder, batch_size=2).images("a", [{"images": image} for image in images])
    with torch.no_grad():
        expected = encoder.eval()(torch.from_numpy(images), "a").numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_mistakes_are_named():
    encoder = encoder_of("dwiseneuro", 64)
    with pytest.raises(ValueError, match="a trial has 30 frames, a window of 16 with stride 2 needs 31"):
        TrialPredictor(encoder, 16, 2).video("a", [trial_of(30)])
    with pytest.raises(ValueError, match="no animal 'b'"):
        TrialPredictor(encoder, 16, 2).video("b", [trial_of(40)])
