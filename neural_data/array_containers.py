"""Named arrays of whatever file or folder they lie in.

Comes in: a path: `.npz`, a folder of `.npy` files, `.mat`, HDF5, a zarr store. Goes out: `NamedArrays`. What a file is
is found by looking at it, not by its name. Nothing is unpickled: arrays of Python objects are refused.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from neural_data.hdf5_arrays import read_hdf5
from neural_data.matlab_arrays import read_matlab
from neural_data.tables import POSITION_COLUMNS, TEXT_COLUMNS
from neural_data.zarr_arrays import is_zarr, read_zarr

TRUTH_PREFIX = "truth_"
NEURON_FILE, NOTES_FILE = "neurons.csv", "notes.txt"
KINDS = "an .npz, .mat, .h5 or .zarr file or a folder of .npy files"


@dataclass(frozen=True)
class NamedArrays:
    """`arrays`: numpy arrays, memory maps or `StoredArray`s by name. `table`: the columns of `neurons.csv`, by name.

    `notes`: lines of `notes.txt`. `matlab`: whether the arrays have the axes of MATLAB, which has at least two, and
    none of length 1 at the end.
    """

    arrays: dict[str, Any]
    table: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()
    matlab: bool = False


def load_arrays(path: Path) -> NamedArrays:
    """All arrays at a path except `truth_*`.

    Raises FileNotFoundError, or ValueError naming the file, the array, what was found and what was expected.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected {KINDS}")
    if is_zarr(path):
        return NamedArrays(read_zarr(path, TRUTH_PREFIX), {})
    if path.is_dir():
        return _npy_folder(path)
    if h5py.is_hdf5(path):
        arrays, matlab = read_hdf5(path, TRUTH_PREFIX)
        return NamedArrays(arrays, {}, matlab=matlab)
    if zipfile.is_zipfile(path):
        return NamedArrays(_npz(path), {})
    if path.suffix == ".mat":
        return NamedArrays(read_matlab(path, TRUTH_PREFIX), {}, matlab=True)
    what = "HDF5" if path.suffix in (".h5", ".hdf5") else path.suffix or ".npz"
    raise ValueError(f"{path}: is no {what} file that can be read; expected {KINDS}")


def _npz(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    with np.load(path, allow_pickle=False) as archive:
        for key in archive.files:
            if key.startswith(TRUTH_PREFIX):
                continue
            try:
                arrays[key] = archive[key]
            except (ValueError, zipfile.BadZipFile, EOFError) as error:
                raise ValueError(f"{path}: {key}: cannot be read as numbers or text ({_line(error)})") from None
            if not isinstance(arrays[key], np.ndarray):
                raise ValueError(f"{path}: {key}: found a file that is no array, expected .npy members only")
    return arrays


def _npy_folder(path: Path) -> NamedArrays:
    arrays = {}
    for file in sorted(path.glob("*.npy")):
        if file.stem.startswith((TRUTH_PREFIX, ".")):
            continue
        try:
            arrays[file.stem] = _npy(file)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{file}: cannot be read as numbers or text ({_line(error)})") from None
    table = _neuron_file(path / NEURON_FILE) if (path / NEURON_FILE).is_file() else {}
    for column in table:
        if column in arrays or f"neurons_{column}" in arrays:
            array = column if column in arrays else f"neurons_{column}"
            raise ValueError(f"{path / NEURON_FILE}: {column}: found also {array}.npy, expected one of the two")
    notes = (path / NOTES_FILE).read_text(encoding="utf-8") if (path / NOTES_FILE).is_file() else ""
    return NamedArrays(arrays, table, tuple(notes.splitlines()))


def _npy(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError:
        # An array without elements cannot be mapped, but read.
        return np.load(file, allow_pickle=False)


def _neuron_file(table: Path) -> dict[str, np.ndarray]:
    try:
        frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{table}: cannot be read as a table with a header ({_line(error)})") from None
    return {column: _csv_column(table, column, frame[column]) for column in frame.columns}


def _csv_column(table: Path, column: str, texts: pd.Series) -> np.ndarray:
    """Names as text, positions as numbers, any other column as numbers where all of it are; "" is NaN."""
    if column not in TEXT_COLUMNS:
        try:
            # Python reads each number as exactly as it was written.
            return np.array([float(text or "nan") for text in texts])
        except ValueError:
            pass
    if column not in POSITION_COLUMNS:
        return texts.to_numpy(dtype=object).astype(np.str_)
    wrong = next(text for text in texts if text and not _is_number(text))
    raise ValueError(f"{table}: {column}: found {wrong!r}, expected numbers in µm")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
