"""Sequences, intervals and spikes: reference values of experanto itself, slow formulas, clocks, malformed files."""

import pickle
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from neural_data.experanto_devices import Sequence, Spikes, TimeIntervals
from neural_data.experanto_folder import open_device, open_experanto


@pytest.fixture(scope="module")
def reference(shared, tmp_path_factory):
    """A recording with all kinds of devices, and what experanto's `main` answered to 60 times."""
    values = shared / "reference" / "values" / "static" / "experanto"
    folder = tmp_path_factory.mktemp("experanto")
    with zipfile.ZipFile(next(values.glob("*.zip"))) as archive:
        archive.extractall(folder)
    return open_experanto(next(folder.iterdir())).devices, dict(np.load(values / "interpolators.npz"))


QUERIES = {
    "responses0": ("responses", {}),
    "responses1": ("responses", {"interpolation": "linear"}),
    "eye_tracker0": ("eye_tracker", {}),
    "eye_tracker1": ("eye_tracker", {"interpolation": "linear"}),
    "eye_tracker2": ("eye_tracker", {"interpolation": "linear"}),
    "treadmill0": ("treadmill", {}),
    "treadmill1": ("treadmill", {"interpolation": "linear"}),
    "screen0": ("screen", {}),
    "tiers0": ("tiers", {}),
    "spikes0": ("spikes", {}),
    "spikes1": ("spikes", {"window_s": 0.5, "align": "left"}),
    "spikes2": ("spikes", {"window_s": 0.5, "align": "right", "smoothing_queries": 1.5}),
}


@pytest.mark.parametrize("case", QUERIES)
def test_agrees_with_experanto(reference, case):
    devices, truth = reference
    name, options = QUERIES[case]
    values, valid = devices[name].at(truth["in/times"], **options)
    found, expected = values[valid], truth[f"out/{case}_values"]
    if case == "eye_tracker1":
        # Without keep_nans experanto puts the mean of the query in place of NaN.
        found = np.where(np.isnan(found), np.nanmean(found, axis=0), found)
    np.testing.assert_array_equal(np.flatnonzero(valid), truth[f"out/{case}_valid"])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(devices[name].interval_s, truth[f"out/{case}_interval"], rtol=0, atol=0)
    if values.dtype != bool:
        assert np.isnan(values[~valid]).all()


