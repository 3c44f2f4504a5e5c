"""Presentations become trials: repeats counted in time, grey left out and counted, showings of movies whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_data.presentations import movie_trials, scene_trials


@given(st.lists(st.sampled_from([-1, 0, 1, 2, np.nan]), max_size=30))
def test_scenes(frame):
    start = np.arange(len(frame)) / 4
    rows, trials, notes = scene_trials(np.array(frame, float), start, 3)
    shown = [(i, int(f)) for i, f in enumerate(frame) if f == f and f >= 0]
    assert rows.tolist() == [i for i, _ in shown]
    assert trials["stimulus"].tolist() == [f for _, f in shown]
    assert trials["start_s"].tolist() == [i / 4 for i, _ in shown]
    for image in range(3):
        assert trials["repeat"][trials["stimulus"] == image].tolist() == list(range(sum(f == image for _, f in shown)))
    expected = [f"{frame.count(-1)} presentations grey left out"] if -1 in frame else []
    lost = sum(f != f for f in frame)
    assert notes == expected + ([f"{lost} presentations without a frame number left out"] if lost else [])


@pytest.mark.parametrize(("frame", "found"), [([0, 3], "presentation 1 shows image 3"), ([-2], "shows image -2")])
def test_unknown_images(frame, found):
    with pytest.raises(ValueError, match=f"{found}, expected -1 to 2"):
        scene_trials(np.array(frame), np.zeros(len(frame)), 3)


def test_movies():
    frame = [2, 0, 1, 2, 0, 1, 2, 0, 2, 0, 1, 2, 0, 1]
    rows, trials, notes = movie_trials(np.array(frame, float), np.arange(len(frame)) / 30, 3)
    assert rows.tolist() == [[1, 2, 3], [4, 5, 6], [9, 10, 11]]
    assert trials["repeat"].tolist() == [0, 1, 2]
    assert set(trials["stimulus"]) == {0}
    np.testing.assert_allclose(trials["start_s"], np.array([1, 4, 9]) / 30)
    assert notes == ["5 frames of incomplete showings left out"]
    with pytest.raises(ValueError, match="shows frame 3, expected 0 to 2"):
        movie_trials(np.array([0, 1, 2, 3]), np.zeros(4), 3)
    rows, trials, notes = movie_trials(np.array([]), np.array([]), 3)
    assert rows.shape == (0, 3)
    assert notes == []
