"""Labelled arrays written in the layout of old releases, and read back: levels with gaps, further coordinates."""

import numpy as np
import pytest

from neural_data.pickle_writer import pickled
from neural_data.pickled_xarray import NAMES, labelled_array
from neural_data.pickled_xarray_writer import data_array
from neural_data.restricted_pickle import read_pickle


@pytest.mark.parametrize("layout", [{}, {"codes": "labels"}, {"frozen": False}])
def test_a_data_array(tmp_path, layout):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 5))
    units = {
        "unit_id": np.array([5, 3, 9, 3, 1]),
        "visual_area": np.array(["VISp", "VISl", None, "VISp", "VISp"], object),
        "run_pval_ns": np.array([0.5, np.nan, 0.25, 0.5, np.nan]),
    }
    extra = {"r": (("trials", "units"), values > 0)}
    (tmp_path / "a.pkl").write_bytes(
        pickled(data_array(("trials", "units"), values, {"trials": np.array([1, 2])}, units, extra, **layout))
    )
    found = labelled_array(read_pickle(tmp_path / "a.pkl", NAMES))
    assert found.dims == ("trials", "units")
    np.testing.assert_array_equal(found.values, values)
    for name, expected in units.items():
        dims, labels = found.coordinates[name]
        assert dims == ("units",)
        assert labels.tolist() == pytest.approx(expected.tolist(), nan_ok=True)
    np.testing.assert_array_equal(found.coordinates["r"][1], values > 0)
    assert found.coordinates["trials"][1].tolist() == [1, 2]


def test_an_index_of_many_values(tmp_path):
    """More units than the codes of one or two bytes can count."""
    units = {"unit_id": np.random.default_rng(0).permutation(70_000)}
    (tmp_path / "a.pkl").write_bytes(pickled(data_array(("units",), np.zeros(70_000), {}, units)))
    found = labelled_array(read_pickle(tmp_path / "a.pkl", NAMES))
    np.testing.assert_array_equal(found.coordinates["unit_id"][1], units["unit_id"])
