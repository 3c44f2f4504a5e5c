"""Pickles written operation by operation: what Python and numpy load of them is what was meant."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_data.pickle_writer import Call, LongBytes, array, pickle_parts, pickled, streamed_array
from neural_data.restricted_pickle import LARGE_BYTES, BytesInFile, read_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@settings(deadline=None, max_examples=100)
@given(value=PLAIN, protocol=st.integers(3, 4), framed=st.booleans())
def test_plain_data(value, protocol, framed):
    assert pickle.loads(pickled(value, protocol, framed and protocol == 4)) == value


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6, dtype=">i2").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([[True, False]]),
        np.array([["a", None], [3, 2.5]], object),
        np.array(["VISp", "VISrl"]),
        np.zeros((0, 4), np.float32),
    ],
)
@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_arrays_are_those_of_numpy(values):
    loaded = pickle.loads(pickled([values])).pop()
    assert loaded.dtype == values.dtype.newbyteorder("=")  # numpy turns bytes around as it loads them
    np.testing.assert_array_equal(loaded, values)


def test_calls():
    assert pickle.loads(pickled(Call("builtins", "complex", (1.5, 2)))) == 1.5 + 2j
    made = pickle.loads(
        pickled(Call("fractions", "Fraction", (), (None, {"_numerator": 3, "_denominator": 7}), new=True))
    )
    assert str(made) == "3/7"


def test_long_bytes_are_made_as_they_are_written(tmp_path):
    values = np.random.default_rng(0).normal(size=(5, LARGE_BYTES // 16))
    made = []

    def rows():
        for row in values:
            made.append(len(made))
            yield row[None]

    parts = pickle_parts({"x": streamed_array(values.shape, np.dtype(float), rows()), "y": 1})
    path = tmp_path / "a.pkl"
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
            assert len(part) <= values[0].nbytes
    assert path.read_bytes() == pickled({"x": array(values), "y": 1})
    assert made == list(range(5))
    read = read_pickle(tmp_path / "a.pkl", {"numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"})
    assert isinstance(read["x"].state[4], BytesInFile)
    assert pickle.loads(pickled(LongBytes(3, [b"a", b"bc"]))) == b"abc"
