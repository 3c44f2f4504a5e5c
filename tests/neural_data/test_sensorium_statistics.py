"""Statistics across files, against numpy's and against those of the reference folder."""

import numpy as np
import pytest

import neural_data.sensorium_statistics
from neural_data.sensorium_statistics import STATISTICS, over_pixels, per_element


def saved(folder, arrays):
    files = [folder / f"{i}.npy" for i in range(len(arrays))]
    for file, values in zip(files, arrays, strict=True):
        np.save(file, values)
    return files


@pytest.mark.parametrize("n", [1, 4, 5])
@pytest.mark.parametrize("shape", [(3,), (2, 7), (3, 4, 6)])
@pytest.mark.parametrize("block", [64, 2**26])
def test_each_element_across_trials_of_different_lengths(tmp_path, monkeypatch, n, shape, block):
    monkeypatch.setattr(neural_data.sensorium_statistics, "BLOCK_BYTES", block)
    arrays = np.random.default_rng(n).normal(100, 5, (n, *shape))
    if len(shape) > 1:
        arrays[0, ..., 4:] = arrays[-1, ..., 3:] = np.nan
        arrays[..., 5:] = np.nan  # the padding: no trial is so long
    found = per_element(saved(tmp_path, arrays))
    known = ~np.isnan(arrays).all(axis=0)
    for name in STATISTICS:
        assert found[name].shape == shape
        assert np.isnan(found[name][~known]).all()
        wanted = getattr(np, f"nan{name}")(arrays.reshape(n, -1)[:, known.ravel()], axis=0)
        np.testing.assert_allclose(found[name][known], wanted, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("most", [4000, 2**28])
def test_one_number_over_all_pixels(tmp_path, monkeypatch, most):
    monkeypatch.setattr(neural_data.sensorium_statistics, "MEDIAN_BYTES", most)
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 12, 16)).astype(np.float32)
    found = over_pixels(saved(tmp_path, images))
    exact = {"mean": images.mean(dtype=float), "std": images.std(dtype=float), "min": images.min(), "max": images.max()}
    exact["median"] = np.median(images if most > 4000 else images[::3])
    for name in STATISTICS:
        assert found[name].shape == ()
        assert found[name] == pytest.approx(exact[name], rel=1e-6)


def test_the_statistics_of_the_reference_folder(shared):
    """Which are those of its training trials."""
    folder = next((shared / "reference" / "values" / "video" / "data_fixture").glob("dynamic*"))
    rows = np.flatnonzero(np.load(folder / "meta/trials/tiers.npy") == "train")
    for part in ("videos", "responses", "behavior", "pupil_center"):
        found = per_element([folder / "data" / part / f"{row}.npy" for row in rows])
        for name in STATISTICS:
            expected = np.load(folder / "meta/statistics" / part / "all" / f"{name}.npy")
            np.testing.assert_allclose(found[name], expected, rtol=1e-12, atol=1e-12, err_msg=f"{part} {name}")
