"""Packages of mouse-vision's: what is written is converted back, of simulated animals and of sessions."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from neural_data.allen import read_sessions
from neural_data.allen_packaged import convert_packaged
from neural_data.allen_packaged_writer import in_bins, write_packaged
from neural_data.allen_two_photon_writer import write_two_photon_nwb
from neural_data.arrays import read_arrays
from neural_data.reliability import split_half
from neural_data.simulate import SimulationConfig, simulate
from neural_data.unit_selection import SelectionRule, select_units
from neural_data.write_simulation import by_area, single_animals

CONFIG = SimulationConfig(animals=2, stimuli=10, repeats=6, neurons_per_area=3, size=24, missing_repeats=2)


@pytest.fixture(scope="module")
def simulated():
    recording, _ = simulate(CONFIG)
    recording = dataclasses.replace(recording, neurons=recording.neurons.assign(run_pval_ns=np.arange(12) / 12))
    return in_bins(recording, np.random.default_rng(0))


@pytest.fixture(scope="module")
def read(simulated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    path = write_packaged(simulated, folder / "new/package.pkl", halvings=20)
    return read_arrays(convert_packaged(path, folder / "converted"))


def test_bins_add_up_to_the_counts(simulated):
    recording, _ = simulate(CONFIG)
    assert simulated.responses.shape == (60, 12, 25)
    np.testing.assert_allclose(simulated.responses.sum(axis=2) * 0.01, recording.responses, rtol=1e-5)
    assert (np.isnan(simulated.responses).all(axis=2) == np.isnan(recording.responses)).all()
    # Bins share the rate.
    per_bin = np.nansum(simulated.responses, axis=(0, 1)) * 0.01
    np.testing.assert_allclose(per_bin, per_bin.mean(), atol=5 * np.sqrt(per_bin.mean()))


def test_neuropixels(simulated, read):
    assert read.animals == ["1", "2"]
    for animal, name in zip(simulated.animals, read.animals, strict=True):
        np.testing.assert_array_equal(read.repeats(name).responses, simulated.repeats(animal).responses)
        np.testing.assert_array_equal(read.repeats(name).stimuli, simulated.repeats(animal).stimuli)
    np.testing.assert_array_equal(read.stimuli, simulated.stimuli)
    assert read.sampling_rate_hz == 100
    assert read.response_start_ms == 0
    pd.testing.assert_series_equal(read.neurons["area"], simulated.neurons["area"])
    np.testing.assert_allclose(read.neurons["run_pval_ns"], simulated.neurons["run_pval_ns"])
    assert "left out" not in " ".join(read.notes)
    for animal in simulated.animals:
        seen = simulated.repeats(animal)
        expected = split_half(seen.responses[..., 7], 20)
        found = (read.statistics[name][7, seen.neurons] for name in ("splithalf_r_mean", "splithalf_r_std"))
        for values, wanted in zip(found, (expected.mean, expected.sd), strict=True):
            np.testing.assert_allclose(values, wanted)


def test_selectivity_is_the_allen_one(simulated, read):
    """_get_image_selectivity of the AllenSDK, word by word."""
    for unit in (0, 5, 11):
        seen = simulated.repeats(simulated.neurons["animal"][unit])
        mean = np.nanmean(seen.responses.mean(axis=3)[:, :, np.flatnonzero(seen.neurons == unit)[0]], axis=0)
        j = np.arange(1000)
        thresholds = mean.min() + j * ((mean.max() - mean.min()) / len(j))
        expected = 1 - 2 * np.mean([np.mean(mean > t) for t in thresholds])
        assert read.neurons["image_selectivity_ns"][unit] == pytest.approx(expected, abs=2e-3)


def test_the_selection_of_mouse_vision(read):
    kept, excluded = select_units(read, SelectionRule(min_reliability=-1, min_median=-1, min_units=1))
    dead = np.isnan(read.statistics["splithalf_r_mean"]).all(axis=0)
    assert kept.neurons["run_pval_ns"].tolist() == read.neurons["run_pval_ns"][1:][~dead[1:]].tolist()
    assert excluded["reason"].tolist().count("running: p is at most 0.05") == 1 - dead[0]


def test_two_photon_sessions(tmp_path):
    """Sessions of two animals, merged, packaged, converted."""
    config = dataclasses.replace(CONFIG, areas=["VISp"], missing_repeats=0)
    paths = []
    for alone, _ in single_animals(config, *simulate(config)):
        [(one, _)] = by_area(alone, _)
        paths.append(write_two_photon_nwb(one, tmp_path / f"{one.name}.nwb"))
    merged = read_sessions(paths, "both")
    path = write_packaged(merged, tmp_path / "calcium.pkl", halvings=10)
    read = read_arrays(convert_packaged(path, tmp_path / "calcium"))
    assert not read.dynamic
    for animal, name in zip(merged.animals, read.animals, strict=True):
        np.testing.assert_array_equal(read.repeats(name).responses, merged.repeats(animal).responses)
    np.testing.assert_allclose(read.neurons["p_run_mod_ns"], merged.neurons["p_run_mod_ns"])
    assert {"reliability_mean", "reliability_std", "image_sel_ns"} <= set(read.neurons)


def test_what_a_package_cannot_hold(simulated, tmp_path):
    colour = dataclasses.replace(simulated, stimuli=np.zeros((10, 24, 24, 3), np.uint8))
    with pytest.raises(ValueError, match=r"stimuli have shape \(10, 24, 24, 3\), expected grey images"):
        write_packaged(colour, tmp_path / "a.pkl")
    (tmp_path / "b.pkl").write_text("mine")
    with pytest.raises(ValueError, match=r"b\.pkl: exists already; name a new file"):
        write_packaged(simulated, tmp_path / "b.pkl")
    assert [file.name for file in tmp_path.iterdir()] == ["b.pkl"]
