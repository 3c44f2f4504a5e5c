"""One set of arrays, saved in every kind of file that `read_arrays` knows; MATLAB's as MATLAB itself writes them.

Comes in: arrays by name. Goes out: a path. Also: an example that has all of the layout, and a comparison.
"""

import struct
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from neural_data.recording import Recording

KINDS = ("npz", "folder", "mat5", "mat73", "struct5", "struct73", "h5", "h5_group", "zarr2", "zarr3", "zarr.zip")


def dynamic_arrays(stimuli: int = 4, repeats: int = 3, neurons: int = 2, time: int = 6, seed: int = 0) -> dict:
    """Videos, responses in time, behavior, pupil, and a column of each sort; one trial is short, one withheld, one
    absent."""
    rng = np.random.default_rng(seed)
    responses = rng.normal(size=(repeats, stimuli, neurons, time)).astype(np.float32)
    responses[0, 1, :, 4:] = np.nan
    responses[1, 2] = responses[2, 0] = np.nan
    withheld = np.zeros((repeats, stimuli), bool)
    withheld[1, 2] = True
    return {
        "videos": rng.integers(0, 256, (stimuli, time, 5, 4), np.uint8),
        "responses": responses,
        "sampling_rate_hz": np.array(30.0),
        "response_start_ms": np.array(16.5),
        "behavior": rng.normal(size=(repeats, stimuli, 3, time)),
        "behavior_names": np.array(["pupil", "d pupil/dt", "running"]),
        "pupil_center": rng.normal(size=(repeats, stimuli, 2, time)),
        "neuron_id": np.array([f"n{i}" for i in range(neurons)]),
        "area": np.array(["VISp", "VISäl", ""][:neurons]),
        "x_um": np.arange(neurons) + 0.5,
        "neurons_snr": np.arange(neurons) / 3,
        "tier": np.array(["train", "test", "oracle", "train"])[:stimuli],
        "stimulus_class": np.array(["natural", "gabor", "noise", "natural"])[:stimuli],
        "withheld": withheld,
        "trials_block": np.arange(repeats * stimuli).reshape(repeats, stimuli),
        "extra_splithalf_r_mean": rng.normal(size=(time, neurons)),
        "notes": np.array(["made by hand", "twice"]),
        "truth_rates": np.zeros((3, 2)),
    }


def save_as(kind: str, folder: Path, arrays: dict) -> Path:
    """Writes the arrays into a file or folder `mouse7.*` of that kind; skips where zarr is absent."""
    if kind == "npz":
        np.savez(folder / "mouse7.npz", **arrays)
        return folder / "mouse7.npz"
    if kind == "folder":
        return save_npy(folder / "mouse7", arrays)
    if kind.startswith("zarr"):
        return save_zarr(folder, arrays, kind)
    if kind.startswith("h5"):
        return save_hdf5(folder / "mouse7.h5", arrays, "session" if kind == "h5_group" else "/")
    path = folder / "mouse7.mat"
    variables = {"recording": arrays} if kind.startswith("struct") else arrays
    if kind.endswith("73"):
        save_mat73(path, variables)
    else:
        savemat(path, as_cells(variables), oned_as="row", do_compression=True)
    return path


def save_npy(folder: Path, arrays: dict) -> Path:
    folder.mkdir()
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    return folder


def save_hdf5(path: Path, arrays: dict, group: str = "/", chunks: bool | None = True) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            text = values.dtype.kind == "U"
            chunked = {"chunks": True, "compression": "gzip"} if chunks and values.ndim and not text else {}
            data = values.astype(object) if text else values
            dtype = h5py.string_dtype() if text else None
            file.require_group(group).create_dataset(name, data=data, dtype=dtype, **chunked)
    return path


