"""Recordings become one animal each, whatever folder they are in."""

from pathlib import Path

import numpy as np
import pytest

from neural_data.formats import read_recordings
from neural_data.simulate import SimulationConfig, VideoConfig, write_simulation
from transfer.fit_recordings import open_animals


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two animals in the layout of Sensorium 2023, 4 neurons each, trials of 32 to 40 frames."""
    out = tmp_path_factory.mktemp("recordings") / "videos"
    shown = VideoConfig(frames=40, train_clips=4, test_clips=1, repeats=2, height=16, width=24, short_clips=0.3)
    kind = {"dynamic": True, "format": "sensorium_video", "videos": shown}
    return write_simulation(SimulationConfig(str(out), animals=2, neurons_per_area=4, areas=["VISp"], **kind))


def test_a_folder_of_animals(videos):
    found = open_animals([str(videos)])
    assert list(found) == ["animal1", "animal2"]
    for name, animal in found.items():
        assert Path(animal.path).parent == videos
        assert animal.recording.name.startswith(f"dynamic{name}")
        assert len(animal.neuron_ids) == 4
        assert animal.coordinates.shape == (4, 3)


@pytest.mark.parametrize("name", ["animal2", "dynamicanimal2-Video-00000000000000000000000000000000"])
def test_an_animal_is_chosen_by_its_name_or_that_of_its_folder(videos, name):
    assert list(open_animals([str(videos)], [name])) == ["animal2"]


def test_trials_end_early_where_a_model_takes_no_longer_ones(videos):
    whole, cut = (open_animals([str(videos)], max_frames=n)["animal1"].recording for n in (0, 33))
    assert cut.frames.tolist() == np.minimum(whole.frames, 33).tolist()
    assert cut.trial(0)["video"].shape[0] == cut.frames[0]


def test_animals_of_one_file_are_set_apart(tiny_recording):
    together = read_recordings(tiny_recording)[0]
    apart = open_animals([str(tiny_recording)])
    assert list(apart) == together.animals
    for name, animal in apart.items():
        own = (together.neurons["animal"] == name).to_numpy()
        found = animal.recording
        assert found.animals == [name]
        assert not np.isnan(found.responses[0]).any()
        of_stimulus = found.trials.index[(found.trials["stimulus"] == 3) & (found.trials["repeat"] == 1)][0]
        there = together.trials.index[(together.trials["stimulus"] == 3) & (together.trials["repeat"] == 1)]
        rows = [row for row in there if not np.isnan(together.responses[row][own]).all()]
        np.testing.assert_array_equal(found.trial(of_stimulus)["responses"], together.responses[rows[0]][own])


@pytest.mark.parametrize(
    ("arguments", "error", "line"),
    [
        (lambda path: ([str(path)], ["animal3"]), ValueError, "animals: no 'animal3'; there are animal1, animal2"),
        (lambda path: ([str(path), str(path)],), ValueError, "animal 'animal1' is in .* expected it once"),
        (lambda path: ([str(path / "absent")],), FileNotFoundError, "absent: no such file or folder"),
    ],
)
def test_a_mistake_is_one_line(videos, arguments, error, line):
    with pytest.raises(error, match=line) as caught:
        open_animals(*arguments(videos))
    assert "\n" not in str(caught.value)
