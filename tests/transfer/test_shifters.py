"""Shifters: neuralpredictors' numbers, the order of their inputs, video."""

import numpy as np
import pytest
import torch

from transfer.shifters import SHIFTERS, AffineShifter, MLPShifter


@pytest.fixture
def values(shared):
    """Reads a reference case."""

    def read(name):
        with np.load(shared / f"reference/values/static/shifter/{name}.npz", allow_pickle=False) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays}

    return read


def part(values, prefix):
    """Entries below a prefix."""
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def test_mlp(values):
    case = values("mlp")
    for animal in "ab":
        shifter = MLPShifter()
        shifter.load_state_dict(part(case, f"sd/{animal}."))
        torch.testing.assert_close(shifter(case["in/pupil"]), case[f"out/{animal}"], rtol=1e-5, atol=1e-6)
    assert shifter.regularizer() == 0


def test_affine(values):
    case = values("static_affine")
    shifter = AffineShifter(gamma=2.0)
    assert shifter.weight.abs().max() < 1e-5
    shifter.load_state_dict(part(case, "sd/a."))
    torch.testing.assert_close(shifter(case["in/pupil"]), case["out/a"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shifter.regularizer(), case["out/reg"])


@pytest.mark.parametrize("name", SHIFTERS)
def test_video_is_its_frames(name):
    shifter = SHIFTERS[name]()
    torch.nn.init.normal_(next(shifter.parameters()))
    pupil = torch.randn(3, 2, 5)
    found = shifter(pupil)
    assert found.shape == (3, 2, 5)
    torch.testing.assert_close(found[..., 2], shifter(pupil[..., 2]))


def test_behaviour_comes_first_and_the_trial_last():
    shifter = MLPShifter(layers=1, behavior_inputs=3, trial_input=True)
    pupil, behavior, trial = torch.randn(4, 2, 5), torch.randn(4, 3, 5), torch.randn(4, 1, 5)
    inputs = torch.cat((behavior, pupil, trial), 1)
    expected = torch.einsum("oi,bit->bot", shifter.mlp[0].weight, inputs) + shifter.mlp[0].bias[:, None]
    torch.testing.assert_close(shifter(pupil, behavior, trial), expected.tanh())
    with pytest.raises(ValueError, match="takes behavior, which is not given"):
        shifter(pupil)
    with pytest.raises(ValueError, match="behavior has 2 values, the shifter was built for 3"):
        shifter(pupil, behavior[:, :2], trial)


def test_published_sizes():
    """57 parameters per mouse in the baselines and ViV1T, 354 in Dynamic-VFM."""
    counts = [sum(each.numel() for each in MLPShifter(hidden).parameters()) for hidden in (5, 16)]
    assert counts == [57, 354]
