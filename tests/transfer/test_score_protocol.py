"""The presets count the frames that each team's program counts, and average as it does."""

import numpy as np
import pytest

from transfer.score_protocol import PRESETS, ScoreProtocol, score_protocol


@pytest.mark.parametrize(
    ("team", "frames", "first", "last"),
    [
        ("organisers", 300, 50, 299),
        ("organisers", 313, 50, 312),
        ("dwiseneuro", 300, 50, 298),
        ("dwiseneuro", 313, 50, 298),
        ("dwiseneuro_submission", 299, 50, 297),
        ("viv1t", 313, 50, 299),
        ("viv1t_submission", 300, 51, 299),
        ("dynamic_vfm", 299, 50, 298),
        ("dynamic_vfm", 300, 51, 299),
        ("dynamic_vfm", 239, 50, 238),
        ("viv1t_closed_loop", 300, 50, 299),
        ("sensorium2022", 1, 0, 0),
    ],
)
def test_frames_that_count(team, frames, first, last):
    counted = np.arange(frames)[PRESETS[team].counted(frames)]
    assert (counted[0], counted[-1]) == (first, last)


def test_submissions_of_2023_had_249_columns():
    for team in ("dwiseneuro_submission", "viv1t_submission", "dynamic_vfm"):
        counted = PRESETS[team].counted(300)
        assert counted.stop - counted.start == 249


def test_averages():
    scores = {"a": np.array([0.1, 0.2, np.nan]), "b": np.array([0.6])}
    zeros, omitted = score_protocol("organisers"), score_protocol("viv1t_closed_loop")
    assert zeros.one_number(scores) == pytest.approx((0.1 + 0.2 + 0 + 0.6) / 4)
    assert omitted.one_number(scores) == pytest.approx((0.15 + 0.6) / 2)
    assert np.isnan(score_protocol("viv1t").one_number(scores))
    assert score_protocol("viv1t", average="neurons", undefined="omit").one_number(scores) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="no animal has a score"):
        zeros.one_number({})


def test_a_changed_preset_says_so():
    assert score_protocol("viv1t", first_frame=50, drop_last=None) is PRESETS["viv1t"]
    changed = score_protocol("viv1t", first_frame=60)
    assert changed.options() == PRESETS["viv1t"].options() | {"protocol_name": "viv1t+", "first_frame": 60}


def test_mistakes_are_named():
    for options, line in (
        ({"first_frame": -1}, "first_frame: found -1 frames"),
        ({"response_space": "std"}, "response_space: found 'std', expected one of raw"),
        ({"average": "mice"}, "average: found 'mice', expected one of neurons, animals"),
        ({"skip": 3}, "no option 'skip'"),
    ):
        with pytest.raises(ValueError, match=line):
            score_protocol("viv1t", **options)
    with pytest.raises(ValueError, match="found 'lromul', expected one of organisers"):
        score_protocol("lromul")
    with pytest.raises(ValueError, match="no frame counts of a trial of 40 frames"):
        ScoreProtocol("mine").counted(40)