def test_a_rescaled_screen_is_the_mean_of_blocks(reference):
    devices, truth = reference
    values, valid = devices["screen"].at(truth["in/times"])
    blocks = values[valid].reshape(-1, 6, 2, 8, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(blocks, truth["out/screen1_values"], atol=1e-5)


def write_sequence(folder: Path, data: np.ndarray, rate: float, start: float, memmap: bool = False, **fields) -> Path:
    """A device as the format has it, written without our writer; `shifts`: phase shifts in seconds."""
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    shifts = fields.pop("shifts", None)
    meta = {
        "modality": "sequence",
        "sampling_rate": rate,
        "start_time": start,
        "end_time": start + (len(data) - 1) / rate,
        "n_signals": data.shape[1],
    }
    if memmap:
        meta |= {"is_mem_mapped": True, "n_timestamps": len(data), "dtype": str(data.dtype)}
        data.tofile(folder / "data.mem")
    else:
        np.save(folder / "data.npy", data)
    if shifts is not None:
        meta["phase_shift_per_signal"] = True
        np.save(folder / "meta" / "phase_shifts.npy", shifts)
    (folder / "meta.yml").write_text(yaml.safe_dump(meta | fields))
    return folder


CLOCKS = st.one_of(st.just(0.0), st.floats(-10, 10), st.floats(1e9, 2e9))
RATES = st.sampled_from([4.0, 7.77, 8.0, 20.0, 29.97, 30.0, 100.0])
sequences = st.fixed_dictionaries(
    {
        "start": CLOCKS,
        "rate": RATES,
        "n": st.integers(2, 40),
        "signals": st.integers(1, 4),
        "memmap": st.booleans(),
        "shifted": st.booleans(),
        "seed": st.integers(0, 2**16),
    }
)


def drawn(folder, case):
    rng = np.random.default_rng(case["seed"])
    data = rng.standard_normal((case["n"], case["signals"])).astype(np.float32)
    shifts = rng.uniform(0, 1 / case["rate"], case["signals"]) if case["shifted"] else None
    write_sequence(Path(folder), data, case["rate"], case["start"], case["memmap"], shifts=shifts)
    return open_device(folder), data, np.zeros(case["signals"]) if shifts is None else shifts, rng


@settings(deadline=None)
@given(case=sequences)
def test_times_of_samples_give_the_samples_on_any_clock(case):
    with tempfile.TemporaryDirectory() as folder:
        device, data, _, _ = drawn(folder, case | {"shifted": False})
        times = case["start"] + np.arange(len(data)) / case["rate"]
        # The end in the file is rounded, too; a whole sample may not be lost to that.
        inside = times <= device.end_s
        assert inside[:-1].all()
        for interpolation in ("nearest", "linear"):
            values, valid = device.at(times, interpolation)
            np.testing.assert_array_equal(valid, inside)
            np.testing.assert_array_equal(values[valid], data[inside])


@settings(deadline=None)
@given(case=sequences)
def test_between_samples_they_hold_or_blend(case):
    with tempfile.TemporaryDirectory() as folder:
        device, data, shifts, rng = drawn(folder, case)
        start, end = device.interval_s
        assume(start < end)
        times = rng.uniform(start - 1, end + 1, 50)
        nearest, valid = device.at(times)
        linear, valid_linear = device.at(times, "linear")
        np.testing.assert_array_equal(valid, device.valid(times))
        assert not valid[(times < start) | (times > end)].any()
        assert valid[(times >= start) & (times <= end)].all()
        assert (valid | ~valid_linear).all()
        grid = np.arange(len(data))
        for signal, shift in enumerate(shifts):
            place = (times - shift - device.start_s) * case["rate"]
            safe = valid & (np.abs(place - np.round(place)) > 1e-4)
            np.testing.assert_array_equal(nearest[safe, signal], data[np.floor(place[safe]).astype(int), signal])
            expected = np.interp(place, grid, data[:, signal])[valid_linear]
            np.testing.assert_allclose(linear[valid_linear, signal], expected, atol=1e-4)


@settings(deadline=None)
@given(case=sequences, width=st.floats(0.01, 3))
def test_a_window_is_the_average_of_the_held_signal(case, width):
    with tempfile.TemporaryDirectory() as folder:
        device, data, shifts, rng = drawn(folder, case | {"start": float(np.round(case["start"], 3))})
        start, end = device.interval_s
        begin = rng.uniform(start - 0.5, end, 5)
        stop = begin + width
        averages = device.windows(begin, stop)
        covered = device.covers(begin, stop)
        whole = (begin >= start) & (stop <= end + 1 / case["rate"])
        np.testing.assert_array_equal(covered, whole)
        assert np.isnan(averages[~covered]).all()
        for window in np.flatnonzero(covered):
            for signal, shift in enumerate(shifts):
                edges = np.arange(len(data) + 1) / case["rate"] + shift + device.start_s
                shared = np.diff(np.clip(edges, begin[window], stop[window]))
                expected = (shared * data[:, signal]).sum() / shared.sum()
                assert averages[window, signal] == pytest.approx(expected, abs=1e-3 if case["start"] > 1e8 else 1e-6)


def test_nan_stays_nan_and_does_not_spread(tmp_path):
    data = np.arange(10, dtype=np.float64)[:, None] * [1.0, 10.0]
    data[4, 0] = np.nan
    device = open_device(write_sequence(tmp_path, data, 10.0, 1e9))
    times = 1e9 + np.array([0.35, 0.4, 0.45, 0.5, 0.55])
    assert np.isnan(device.at(times)[0][:, 0]).tolist() == [False, True, True, False, False]
    linear, valid = device.at(times, "linear")
    assert valid.all()
    assert np.isnan(linear[:, 0]).tolist() == [True, True, True, False, False]
    assert np.isfinite(linear[:, 1]).all()
    averages = device.windows(1e9 + np.array([0.3, 0.4]), 1e9 + np.array([0.6, 0.5]))
    np.testing.assert_allclose(averages[0], [4.0, 40.0], atol=1e-5)
    assert np.isnan(averages[1, 0])
    assert averages[1, 1] == pytest.approx(40.0)


def test_whole_numbers_get_room_for_nan(tmp_path):
    device = open_device(write_sequence(tmp_path, np.arange(6, dtype=np.int16)[:, None], 10.0, 0.0))
    values, valid = device.at(np.array([-0.1, 0.31]))
    assert valid.tolist() == [False, True]
    assert np.isnan(values[0, 0])
    assert values[1, 0] == 3


def test_devices_are_small_when_handed_on(tmp_path):
    device = open_device(write_sequence(tmp_path, np.ones((5000, 3), np.float32), 10.0, 0.0, memmap=True))
    handed = pickle.dumps(device)
    assert len(handed) < 2000
    np.testing.assert_array_equal(pickle.loads(handed).at(np.array([1.0]))[0], [[1, 1, 1]])


@settings(deadline=None)
@given(
    bounds=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=8),
    times=st.lists(st.integers(-2, 45), max_size=20),
)
def test_labels_hold_from_start_to_before_end(bounds, times):
    bounds, times = np.array(bounds, float).reshape(-1, 2), np.array(times) / 2
    values, valid = TimeIntervals(0.0, 20.0, {"empty": np.empty((0, 2)), "some": bounds}).at(times)
    np.testing.assert_array_equal(valid, (times >= 0) & (times <= 20))
    assert not values[:, 0].any()
    expected = [any(start <= t < end for start, end in bounds) and 0 <= t <= 20 for t in times]
    np.testing.assert_array_equal(values[:, 1], expected)


