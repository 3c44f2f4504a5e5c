"""Running p-values: the AllenSDK's, computed one by one; simulated units that running changes, and others."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from neural_data.allen_neuropixels import read_neuropixels
from neural_data.allen_two_photon import read_two_photon
from neural_data.allen_two_photon_writer import write_two_photon_nwb
from neural_data.allen_writer import write_neuropixels_nwb
from neural_data.recording import Recording
from neural_data.running_modulation import MIN_PRESENTATIONS, running_notes, running_p
from neural_data.tables import neuron_table, trial_table
from neural_data.unit_selection import SelectionRule, select_units

STIMULI, REPEATS, UNITS = 8, 20, 12


def one_by_one(responses, stimulus, speed, least):
    """running_modulation of the AllenSDK, unit by unit."""
    found = []
    for unit in responses.T:
        means = {image: np.nanmean(unit[stimulus == image]) for image in np.unique(stimulus)}
        of_preferred = (stimulus == max(means, key=means.get)) & ~np.isnan(unit) & ~np.isnan(speed)
        counts, running = unit[of_preferred], speed[of_preferred] >= 1
        enough = least <= running.sum() <= len(running) - least
        found.append(stats.ttest_ind(counts[running], counts[~running], equal_var=False)[1] if enough else np.nan)
    return np.array(found)


@pytest.mark.filterwarnings("ignore:Precision loss")
@pytest.mark.parametrize("least", [2, 5])
def test_the_allen_sdk(least):
    rng = np.random.default_rng(least)
    stimulus = rng.permutation(np.repeat(np.arange(30), REPEATS))
    n = len(stimulus)
    speed = np.where(rng.random(n) < 0.15, rng.gamma(3, 5, n), rng.normal(0, 0.1, n))
    responses = rng.poisson(rng.gamma(1, 3, (30, 40))[stimulus]).astype(float)
    responses[rng.random(responses.shape) < 0.05] = np.nan
    speed[rng.random(len(speed)) < 0.05] = np.nan
    found = running_p(responses, stimulus, speed, least)
    np.testing.assert_allclose(found, one_by_one(responses, stimulus, speed, least), rtol=1e-9)
    assert 0 < np.isnan(found).sum() < 40


def test_false_alarms_are_as_rare_as_they_should_be():
    rng = np.random.default_rng(0)
    stimulus = np.repeat(np.arange(4), 50)
    speed = np.where(np.arange(200) % 2, 10.0, 0.0)
    p = running_p(rng.poisson(np.array([2.0, 3.0, 4.0, 12.0])[stimulus][:, None], (200, 4000)), stimulus, speed, 2)
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.015)
    assert np.median(p) == pytest.approx(0.5, abs=0.05)


def test_what_is_unknown():
    stimulus, still = np.zeros(6, int), np.zeros(6)
    run = np.array([5.0, 5, 0, 0, 0, 0])
    assert np.isnan(running_p(np.eye(6), stimulus, still, 2)).all()
    assert np.isnan(running_p(np.zeros((6, 2)), stimulus, run, 2)).all()
    assert np.isnan(running_p(np.full((6, 2), np.nan), stimulus, run, 2)).all()
    assert running_p(np.zeros((0, 3)), np.zeros(0, int), np.zeros(0), 2).shape == (3,)
    few = running_p(np.arange(12.0).reshape(6, 2), stimulus, run, 3)
    assert np.isnan(few).all()
    assert running_notes(few, "run_pval_ns") == [
        "run_pval_ns is unknown for 2 of 2 units: fewer than 2 running or 2 stationary presentations of the image they "
        "prefer, or none varies"
    ]
    assert running_notes(np.array([0.5]), "run_pval_ns") == []


@pytest.fixture(scope="module")
def modulated():
    """An animal that runs in two fifths of the presentations, which triples the rates of half of its units."""
    rng, n = np.random.default_rng(3), STIMULI * REPEATS
    stimulus, repeat = np.tile(np.arange(STIMULI), REPEATS), np.repeat(np.arange(REPEATS), STIMULI)
    speed = np.where(rng.random(n) < 0.4, rng.uniform(5, 30, n), 0.0)
    rates = 3.0 + 6.0 * (stimulus[:, None] == np.arange(UNITS) % STIMULI)
    rates = rates * np.where((speed >= 1)[:, None] & (np.arange(UNITS) < UNITS // 2), 3.0, 1.0)
    return Recording(
        name="modulated",
        stimuli=rng.integers(0, 256, (STIMULI, 6, 8)).astype(np.uint8),
        trials=trial_table(stimulus, repeat),
        responses=rng.poisson(rates).astype(np.float32),
        neurons=neuron_table(range(100, 100 + UNITS), "71", "VISp"),
        behavior=speed[:, None],
        behavior_names=("running_speed",),
    )


def test_neuropixels_sessions(modulated, tmp_path):
    path = write_neuropixels_nwb(modulated, tmp_path / "a.nwb")
    read = read_neuropixels(path)
    p = read.neurons["run_pval_ns"].to_numpy()
    speed, stimulus = modulated.behavior[:, 0], modulated.trials["stimulus"].to_numpy()
    expected = one_by_one(modulated.responses.astype(float), stimulus, speed, MIN_PRESENTATIONS["run_pval_ns"])
    np.testing.assert_allclose(p, expected, rtol=1e-9)
    assert p[: UNITS // 2].max() < 0.01 < p[UNITS // 2 :].min()
    # Whatever the window of the responses, the p-value is that of the whole image.
    for window in ({"bin_ms": 10}, {"window_ms": (50, 100)}, {"window_ms": (-100, 0)}):
        np.testing.assert_allclose(read_neuropixels(path, **window).neurons["run_pval_ns"], expected, rtol=1e-9)
    kept, excluded = select_units(read, SelectionRule(min_reliability=-1, min_median=None, min_units=1))
    assert kept.neurons["neuron_id"].tolist() == read.neurons["neuron_id"][expected > 0.05].tolist()
    assert len(kept.neurons) >= UNITS // 3
    assert set(excluded["reason"]) == {"running: p is at most 0.05"}


def test_two_photon_sessions(modulated, tmp_path):
    path = write_two_photon_nwb(modulated, tmp_path / "a.nwb")
    read = read_two_photon(path)
    p = read.neurons["p_run_mod_ns"].to_numpy()
    stimulus, speed = read.trials["stimulus"].to_numpy(), read.behavior[:, 0]
    np.testing.assert_allclose(p, one_by_one(read.responses.astype(float), stimulus, speed, 5), rtol=1e-6)
    assert np.median(p[: UNITS // 2]) < 0.05 < np.median(p[UNITS // 2 :])
    for how in ({"signal": "dff"}, {"signal": "events", "window_ms": (0, 100)}, {"resolved": True}):
        np.testing.assert_allclose(read_two_photon(path, **how).neurons["p_run_mod_ns"], p, rtol=1e-6)


def test_an_animal_that_never_runs(modulated, tmp_path):
    still = dataclasses.replace(modulated, behavior=np.zeros_like(modulated.behavior))
    for write, read, column in (
        (write_neuropixels_nwb, read_neuropixels, "run_pval_ns"),
        (write_two_photon_nwb, read_two_photon, "p_run_mod_ns"),
    ):
        found = read(write(still, tmp_path / f"{column}.nwb"))
        assert found.neurons[column].isna().all()
        assert any(note.startswith(f"{column} is unknown for {UNITS} of {UNITS} units") for note in found.notes)
    unseen = dataclasses.replace(modulated, behavior=None, behavior_names=())
    found = read_neuropixels(write_neuropixels_nwb(unseen, tmp_path / "unseen.nwb"))
    assert "run_pval_ns" not in found.neurons
    assert "no running speed in the file" in found.notes
