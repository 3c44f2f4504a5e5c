"""Written simulations: each layout is read back by its own reader as what was simulated, with the truth beside it."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from neural_data.allen import read_nwb
from neural_data.allen_packaged import convert_packaged
from neural_data.arrays import read_arrays
from neural_data.formats import read_recordings
from neural_data.simulate import SimulationConfig, VideoConfig, simulate, simulate_videos, write_simulation
from neural_data.write_simulation import IMAGE_TIERS, LAYOUTS, Layout, by_area, single_animals

IMAGES = {"size": 32, "stimuli": 20, "neurons_per_area": 6, "repeats": 4, "animals": 2, "missing_repeats": 1}
VIDEOS = VideoConfig(
    height=18,
    width=24,
    frames=60,
    train_clips=4,
    test_clips=1,
    repeats=3,
    features=3,
    short_clips=0.3,
    unusable_trials=1,
)


def of_images(out, layout="arrays"):
    return SimulationConfig(**IMAGES, format=layout, out=str(out))


def of_videos(out, layout="arrays", **videos):
    changed = dataclasses.replace(VIDEOS, **videos)
    return SimulationConfig(
        dynamic=True, animals=2, neurons_per_area=5, dead_neurons=0.2, format=layout, out=str(out), videos=changed
    )


def test_images_as_arrays_with_their_truth(tmp_path):
    config = of_images(tmp_path / "simulation")
    folder = write_simulation(config)
    recording, truth = simulate(config)
    read = read_arrays(folder)
    np.testing.assert_array_equal(read.responses, recording.responses)
    pd.testing.assert_frame_equal(read.neurons, recording.neurons)
    for name in ("rates", "receptive_fields", "reliability", "kind"):
        np.testing.assert_array_equal(np.load(folder / f"truth_{name}.npy"), getattr(truth, name))
    pd.testing.assert_frame_equal(pd.read_csv(folder / "truth_gabors.csv"), truth.gabors)


def test_images_animal_by_animal():
    config = of_images("unused")
    recording, truth = simulate(config)
    apart = single_animals(config, recording, truth)
    assert [alone.animals for alone, _ in apart] == [["animal1"], ["animal2"]]
    assert [len(alone.trials) for alone, _ in apart] == [80, 70]
    for alone, own in apart:
        together = recording.repeats(alone.name)
        np.testing.assert_array_equal(alone.repeats(alone.name).responses, together.responses)
        np.testing.assert_array_equal(own.rates, truth.rates[:, together.neurons])
        np.testing.assert_array_equal(own.kind, truth.kind[together.neurons])
        assert alone.behavior.shape == (len(alone.trials), 3)
        assert alone.pupil_center.shape == (len(alone.trials), 2)
        assert alone.trials.groupby("stimulus")["tier"].nunique().max() == 1
        assert {*alone.trials["tier"]} == {*IMAGE_TIERS}
        assert (np.diff(alone.trials["start_s"]) > 0).all()


def save_trials(recording, path):
    """A layout that puts each trial where a test finds it."""
    path.mkdir()
    for row in range(len(recording.trials)):
        np.savez(path / f"{row}.npz", **recording.trial(row))


def fail(recording, path):
    raise OSError("the disk is full")


@pytest.fixture
def written_by(monkeypatch):
    """Lets a function of this file write `format=experanto`: what a layout's function is given."""

    def use(function):
        layout = Layout(__name__, function.__name__, suffix=".saved")
        monkeypatch.setitem(LAYOUTS, "experanto", layout)

    return use


def test_videos_are_written_animal_by_animal_with_their_truth(tmp_path, written_by):
    written_by(save_trials)
    config = of_videos(tmp_path / "simulation", "experanto")
    folder = write_simulation(config)
    assert sorted(file.name for file in folder.iterdir()) == ["animal1.saved", "animal2.saved", "truth"]
    for recording, truth in simulate_videos(config):
        for row in (0, 7):
            with np.load(folder / f"{recording.name}.saved" / f"{row}.npz") as stored:
                for name, values in recording.trial(row).items():
                    np.testing.assert_array_equal(stored[name], values)
        beside = folder / "truth" / recording.name
        for name in ("arousal", "gaze", "camera_to_gaze", "weights"):
            np.testing.assert_array_equal(np.load(beside / f"{name}.npy"), getattr(truth, name))
        rates = np.load(beside / "rates.npy", mmap_mode="r")
        assert rates.shape == truth.rates.shape
        np.testing.assert_array_equal(rates[2], truth.rates[2])
        np.testing.assert_array_equal(np.load(beside / "receptive_fields.npy"), truth.receptive_fields())
        neurons = pd.read_csv(beside / "neurons.csv")
        np.testing.assert_allclose(neurons["reliability"], truth.noise_ceiling()["reliability"])
        assert neurons["kind"].tolist() == truth.neurons["kind"].tolist()
        assert len(pd.read_csv(beside / "trials.csv")) == len(recording.trials)
        assert len(pd.read_csv(beside / "clips.csv")) == len(recording.stimuli)
        assert len(pd.read_csv(beside / "features.csv")) == len(truth.core.features)