def write_spikes(folder: Path, trains: list[np.ndarray], end: float, memmap: bool = False, **fields) -> Path:
    folder.mkdir(exist_ok=True)
    spikes = np.concatenate([np.empty(0), *trains])
    spikes.tofile(folder / "spikes.mem") if memmap else np.save(folder / "spikes.npy", spikes)
    indices = np.cumsum([0, *map(len, trains)]).tolist()
    meta = {"modality": "spikes", "start_time": 0.0, "end_time": end, "spike_indices": indices}
    (folder / "meta.yml").write_text(yaml.safe_dump(meta | {"is_mem_mapped": memmap} | fields))
    return folder


@settings(deadline=None)
@given(
    trains=st.lists(st.lists(st.integers(0, 100)), min_size=1, max_size=4),
    align=st.sampled_from(["left", "center", "right"]),
    memmap=st.booleans(),
)
def test_spikes_are_counted_in_windows(trains, align, memmap):
    trains = [np.sort(np.array(train, float)) / 10 for train in trains]
    times, before = np.arange(0, 9.5, 0.7), {"left": 0.0, "center": 0.5, "right": 1.0}[align]
    with tempfile.TemporaryDirectory() as folder:
        device = open_device(write_spikes(Path(folder), trains, 9.0, memmap))
        values, valid = device.at(times, 1.0, align)
        np.testing.assert_array_equal(valid, times <= 9)
        for t, row in zip(times[valid], values[valid], strict=True):
            begin = t - before
            end = t + 0.5 if align == "center" else begin + 1.0
            assert row.tolist() == [((train >= begin) & (train < end)).sum() for train in trains]
        windows = device.windows(np.array([0.0, 8.5]), np.array([9.0, 9.5]))
        assert windows[0].tolist() == [(train < 9).sum() for train in trains]
        assert np.isnan(windows[1]).all()


def test_kinds_of_devices(tmp_path):
    assert isinstance(open_device(write_sequence(tmp_path / "a", np.ones((3, 2)), 1.0, 0.0)), Sequence)
    assert isinstance(open_device(write_spikes(tmp_path / "b", [np.ones(2)], 1.0)), Spikes)
    shifted = write_sequence(tmp_path / "c", np.ones((9, 2)), 1.0, 5.0, shifts=np.array([[0.25], [0.5]]))
    assert open_device(shifted).interval_s == (5.5, 13.25)


SEQUENCE_MISTAKES = {
    "no rate": ({"sampling_rate": None}, r"meta\.yml: sampling_rate: not there, expected a number"),
    "rate 0": ({"sampling_rate": 0}, "sampling_rate: found 0, expected samples per second, more than 0"),
    "rate of another kind": ({"sampling_rate": [8]}, r"sampling_rate: found \[8\], expected a number"),
    "inverse rate": (
        {"sampling_rate": 0.1},
        "found 0.1, expected 50 samples that last 4.9 s, from start_time to e",
    ),
    "end before start": (
        {"end_time": -1.0},
        "end_time: found -1.0, expected seconds on the clock of start_time, not",
    ),
    "endless": ({"end_time": float("inf")}, "end_time: found inf, expected seconds on the clock"),
    "wrong n_signals": (
        {"n_signals": 4},
        r"data\.npy: found float32 of shape \(50, 3\), expected numbers of sh",
    ),
    "half a signal": ({"n_signals": 2.5}, "n_signals: found 2.5, expected a whole number"),
    "unknown modality": (
        {"modality": "movie"},
        "modality: found 'movie', expected sequence or screen or time_inte",
    ),
    "no modality": ({"modality": None}, "modality: not there, expected text"),
    "no phase shifts": ({"phase_shift_per_signal": True}, r"phase_shifts\.npy: no such file"),
    "flag": ({"phase_shift_per_signal": "perhaps"}, "found 'perhaps', expected true or false"),
    "signal names": ({"signal_names": ["a"]}, r"signal_names: found \['a'\], expected 3 names, one per signal"),
    "absent map": ({"is_mem_mapped": True, "n_timestamps": 50, "dtype": "float32"}, r"data\.mem: no such file"),
}


