"""Lengths of trials by each rule, on trials whose modalities end apart."""

import numpy as np
import pytest

from neural_data.trial_length import trial_frames, valid_frames

VALID = {
    "videos": np.array([300, 300, 299, 310]),
    "responses": np.array([300, 290, -1, 310]),
    "behavior": np.array([300, 295, 280, 310]),
    "pupil_center": np.array([240, 300, 300, 310]),
}
WITHHELD = np.array([False, False, True, False])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("all", [240, 290, 280, 310]),
        ("statistics", [240, 290, 280, 305]),
        ("video", [300, 300, 299, 310]),
        ("responses", [300, 290, 280, 310]),
    ],
)
def test_each_rule(rule, expected):
    assert trial_frames(VALID, WITHHELD, rule, 305, None).tolist() == expected
    assert trial_frames(VALID, WITHHELD, rule, 305, 300).tolist() == np.minimum(expected, 300).tolist()


def test_modalities_that_are_not_there():
    only = {"videos": VALID["videos"]}
    for rule in ("all", "statistics", "video", "responses"):
        assert trial_frames(only, np.ones(4, bool), rule, None, None).tolist() == [300, 300, 299, 310]


def test_what_is_no_rule():
    with pytest.raises(ValueError, match="trial_length: found 'longest', expected one of all, statistics, video, resp"):
        trial_frames(VALID, WITHHELD, "longest", None, None)
    with pytest.raises(ValueError, match="max_frames: found 0, expected 1 or more"):
        trial_frames(VALID, WITHHELD, "all", None, 0)


def test_the_first_nan():
    assert valid_frames(np.array([1.0, 2, np.nan, 4, np.nan])) == 2
    assert valid_frames(np.array([np.nan, 1.0])) == 0
    assert valid_frames(np.zeros(5)) == 5
    assert valid_frames(np.arange(5, dtype=np.uint8)) == 5
