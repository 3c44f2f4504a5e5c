"""Windows and their weights: the published counts and stitching, and what every rule must keep."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.blending import BLENDINGS, window_table


def blended(table, values, frames):
    """One value per frame from values (windows, outputs)."""
    return np.bincount(table.frames.ravel(), (table.weights * values).ravel(), frames)


def test_published_overlap_of_dwiseneuro(shared):
    """Of 40 frames: how many windows a frame is the mean of, and the mean of these windows' last frames."""
    published = json.loads((shared / "reference/values/video/dwiseneuro/reference.json").read_text())
    table = window_table(40, 16, 2, 16, "ones")
    np.testing.assert_array_equal(table.starts, np.arange(10))
    counts = np.bincount(table.frames.ravel(), minlength=40)
    np.testing.assert_array_equal(counts, published["blend_counts_len40"])
    last = np.repeat(table.starts[:, None] + 30, 16, axis=1)
    np.testing.assert_allclose(blended(table, last, 40), published["blend_mean_of_last_index_len40"], rtol=1e-12)


def test_published_stitching_of_dynamic_vfm(shared):
    """Of 299 frames, of which 50 to 298 count: which window and which of its outputs each comes from."""
    published = json.loads((shared / "reference/values/video/dynamic_vfm/reference.json").read_text())["stitch_T299"]
    number = {start: place for place, start in enumerate(published["window_starts"]) if place != 16}
    table = window_table(299, 30, 1, 15, "dynamic_vfm")
    start = np.repeat(table.starts[:, None], 15, axis=1)
    found = blended(table, start, 299)[50:].astype(int), blended(table, np.tile(np.arange(15), (len(start), 1)), 299)
    code = [100 * number[at] + output for at, output in zip(found[0], found[1][50:], strict=True)]
    np.testing.assert_array_equal(code, published["code(100*window+offset)"])


@pytest.mark.parametrize(("frames", "first"), [(300, 51), (299, 50), (239, 50)])
def test_dynamic_vfm_lays_windows_from_the_first_frame_that_counts(frames, first):
    table = window_table(frames, 30, 1, 15, "dynamic_vfm")
    assert first - 15 in table.starts
    np.testing.assert_array_equal(np.flatnonzero(~table.covered(frames)), np.arange(15))


@given(
    rule=st.sampled_from(BLENDINGS),
    window=st.integers(1, 12),
    stride=st.integers(1, 3),
    extra=st.integers(0, 40),
    data=st.data(),
)
def test_every_frame_that_a_window_reaches_is_a_mean(rule, window, stride, extra, data):
    stride = 1 if rule == "dynamic_vfm" else stride
    outputs = data.draw(st.integers(1, window))
    frames = (window - 1) * stride + 1 + extra
    table = window_table(frames, window, stride, outputs, rule)
    total = np.bincount(table.frames.ravel(), table.weights.ravel(), frames)
    reached = np.zeros(frames, bool)
    for start in range(frames - (window - 1) * stride):
        reached[start + stride * np.arange(window - outputs, window)] = True
    np.testing.assert_allclose(total, reached, atol=1e-12)
    assert (table.weights >= 0).all()
    assert table.starts.min() >= 0
    assert table.starts.max() + (window - 1) * stride < frames


def test_last_outputs_alone():
    table = window_table(10, 4, 1, 3, "last")
    np.testing.assert_array_equal(blended(table, np.tile([1.0, 2.0, 3.0], (7, 1)), 10), [0, 1, 2, *[3] * 7])


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 60), st.data())
def test_windows_side_by_side_say_each_frame_once(window, stride, extra, data):
    outputs = data.draw(st.integers(1, window))
    frames = (window - 1) * stride + 1 + extra
    table = window_table(frames, window, stride, outputs, "side_by_side")
    assert set(np.unique(table.weights)) <= {0, 1}
    # No window more than what its outputs add, but for the last one of each phase.
    assert len(table.starts) <= -(-frames // outputs) + stride


def test_the_last_window_side_by_side_overlaps():
    table = window_table(11, 6, 1, 4, "side_by_side")
    assert table.starts.tolist() == [0, 4, 5]
    assert blended(table, np.repeat(table.starts[:, None], 4, axis=1), 11).tolist() == [0, 0, *[0] * 4, 4, *[5] * 4]


def test_mistakes_are_named():
    for options, line in (
        ((20, 16, 2, 16, "ones"), "a trial has 20 frames, a window of 16 with stride 2 needs 31"),
        ((40, 16, 2, 16, "mean"), "found 'mean', expected one of ones, linear"),
        ((40, 16, 2, 17, "ones"), "has 17 outputs, expected 1 to 16"),
        ((40, 16, 2, 16, "dynamic_vfm"), "needs stride 1, found 2"),
    ):
        with pytest.raises(ValueError, match=line):
            window_table(*options)