def test_a_folder_is_whole_or_absent(tmp_path, written_by):
    written_by(fail)
    config = of_videos(tmp_path / "there", "experanto")
    with pytest.raises(OSError, match="the disk is full"):
        write_simulation(config)
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="there: exists already; name a new or an empty folder"):
        write_simulation(config)


def test_writing_needs_a_folder_and_a_layout_for_the_kind_of_stimuli(tmp_path):
    with pytest.raises(ValueError, match="out: name the folder"):
        write_simulation(SimulationConfig())
    with pytest.raises(ValueError, match="format: found 'sensorium_video', expected one of arrays"):
        write_simulation(of_images(tmp_path / "none", "sensorium_video"))


def same_trials(read, recording, rows, behavior=True):
    """What a reader gives of `rows` is what was simulated, to the last bit of float32."""
    for row in rows:
        found, made = read.trial(row), recording.trial(row)
        for name in made if behavior else set(made) - {"behavior", "pupil_center"}:
            np.testing.assert_allclose(np.squeeze(found[name]), made[name], rtol=1e-6, err_msg=name)


def test_videos_as_arrays(tmp_path):
    config = of_videos(tmp_path / "simulation")
    try:
        folder = write_simulation(config)
    except ValueError as error:
        if "arrays hold no behavior" not in str(error):
            raise
        pytest.skip(f"arrays hold no videos yet: {error}")
    for recording, _ in simulate_videos(config):
        read = read_arrays(folder / recording.name)
        assert read.dynamic
        order = recording.trials.sort_values(["repeat", "stimulus"]).index
        for at, row in enumerate(order[:5]):
            found, made = read.trial(at), recording.trial(int(row))
            for name in made:
                np.testing.assert_array_equal(found[name], made[name])


def test_images_as_sensorium_2022(tmp_path):
    sensorium = pytest.importorskip("neural_data.sensorium")
    pytest.importorskip("neural_data.sensorium_writer")
    config = of_images(tmp_path / "simulation", "sensorium_static")
    folder = write_simulation(config)
    for recording, _ in single_animals(config, *simulate(config)):
        [place] = folder.glob(f"static{recording.name}-*")
        read = sensorium.read_sensorium(place)
        assert read.trials["tier"].tolist() == recording.trials["tier"].tolist()
        assert read.neurons["neuron_id"].tolist() == recording.neurons["neuron_id"].tolist()
        same_trials(read, recording, range(0, len(recording.trials), 9))
        np.testing.assert_array_equal(
            read.repeats(read.animals[0], tier="test").responses,
            recording.repeats(recording.name, tier="test").responses,
        )


def test_videos_as_sensorium_2023(tmp_path):
    sensorium = pytest.importorskip("neural_data.sensorium")
    pytest.importorskip("neural_data.sensorium_writer")
    config = of_videos(tmp_path / "simulation", "sensorium_video", response="deconvolved", withheld=["final_test_main"])
    folder = write_simulation(config)
    for recording, _ in simulate_videos(config):
        [place] = folder.glob(f"dynamic{recording.name}-*")
        read = sensorium.read_sensorium(place)
        assert read.trials["tier"].tolist() == recording.trials["tier"].tolist()
        assert read.frames.tolist() == recording.frames.tolist()
        assert read.withheld.tolist() == recording.withheld.tolist()
        same_trials(read, recording, np.flatnonzero(~recording.withheld)[::3])
        # Which trials show the same clip is not on disk, and is found again.
        oracle = read.repeats(read.animals[0], tier="oracle").responses
        np.testing.assert_allclose(oracle, recording.repeats(recording.name, tier="oracle").responses, rtol=1e-6)


@pytest.mark.parametrize("dynamic", [False, True])
def test_experanto(tmp_path, dynamic):
    experanto = pytest.importorskip("neural_data.experanto")
    pytest.importorskip("neural_data.experanto_writer")
    config = (of_videos if dynamic else of_images)(tmp_path / "simulation", "experanto")
    folder = write_simulation(config)
    animals = simulate_videos(config) if dynamic else single_animals(config, *simulate(config))
    for recording, _ in animals:
        read = experanto.read_experanto(folder / recording.name)
        assert read.trials["tier"].tolist() == recording.trials["tier"].tolist()
        same_trials(read, recording, range(0, len(recording.trials), 4), behavior=dynamic)


