"""Whole trials seen through windows: every frame that a window can predict is predicted, and scored once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from transfer.trial_prediction import TrialPredictor
from transfer.validation import Validation
from transfer.windows import WindowPlan


class Delayed(nn.Module):
    """Predicts for each frame but the first two of a window the mean of the video two frames before."""

    def forward(self, video, animal, behavior=None, pupil_center=None):
        return video.mean((1, 3, 4))[:, None, :-2]

    def readout_of(self, animal):
        return SimpleNamespace(neurons=1)


class Moving:
    """A recording of one neuron whose response is the brightness two frames before; trials of 9 and 14 frames."""

    dynamic, frames, neurons = True, np.array([9, 14]), [0]

    def trial(self, row):
        brightness = np.random.default_rng(row).random(self.frames[row]).astype(np.float32)
        video = np.repeat(brightness, 6).reshape(1, -1, 2, 3)
        return {"video": video, "responses": np.concatenate([[5, 7], brightness[:-2]])[None].astype(np.float32)}


class Unchanged:
    """A normalisation that changes nothing."""

    def apply(self, trial, frames):
        return trial


@pytest.mark.parametrize("plan", [WindowPlan(), WindowPlan(5), WindowPlan(9), WindowPlan(4)])
def test_a_perfect_model_scores_one_whatever_its_window(plan):
    """Frames that no window predicts, here the first two, do not count."""
    one = {"a": Moving()}, {"a": np.array([0, 1])}, {"a": Unchanged()}
    validation = Validation(*one, plan, first_frame=0, batch_size=2, device=torch.device("cpu"))
    measured = validation.measure(Delayed(), lambda text: None)
    assert measured == pytest.approx({"single_trial_correlation": 1, "single_trial_correlation/a": 1}, abs=1e-6)
    assert validation.scores == validation.state()


def test_frames_before_the_first_that_counts_are_left_out():
    one = {"a": Moving()}, {"a": np.array([0, 1])}, {"a": Unchanged()}
    validation = Validation(*one, WindowPlan(), first_frame=9, batch_size=2, device=torch.device("cpu"))
    (first, _), (second, _) = validation.predicted_trials(TrialPredictor(Delayed()), "a")
    assert (first.shape, second.shape) == ((1, 0), (1, 5))