@pytest.mark.parametrize("mistake", SEQUENCE_MISTAKES)
def test_each_mistake_in_a_sequence_is_one_line(tmp_path, mistake):
    fields, message = SEQUENCE_MISTAKES[mistake]
    write_sequence(tmp_path, np.ones((50, 3), np.float32), 10.0, 0.0, **fields)
    check(tmp_path, message)


def check(folder, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        open_device(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(folder))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_timestamps": 51}, r"found 600 bytes, expected 612 \(n_timestamps x n_signals = 51 x 3 of float32\)"),
        ({"dtype": "float64"}, "found 600 bytes, expected 1200"),
        ({"dtype": "object"}, "dtype: found 'object', expected a type of numbers"),
        ({"dtype": "float33"}, "dtype: found 'float33', expected a type of numbers"),
        ({"dtype": None}, "dtype: not there, expected text"),
        ({"n_timestamps": None}, "n_timestamps: not there, expected a whole number"),
    ],
)
def test_each_mistake_in_a_mapped_sequence_is_one_line(tmp_path, fields, message):
    write_sequence(tmp_path, np.ones((50, 3), np.float32), 10.0, 0.0, memmap=True, **fields)
    check(tmp_path, message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"spike_indices": [0, 2, 1]}, r"spike_indices: found \[0, 2, 1\], expected offsets of each neuron's spikes"),
        ({"spike_indices": 3}, "spike_indices: found 3, expected offsets"),
        ({"spike_indices": [0, 2, 5]}, r"spikes\.npy: found shape \(4,\), expected \(5,\) by spike_indices"),
        ({"is_mem_mapped": True}, r"spikes\.mem: no such file"),
        ({"n_signals": 3}, "n_signals: found 3, expected 2, one less than spike_indices"),
    ],
)
def test_each_mistake_in_spikes_is_one_line(tmp_path, fields, message):
    check(write_spikes(tmp_path / "spikes", [np.ones(2), np.ones(2)], 2.0, **fields), message)


def test_each_mistake_in_intervals_is_one_line(tmp_path):
    meta = {"modality": "time_interval", "start_time": 0, "end_time": 1, "labels": {"train": "train.npy"}}
    (tmp_path / "meta.yml").write_text(yaml.safe_dump(meta))
    check(tmp_path, r"train\.npy: no such file")
    np.save(tmp_path / "train.npy", np.ones(3))
    check(tmp_path, r"train\.npy: found shape \(3,\), expected \(intervals, 2\)")
    (tmp_path / "meta.yml").write_text(yaml.safe_dump(meta | {"labels": {"train": "../../train.npy"}}))
    check(tmp_path, r"meta\.yml: \.\./\.\./train\.npy: lies outside of .*, expected a file in it")
    (tmp_path / "meta.yml").write_text(yaml.safe_dump(meta | {"labels": ["train"]}))
    check(tmp_path, r"labels: found \['train'\], expected names with a file each")


def test_files_are_data(tmp_path):
    folder = write_sequence(tmp_path / "a", np.ones((3, 1)), 1.0, 0.0)
    (folder / "meta.yml").write_text("modality: !!python/object/apply:os.system [exit 1]\n")
    check(folder, r"meta\.yml: cannot be read as plain YAML \(could not determine a constructor")
    (folder / "meta.yml").write_text("- sequence\n")
    check(folder, r"meta\.yml: found list, expected a table of fields")
    (folder / "meta.yml").unlink()
    check(folder, r"meta\.yml: no such file")
    folder = write_sequence(tmp_path / "b", np.ones((3, 1)), 1.0, 0.0)
    np.save(folder / "data.npy", np.array([[{}]] * 3, dtype=object), allow_pickle=True)
    check(folder, r"data\.npy: cannot be read as an array of numbers")


def test_numbers_that_yaml_takes_for_text(tmp_path):
    folder = write_sequence(tmp_path, np.ones((31, 1)), 10.0, 1.7e9)
    text = (folder / "meta.yml").read_text().replace("1700000000.0", "17e8")
    assert "17e8" in text
    (folder / "meta.yml").write_text(text)
    assert open_device(folder).start_s == 1.7e9


def test_wrong_questions(tmp_path):
    device = open_device(write_sequence(tmp_path / "a", np.ones((3, 1)), 1.0, 0.0))
    with pytest.raises(ValueError, match="interpolation: found 'cubic', expected nearest or linear"):
        device.at(np.array([0.0]), "cubic")
    with pytest.raises(ValueError, match="align: found 'middle', expected left, center, right"):
        open_device(write_spikes(tmp_path / "b", [np.ones(1)], 2.0)).at(np.array([0.0]), align="middle")