def test_images_as_neuropixels_sessions(tmp_path):
    config = of_images(tmp_path / "simulation", "nwb")
    folder = write_simulation(config)
    assert sorted(file.name for file in folder.iterdir()) == ["animal1.nwb", "animal2.nwb", "truth"]
    reads = read_recordings(folder)
    for read, (recording, _) in zip(reads, single_animals(config, *simulate(config)), strict=True):
        expected = recording.repeats(recording.name).responses / 0.25
        np.testing.assert_allclose(read.repeats(read.animals[0]).responses, expected, rtol=1e-6)
        assert read.behavior_names == ("running_speed_cm_s", "pupil_area_px2")
    orders = [read.trials["stimulus"].tolist() for read in reads]
    assert orders[0][: len(orders[1])] != orders[1]


def test_videos_as_neuropixels_sessions(tmp_path):
    config = of_videos(tmp_path / "simulation", "nwb")
    folder = write_simulation(config)
    assert sorted(file.name for file in folder.iterdir()) == ["animal1.nwb", "animal2.nwb", "truth"]
    for recording, truth in simulate_videos(config):
        movies = pd.read_csv(folder / "truth" / recording.name / "movies.csv")
        assert sorted(movies["stimulus"]) == sorted(recording.trials["stimulus"].unique())
        for movie, stimulus, frames in movies.itertuples(index=False):
            read = read_nwb(folder / f"{recording.name}.nwb", movie, rate=False)
            shown = recording.trials[recording.trials["stimulus"] == stimulus].sort_values("start_s").index
            np.testing.assert_array_equal(read.stimuli[0], truth.clip(stimulus)[:frames])
            for at, row in enumerate(shown):
                np.testing.assert_array_equal(read.responses[at], recording.trial(int(row), 0, frames)["responses"])


@pytest.mark.parametrize("dynamic", [False, True])
def test_two_photon_sessions(tmp_path, dynamic):
    config = (of_videos if dynamic else of_images)(tmp_path / "simulation", "nwb_two_photon")
    folder = write_simulation(config)
    names = [f"animal{animal}_{area}" for animal in (1, 2) for area in ("VISp", "VISl")]
    assert sorted(file.name for file in folder.iterdir()) == [*sorted(f"{name}.nwb" for name in names), "truth"]
    animals = simulate_videos(config) if dynamic else single_animals(config, *simulate(config))
    for recording, _ in animals:
        for area in ("VISp", "VISl"):
            own = np.flatnonzero((recording.neurons["area"] == area).to_numpy())
            name = f"{recording.name}_{area}"
            read = read_nwb(folder / f"{name}.nwb", signal="events", **({} if dynamic else {"window_ms": (0, 233)}))
            rows = recording.trials[recording.trials["stimulus"] == (0 if not dynamic else 4)].index
            stimulus = 0 if dynamic else read.trials["stimulus"] == 0
            events = read.responses if dynamic else 7 * read.responses[stimulus]
            n = read.responses.shape[2] if dynamic else 1
            made = [recording.trial(int(row), 0, n)["responses"][own] for row in rows]
            np.testing.assert_allclose(events, made, atol=1e-4)
            rates = np.load(folder / "truth" / name / ("rates.npy" if dynamic else "truth_rates.npy"))
            assert rates.shape[1] == len(own) == len(read.neurons)
            assert (folder / "truth" / name / "movies.csv").is_file() == dynamic


def test_the_truth_of_an_area_is_that_of_its_neurons():
    config = of_videos("unused", "nwb_two_photon")
    recording, truth = simulate_videos(config)[0]
    for alone, own in by_area(recording, truth):
        rows = recording.neurons.index[recording.neurons["area"] == alone.neurons["area"].iloc[0]]
        np.testing.assert_allclose(own.rates[1], truth.rates[1][rows], rtol=1e-6)
        np.testing.assert_array_equal(own.receptive_fields(), truth.receptive_fields(rows.to_numpy()))
        pd.testing.assert_frame_equal(own.noise_ceiling(), truth.noise_ceiling().iloc[rows].reset_index(drop=True))
        np.testing.assert_array_equal(alone.responses[3], recording.responses[3][rows])


def test_images_as_a_package(tmp_path):
    config = of_images(tmp_path / "simulation", "packaged")
    folder = write_simulation(config)
    [path] = folder.glob("*.pkl")
    assert path.name == "mouse_neuropixels_visual_data_with_reliabilities.pkl"
    read = read_arrays(convert_packaged(path, tmp_path / "converted"))
    recording, truth = simulate(config)
    counts = read.responses[:].sum(axis=2) * 0.01
    np.testing.assert_allclose(counts, recording.responses, rtol=1e-5)
    assert read.neurons["run_pval_ns"].notna().any()
    np.testing.assert_array_equal(np.load(folder / "truth" / "simulated" / "truth_rates.npy"), truth.rates)
