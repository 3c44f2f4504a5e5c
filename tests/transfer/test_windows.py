"""Windows of trials: which frames they have, and that every one that should come, comes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.windows import WindowPlan, dense_starts


def test_the_winning_model_sees_every_second_of_31_frames():
    plan = WindowPlan(16, 2)
    assert plan.span == 31
    np.testing.assert_array_equal(plan.numbers(7, 300), np.arange(7, 38, 2))


def test_random_windows_begin_at_every_place_with_room():
    plan, lengths = WindowPlan(16, 2), np.full(20_000, 40)
    trial, starts = plan.samples(lengths)
    first = plan.start(lengths[trial], starts, np.random.default_rng(0).random(len(trial)))
    counts = np.bincount(first)
    assert len(counts) == 10
    np.testing.assert_allclose(counts, 2000, rtol=0.1)


@given(st.integers(1, 400), st.integers(1, 80), st.integers(1, 50))
def test_dense_windows_cover_a_trial(length: int, span: int, hop: int):
    starts = dense_starts(length, span, min(hop, span))
    seen = np.concatenate([np.arange(start, min(start + span, length)) for start in starts])
    assert set(seen) == set(range(length))
    assert starts[-1] == max(length - span, 0)
    assert len(set(starts)) == len(starts)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4), st.floats(0, 1, exclude_max=True))
def test_a_window_is_inside_its_trial(length: int, frames: int, stride: int, drawn: float):
    plan = WindowPlan(frames, stride)
    start = int(plan.start(np.array([length]), np.array([-1]), np.array([drawn]))[0])
    numbers = plan.numbers(start, length)
    assert 0 <= numbers[0] <= numbers[-1] < length
    assert len(numbers) == frames or length < plan.span
    assert (np.diff(numbers) == stride).all()


def test_whole_trials_are_as_long_as_they_are():
    plan = WindowPlan(30, 1, "whole")
    trial, starts = plan.samples(np.array([300, 239]))
    assert trial.tolist() == [0, 1]
    assert [len(plan.numbers(start, length)) for start, length in zip(starts, (300, 239), strict=True)] == [300, 239]


def test_dense_samples_go_through_all_windows_of_all_trials():
    trial, starts = WindowPlan(20, 1, "dense").samples(np.array([50, 20, 5]))
    assert trial.tolist() == [0, 0, 0, 1, 2]
    assert starts.tolist() == [0, 20, 30, 0, 0]


@pytest.mark.parametrize(
    ("plan", "said"), [((4, 1, "cut"), "found 'cut'"), ((-1,), "found -1 frames"), ((4, 0), "stride 0")]
)
def test_a_mistake_is_one_line(plan: tuple, said: str):
    with pytest.raises(ValueError, match=said):
        WindowPlan(*plan)
