"""Which responses are withheld, without reading them all."""

import numpy as np
import pytest

from neural_data.sensorium_folder import SensoriumFolder, all_zero, find_mice
from neural_data.withheld_responses import withheld_trials

TIERS = ["train"] * 4 + ["oracle"] * 3 + ["live_test_main"] * 5


def withheld(path, responses, silent=None):
    """The answer for responses (trials, neurons, time) in files, None where there is none, and the files read."""
    for name, values in (("videos", np.zeros((4, 4, 40))), ("responses", None)):
        (path / "data" / name).mkdir(parents=True)
        for trial in range(len(TIERS)):
            array = values if name == "videos" else responses[trial]
            if array is not None:
                np.save(path / "data" / name / f"{trial}.npy", array)
    (path / "meta" / "trials").mkdir(parents=True)
    np.save(path / "meta/trials/tiers.npy", np.array(TIERS))
    folder = SensoriumFolder(find_mice(path)[0])
    part = folder.part("responses")
    found = withheld_trials(folder, part, np.ones(len(TIERS), bool) if silent is None else silent)
    return found, folder.notes


@pytest.fixture
def responses():
    return list(np.random.default_rng(0).gamma(1, 1, (len(TIERS), 30, 40)))


def test_nothing_is_withheld(tmp_path, responses):
    found, notes = withheld(tmp_path, responses)
    assert not found.any()
    assert not [note for note in notes if "withheld" in note]


def test_a_tier_of_zeros_that_end_in_nan(tmp_path, responses):
    for trial in range(7, 12):
        responses[trial] = np.where(np.arange(40) < 30, 0.0 * responses[trial], np.nan)
    found, notes = withheld(tmp_path, responses)
    assert found.tolist() == [False] * 7 + [True] * 5
    assert "tier live_test_main: responses are zero in all 5 trials, withheld" in notes


def test_a_first_trial_of_zeros_is_not_the_whole_tier(tmp_path, responses):
    """Some are withheld, if so many zeros cannot be silence."""
    responses[4] *= 0
    found, notes = withheld(tmp_path, responses)
    assert np.flatnonzero(found).tolist() == [4]
    assert "tier oracle: responses are zero in 1 of 3 trials, withheld" in notes


def test_few_neurons_may_be_silent(tmp_path, responses):
    responses = [trial[:2, :1] for trial in responses]
    responses[0] = responses[0] * 0
    assert not withheld(tmp_path, responses)[0].any()


def test_one_number_far_from_the_first_neuron(tmp_path, responses):
    """A neuron that says nothing in any trial of a tier is no reason."""
    for trial in range(7, 12):
        responses[trial] *= 0
        responses[trial][29, 39] = -3e-7
    silent = np.array([False] * 7 + [True] * 5)
    assert not withheld(tmp_path, responses, silent)[0].any()


def test_a_glance_that_shows_a_number_is_enough(tmp_path, responses):
    responses[4] *= 0
    assert not withheld(tmp_path, responses, np.zeros(len(TIERS), bool))[0].any()


def test_absent_files(tmp_path, responses):
    responses[7:] = [None] * 5
    found, notes = withheld(tmp_path, responses)
    assert found.tolist() == [False] * 7 + [True] * 5
    assert "tier live_test_main: no response files for its 5 trials, withheld" in notes


def test_an_unfinished_download(tmp_path, responses):
    responses[2] = None
    with pytest.raises(
        ValueError, match=r"responses/2\.npy: found no such file \(3 of 4 trials of tier train have one"
    ):
        withheld(tmp_path, responses)


def test_all_zero():
    zeros = np.zeros((100, 3))
    assert all_zero(zeros)
    assert all_zero(np.where(np.arange(3) < 2, zeros, np.nan))
    zeros[99, 2] = -1e-9
    assert not all_zero(zeros)
