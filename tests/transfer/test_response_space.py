"""Responses from one space to another, beside what the published programs multiply by."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.response_space import RESPONSE_SPACES, convert, response_precision

FRAMES = np.array([4, 0, 2])


@pytest.fixture
def stds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"per_frame_std": rng.uniform(0.5, 9, (3, 6)), "per_neuron_std": np.array([2.0, 5.0, 1e-6])}


def test_precision_has_a_floor_at_a_hundredth_of_the_mean():
    precision = response_precision(np.array([2.0, 4.0, 1e-6, np.nan]))
    least = 0.01 * (6 + 1e-6) / 3
    np.testing.assert_allclose(precision, [0.5, 0.25, 1 / least, 1 / least])


def test_precision_is_that_of_the_winning_program(shared: Path):
    fixture = shared / "reference/values/video/data_fixture"
    mouse = next(fixture.glob("dynamic*"))
    found = response_precision(np.load(mouse / "meta/statistics/responses/all/std.npy"))
    expected = np.load(fixture / "dwise_precision.npz")
    np.testing.assert_allclose(found, expected[expected.files[0]], rtol=1e-6)


def test_each_frame_takes_its_own_standard_deviation(stds: dict[str, np.ndarray]):
    found = convert(np.ones((3, 3)), FRAMES, "raw", "per_frame_std", stds)
    np.testing.assert_allclose(found, 1 / stds["per_frame_std"][:, FRAMES])


@given(st.sampled_from(RESPONSE_SPACES), st.sampled_from(RESPONSE_SPACES), st.integers(0, 2**32 - 1))
def test_there_and_back_is_where_it_began(source: str, target: str, seed: int):
    rng = np.random.default_rng(seed)
    stds = {"per_frame_std": rng.uniform(0, 9, (3, 6)), "per_neuron_std": rng.uniform(0, 9, 3)}
    values = rng.uniform(0, 100, (3, 3))
    there = convert(values, FRAMES, source, target, stds)
    np.testing.assert_allclose(convert(there, FRAMES, target, source, stds), values)
    np.testing.assert_allclose(
        there, convert(convert(values, FRAMES, source, "raw", stds), FRAMES, "raw", target, stds)
    )


def test_float32_stays_float32(stds: dict[str, np.ndarray]):
    assert convert(np.ones((3, 3), np.float32), FRAMES, "raw", "per_neuron_std", stds).dtype == np.float32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": "zscore"}, "found 'zscore', expected one of raw"),
        ({"std_by_space": {}}, "are not known; there are none"),
        ({"frames": np.array([0, 1, 6])}, "found frames 0 to 6, its standard deviations have 6 frames"),
        ({"values": np.ones((2, 3))}, r"found shape \(2, 3\), expected \(3, 3\)"),
        ({"std_by_space": {"per_frame_std": np.ones(3)}}, r"expected \(neurons, frames\)"),
        ({"std_by_space": {"per_frame_std": np.zeros((3, 6))}}, "expected some above 0"),
    ],
)
def test_a_mistake_is_one_line(change: dict, said: str, stds: dict[str, np.ndarray]):
    call = {"values": np.ones((3, 3)), "frames": FRAMES, "source": "raw", "target": "per_frame_std"}
    with pytest.raises(ValueError, match=said) as caught:
        convert(**(call | {"std_by_space": stds} | change))
    assert "\n" not in str(caught.value)
