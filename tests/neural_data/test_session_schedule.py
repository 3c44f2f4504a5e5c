"""What a simulated session shows when: every presentation once, in order, one row per frame; names of movies."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from neural_data.presentations import movie_trials, scene_trials
from neural_data.session_schedule import PRESENTED_S, SPONTANEOUS_S, movie_lengths, schedule_of
from neural_data.simulate import SimulationConfig, VideoConfig, simulate, simulate_videos

VIDEOS = VideoConfig(
    height=16, width=20, frames=40, train_clips=3, test_clips=1, repeats=5, missing_repeats=2, frame_rate_hz=25.0
)


@pytest.fixture(scope="module")
def watched():
    config = SimulationConfig(dynamic=True, animals=2, areas=["VISp"], neurons_per_area=3, videos=VIDEOS)
    return [recording for recording, _ in simulate_videos(config)]


@pytest.fixture(scope="module")
def seen():
    return simulate(SimulationConfig(animals=1, stimuli=10, repeats=7, neurons_per_area=2, size=24))[0]


def test_movies_that_are_repeated_have_the_same_names_in_all_animals(watched):
    one, other = (movie_lengths(recording.trials) for recording in watched)
    assert list(one) == [
        *("natural_movie_one", "natural_movie_two", "natural_movie_three"),
        *("natural_movie_4", "natural_movie_5", "natural_movie_6"),
    ]
    assert [row for row, _ in one.values()] == [3, 4, 5, 0, 1, 2]
    assert [row for row, _ in other.values()] == [3, 4, 5, 0, 1, 2]
    for row, frames in one.values():
        assert frames == watched[0].frames[watched[0].trials["stimulus"] == row].min()


def test_movies_frame_by_frame(watched):
    recording = watched[0]
    schedule = schedule_of(recording, np.random.default_rng(0))
    shown = schedule.shown
    assert (np.diff(shown["start_time"]) > 0).all()
    assert (shown["stop_time"] - shown["start_time"]).to_numpy() == pytest.approx(0.04)
    for name, (row, frames) in movie_lengths(recording.trials).items():
        of_movie = shown[shown["stimulus_name"] == name]
        rows, trials, notes = movie_trials(of_movie["frame"], of_movie["start_time"].to_numpy(), frames)
        expected = recording.trials[recording.trials["stimulus"] == row].sort_values("start_s")
        assert notes == []
        assert of_movie["trial"].to_numpy()[rows[:, 0]].tolist() == expected.index.tolist()
        np.testing.assert_allclose(trials["start_s"], expected["start_s"] + SPONTANEOUS_S, rtol=0, atol=0.5 / 25 + 1e-9)
        np.testing.assert_array_equal(schedule.templates[name], recording.stimuli[row, :frames])
        # Frames of one showing follow each other without a gap, up to the last digit.
        starts, stops = (of_movie[column].to_numpy()[rows] for column in ("start_time", "stop_time"))
        np.testing.assert_array_equal(starts[:, 1:], stops[:, :-1])
    blocks = shown.groupby("stimulus_block")["stimulus_name"].nunique()
    assert (blocks == 1).all()
    assert shown["stimulus_block"].iloc[0] == 0
    assert set(np.diff(shown["stimulus_block"])) == {0.0, 1.0}
    assert schedule.stop_s == shown["stop_time"].iloc[-1] + SPONTANEOUS_S


def test_movies_whose_times_are_unknown_follow_each_other(watched):
    recording = dataclasses.replace(watched[0], trials=watched[0].trials.drop(columns="start_s"))
    shown = schedule_of(recording, np.random.default_rng(0)).shown
    assert shown["trial"].drop_duplicates().tolist() == list(range(len(recording.trials)))
    assert (np.diff(shown["start_time"]) > 0.039).all()


def test_images_in_rounds(seen):
    schedule = schedule_of(seen, np.random.default_rng(0))
    shown = schedule.shown
    assert len(shown) == 7 * 11
    assert (shown["stop_time"] - shown["start_time"]).to_numpy() == pytest.approx(PRESENTED_S)
    rounds = shown["frame"].to_numpy().reshape(7, 11)
    assert (np.sort(rounds, axis=1) == np.arange(-1, 10)).all()
    assert len({tuple(order) for order in rounds}) == 7
    rows, trials, _ = scene_trials(shown["frame"], shown["start_time"], 10)
    of_trial = seen.trials.iloc[shown["trial"].to_numpy()[rows]].reset_index(drop=True)
    pd.testing.assert_frame_equal(trials[["stimulus", "repeat"]], of_trial[["stimulus", "repeat"]])
    assert shown["stimulus_block"].tolist() == sorted(shown["stimulus_block"])
    assert len(schedule.spontaneous) == 4
    for low, high in schedule.spontaneous:
        assert not ((shown["start_time"] < high) & (shown["stop_time"] > low)).any()


def test_what_a_session_cannot_hold(watched, seen):
    rng = np.random.default_rng(0)
    withheld = watched[0].trials.assign(withheld=watched[0].trials["tier"] == "oracle")
    with pytest.raises(ValueError, match=r"animal1: responses to \d trials are withheld"):
        schedule_of(dataclasses.replace(watched[0], trials=withheld), rng)
    with pytest.raises(ValueError, match="grey images and responses without a time axis, or of grey videos"):
        schedule_of(dataclasses.replace(seen, stimuli=np.zeros((10, 24, 24, 3), np.uint8)), rng)