def save_zarr(folder: Path, arrays: dict, kind: str = "zarr3") -> Path:
    zarr = pytest.importorskip("zarr")
    zipped = kind == "zarr.zip"
    path = folder / ("mouse7.zip" if zipped else "mouse7.zarr")
    store = zarr.storage.ZipStore(path, mode="w") if zipped else str(path)
    group = zarr.open_group(store, mode="w", zarr_format=2 if kind == "zarr2" else 3)
    for name, values in arrays.items():
        if values.dtype.kind == "U":
            group.create_array(name, shape=values.shape, dtype=str)[...] = values.astype(object)
        else:
            chunks = tuple(max(1, size // 2) for size in values.shape)
            group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks)[...] = values
    if zipped:
        store.close()
    return path


def as_cells(variables: dict) -> dict:
    """Text as cell arrays of character vectors, as MATLAB's users have it."""
    found = {}
    for name, values in variables.items():
        if isinstance(values, dict):
            found[name] = as_cells(values)
        elif values.dtype.kind == "U":
            found[name] = np.empty((values.size, 1), dtype=object)
            found[name][:, 0] = [str(text) for text in values]
        else:
            found[name] = values
    return found


def save_mat73(path: Path, variables: dict) -> None:
    """An HDF5 file as `save -v7.3` lays it out: a header of 512 bytes, reversed axes, chars as UTF-16, cells as
    references to `#refs#`, and a class for each."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            put_mat73(file, file, name, value)
    text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Nov 23 12:00:00 2026 HDF5 schema 1.00 ."
    with path.open("r+b") as raw:
        raw.write(text.ljust(116) + bytes(8) + struct.pack("<H", 0x0200) + b"IM")


def put_mat73(file: h5py.File, group: h5py.Group, name: str, value) -> h5py.Dataset | h5py.Group:
    if isinstance(value, dict):
        made = group.create_group(name)
        for field, inner in value.items():
            put_mat73(file, made, field, inner)
        kind = "struct"
    elif isinstance(value, str):
        made, kind = _characters73(group, name, value), "char"
    elif value.dtype.kind == "U":
        refs = file.require_group("#refs#")
        cells = [put_mat73(file, refs, f"r{len(refs)}", str(text)).ref for text in value]
        made = group.create_dataset(name, data=np.array(cells, dtype=h5py.ref_dtype)[None, :], dtype=h5py.ref_dtype)
        kind = "cell"
    else:
        made, kind = _numbers73(group, name, np.atleast_2d(value))
    made.attrs["MATLAB_class"] = np.bytes_(kind)
    return made


def _characters73(group: h5py.Group, name: str, text: str) -> h5py.Dataset:
    if not text:
        made = group.create_dataset(name, data=np.zeros(2, np.uint64))
        made.attrs["MATLAB_empty"] = np.int32(1)
    else:
        made = group.create_dataset(name, data=np.frombuffer(text.encode("utf-16-le"), "<u2")[:, None])
    made.attrs["MATLAB_int_decode"] = np.int32(2)
    return made


def _numbers73(group: h5py.Group, name: str, values: np.ndarray) -> tuple[h5py.Dataset, str]:
    while values.ndim > 2 and values.shape[-1] == 1:
        values = values[..., 0]
    kind = {"float64": "double", "float32": "single", "bool": "logical"}.get(values.dtype.name, values.dtype.name)
    stored = values.T.astype(np.uint8) if kind == "logical" else values.T
    chunked = {"chunks": True, "compression": "gzip", "compression_opts": 3} if values.size > 16 else {}
    made = group.create_dataset(name, data=stored, **chunked)
    if kind == "logical":
        made.attrs["MATLAB_int_decode"] = np.int32(1)
    return made, kind


def assert_same(one: Recording, other: Recording) -> None:
    """Stimuli, trials, responses, neurons and all that may be there are equal, to the last bit."""
    np.testing.assert_array_equal(np.asarray(one.stimuli), np.asarray(other.stimuli))
    assert one.stimuli.dtype == other.stimuli.dtype
    assert one.responses.dtype == other.responses.dtype
    for part in ("responses", "behavior", "pupil_center"):
        values, expected = getattr(one, part), getattr(other, part)
        assert (values is None) == (expected is None), part
        if values is not None:
            np.testing.assert_array_equal(np.asarray(values), np.asarray(expected), err_msg=part)
    for table in ("trials", "neurons"):
        columns = [column for column in getattr(other, table) if column != "frames"]
        assert sorted(column for column in getattr(one, table) if column != "frames") == sorted(columns)
        pd.testing.assert_frame_equal(getattr(one, table)[columns], getattr(other, table)[columns], check_dtype=True)
    np.testing.assert_array_equal(one.frames, other.frames)
    for fact in ("sampling_rate_hz", "response_start_ms", "behavior_names", "notes"):
        assert getattr(one, fact) == getattr(other, fact), fact
    assert sorted(one.statistics) == sorted(other.statistics)
    for name, values in other.statistics.items():
        np.testing.assert_array_equal(one.statistics[name], values)
