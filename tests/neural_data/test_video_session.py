"""What animals are shown: the tiers of the competition, repeats, lengths, and generators of their own."""

import numpy as np
import pytest

from neural_data.simulation_config import SimulationConfig, VideoConfig
from neural_data.video_session import clip_table, render_clip, session_table, stream


def config(**videos):
    return SimulationConfig(dynamic=True, videos=VideoConfig(**videos))


def session(animal=1, **videos):
    clips = clip_table(config(**videos), animal)
    return clips, session_table(config(**videos), clips, animal)


def test_tiers_and_repeats_of_the_competition():
    clips, trials = session(train_clips=12, test_clips=6, bonus_clips=3, unusable_trials=2)
    assert trials["tier"].value_counts().to_dict() == {
        "train": 12,
        "oracle": 60,
        "live_test_main": 60,
        "final_test_main": 60,
        "live_test_bonus": 30,
        "final_test_bonus": 30,
        "none": 2,
    }
    assert clips["tier"].value_counts().to_dict()["oracle"] == 6
    for _, shown in trials.groupby("stimulus"):
        assert sorted(shown["repeat"]) == list(range(len(shown)))
        assert shown["tier"].nunique() == 1
        assert len(shown) == (1 if shown["tier"].iat[0] in ("train", "none") else 10)
    assert (np.diff(trials["stimulus"]) < 0).any()
    assert not trials["withheld"].any()


def test_kinds_of_clips_take_turns_within_a_tier():
    clips, trials = session(test_clips=3, bonus_clips=4, classes=["movie", "noise"])
    kinds = clips.groupby("tier", sort=False)["stimulus_class"].agg(list)
    assert kinds["oracle"] == ["movie", "noise", "movie"]
    assert kinds["live_test_bonus"] == ["flashes", "noise", "drifting_gabor", "flashes"]
    assert trials["stimulus_class"].tolist() == clips["stimulus_class"].iloc[trials["stimulus"]].tolist()


def test_lengths_as_in_the_competition():
    clips, trials = session(frames=300, train_clips=200, short_clips=0.2, lost_frames=0.3)
    assert {*clips["frames"]} == {300, 240}
    assert (clips["frames"] == 240).mean() == pytest.approx(0.2, abs=0.07)
    assert {*trials["frames"]} == {300, 299, 240, 239}
    missing = clips["frames"].to_numpy()[trials["stimulus"]] - trials["frames"]
    assert missing.mean() == pytest.approx(0.3, abs=0.07)
    gaps = np.diff(trials["start_s"]) - clips["frames"].to_numpy()[trials["stimulus"]][:-1] / 30
    np.testing.assert_allclose(gaps, 0.5)
    _, whole = session(short_clips=0.0, lost_frames=0.0)
    assert {*whole["frames"]} == {100}


def test_repeats_are_lost_where_asked_and_tiers_withheld():
    _, trials = session(test_clips=20, missing_repeats=3, withheld=["final_test_main"])
    counts = trials[trials["tier"] == "oracle"]["stimulus"].value_counts()
    assert {*counts} == {7, 8, 9, 10}
    assert (trials["withheld"] == (trials["tier"] == "final_test_main")).all()


def test_training_clips_are_an_animals_own_and_all_see_the_others():
    settings = config(height=16, width=20, frames=20)
    first, second = (clip_table(settings, animal) for animal in (1, 2))
    for tier, shared in (("train", False), ("oracle", True), ("final_test_main", True)):
        one, other = (
            [render_clip(settings, clip) for _, clip in clips[clips["tier"] == tier].iterrows()][:2]
            for clips in (first, second)
        )
        assert [np.array_equal(a, b) for a, b in zip(one, other, strict=True)] == [shared, shared]
        assert not np.array_equal(one[0], one[1])
    assert (session_table(settings, first, 1)["stimulus"] != session_table(settings, second, 2)["stimulus"]).any()


def test_streams_differ_by_all_that_they_are_for():
    keys = [(0, "clip", 1, 2), (1, "clip", 1, 2), (0, "spikes", 1, 2), (0, "clip", 2, 1), (0, "clip", 1), (0, "clip")]
    drawn = {key: stream(*key).random() for key in keys}
    assert len({*drawn.values()}) == len(keys)
    assert stream(*keys[0]).random() == drawn[keys[0]]
