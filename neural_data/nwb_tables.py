"""Tables and series of an NWB file, read column by column.

Comes in: a file and a location in it such as "units". Goes out: arrays and pandas tables.

In NWB 2 a table is a group with one dataset per column and their `id`; a column of lists has `<column>_index`, the end
of each row's list (hdmf-common, DynamicTable and VectorIndex). A series is a group with `data` and `timestamps`, or
`starting_time` and its rate. They are read with h5py, not pynwb: no class must be built for the extensions that a file
declares, and spikes of units that are left out are not read. A mistake is one line: file, location, found, expected.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd


def open_nwb(path: str | Path) -> h5py.File:
    """The file, open for reading. Raises FileNotFoundError, or ValueError where it is no HDF5 file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a session's .nwb file")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        line = " ".join(str(error).split())
        raise ValueError(
            f"{path}: is no HDF5 file, or a damaged one, expected a session's .nwb file ({line})"
        ) from None


def dataset(file: h5py.File, location: str) -> h5py.Dataset:
    """The dataset at a location. Raises ValueError saying what the group holds instead."""
    found = file.get(location)
    if isinstance(found, h5py.Dataset):
        return found
    there = location
    while there and not isinstance(file.get(there), h5py.Group):
        there = there.rpartition("/")[0]
    holds = ", ".join(file[there or "/"]) or "nothing"
    raise ValueError(f"{file.filename}: {location}: is not there; {there or 'the file'} holds {holds[:300]}")


def values(file: h5py.File, location: str) -> np.ndarray:
    """All values at a location; text as str objects. Raises ValueError where they are not there."""
    found = dataset(file, location)
    try:
        return np.asarray(found.asstr()[()] if h5py.check_string_dtype(found.dtype) else found[()])
    except (OSError, ValueError) as error:
        line = " ".join(str(error).split())
        raise ValueError(f"{file.filename}: {location}: cannot be read ({line})") from None


def numbers(file: h5py.File, location: str, axes: int = 1) -> np.ndarray:
    """All values at a location as they are stored. Raises ValueError unless they are numbers with so many axes."""
    found = values(file, location)
    if found.dtype.kind not in "biuf" or found.ndim != axes:
        found = f"{found.dtype} of shape {found.shape}"
        raise ValueError(f"{file.filename}: {location}: found {found}, expected numbers with {axes} axes")
    return found


def text(file: h5py.File, location: str) -> str:
    """A single text, or the first of a list of one; "" where it is not there."""
    if not isinstance(file.get(location), h5py.Dataset):
        return ""
    found = np.ravel(values(file, location))
    return str(found[0]) if len(found) else ""


def table(file: h5py.File, location: str, columns: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """Columns of a table, indexed by its `id`; of the optional ones those that are there.

    Raises ValueError for a column that is not there or does not have one value per row.
    """
    index = numbers(file, f"{location}/id")
    there = [*columns, *(name for name in optional if f"{location}/{name}" in file)]
    found = {name: values(file, f"{location}/{name}") for name in there}
    for name, column in found.items():
        if column.shape != (len(index),):
            raise ValueError(
                f"{file.filename}: {location}/{name}: found shape {column.shape}, expected ({len(index)},) as in id"
            )
    return pd.DataFrame(found, index=pd.Index(index, name="id"))


def lists(file: h5py.File, location: str, column: str) -> tuple[h5py.Dataset, np.ndarray, np.ndarray]:
    """A column of lists: the dataset of all of them, and int64 (rows,) where each row's begins and ends in it."""
    ends = numbers(file, f"{location}/{column}_index").astype(np.int64)
    flat = dataset(file, f"{location}/{column}")
    if len(ends) and (np.diff(ends, prepend=0).min() < 0 or ends[-1] > len(flat)):
        raise ValueError(
            f"{file.filename}: {location}/{column}_index: found ends up to {ends.max()}, expected rising ones "
            f"to {len(flat)}"
        )
    return flat, np.concatenate([[0], ends[:-1]]), ends


def series(file: h5py.File, location: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Timestamps in s, float64 (samples,), and data (samples, ...) of a series; None where it is not there."""
    if not isinstance(file.get(location), h5py.Group):
        return None
    data = values(file, f"{location}/data")
    return timestamps(file, location, len(data)), data


def timestamps(file: h5py.File, location: str, n: int) -> np.ndarray:
    """Seconds since the session began of the `n` samples of a series, float64 (n,)."""
    if f"{location}/starting_time" in file and f"{location}/timestamps" not in file:
        start = dataset(file, f"{location}/starting_time")
        return float(start[()]) + np.arange(n) / float(start.attrs["rate"])
    stamps = numbers(file, f"{location}/timestamps").astype(np.float64)
    if len(stamps) != n:
        raise ValueError(
            f"{file.filename}: {location}/timestamps: found {len(stamps)} of them, expected {n} as in data"
        )
    return stamps


def first_there(file: h5py.File, locations: Sequence[str]) -> Any:
    """The first of several locations that is in the file, or None."""
    return next((location for location in locations if location in file), None)
