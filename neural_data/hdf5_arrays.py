"""Named arrays of an HDF5 file, and of MATLAB's files since version 7.3, which are HDF5 inside.

Comes in: a path. Goes out: arrays by name, those at the root of the file or in the only group that it has; numbers,
text, true and false. Large ones stay on disk, the others are read.

A MATLAB file marks each array with `MATLAB_class`. MATLAB stores the last axis first, so that HDF5 shows all axes the
other way round: they are turned back. Text is stored as UTF-16 numbers, cell arrays as references to what is in them.
(Layout: as MATLAB R2006b and later write it with `save -v7.3`; it is not documented, but has not changed since.)
"""

from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from neural_data.stored_array import StoredArray

# Arrays below this size are read at once: compressed ones would be decompressed again for every trial.
LARGE_BYTES = 2**28
CHUNK_CACHE_BYTES = 2**26
SPARSE = "MATLAB_sparse"
HIDDEN = "#"  # MATLAB's own groups, `#refs#` and `#subsystem#`
NUMERIC = {"double", "single", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
CELLSTR = "a cell array of character vectors; convert a string array with cellstr()"


def read_hdf5(path: Path, skip: str = "\0") -> tuple[dict[str, Any], bool]:
    """The arrays in a file but those whose name begins with `skip`, and whether MATLAB wrote them.

    Raises ValueError of one line naming the file and the array.
    """
    path, name, arrays, matlab = Path(path).absolute(), "", {}, False
    try:
        with h5py.File(path, "r") as file:
            group = _group(path, file)
            for name in group:
                if name.startswith((skip, HIDDEN)):
                    continue
                item = group.get(name)
                matlab = matlab or (item is not None and "MATLAB_class" in item.attrs)
                arrays[name] = _array(path, item)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        start = f"{path}: {name}" if name else f"{path}"
        raise ValueError(f"{start}: {' '.join(str(error).split())}") from None
    return arrays, matlab


def open_dataset(path: Path, name: str) -> h5py.Dataset:
    """A dataset in a file that stays open as long as the dataset is in use."""
    return h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)[name]


def _group(path: Path, file: h5py.File) -> h5py.Group:
    """Where the arrays are: the root, or the only group in it, such as a struct of MATLAB."""
    items = {name: file.get(name) for name in file if not name.startswith(HIDDEN)}
    groups = [name for name, item in items.items() if isinstance(item, h5py.Group) and SPARSE not in item.attrs]
    if len(items) == 1 and groups:
        return file[groups[0]]
    if groups and len(groups) == len(items):
        raise ValueError(f"found the groups {', '.join(groups)}, expected arrays, or one group that holds them")
    return file


def _array(path: Path, item: Any) -> Any:
    if item is None:
        raise ValueError("is a link to something that is not there")
    matlab = item.attrs.get("MATLAB_class")
    if isinstance(item, h5py.Group):
        raise ValueError(_what_group(item))
    if item.shape is None:
        raise ValueError("holds nothing, expected an array")
    if matlab is not None:
        return _matlab(path, item, bytes(matlab).decode("latin-1"))
    if h5py.check_string_dtype(item.dtype) is not None:
        return np.array(item.asstr()[()], dtype=np.str_)
    if item.dtype.kind not in "biuf":
        raise ValueError(f"found HDF5 type {_type(item)}, expected numbers or text")
    return _numbers(path, item, transposed=False)


def _what_group(item: h5py.Group) -> str:
    if SPARSE in item.attrs:
        return "found a sparse matrix, expected a full one; convert it with full()"
    what = "a MATLAB struct" if "MATLAB_class" in item.attrs else "a group"
    return f"found {what} beside arrays, expected arrays, or one {what.split()[-1]} that holds all"


def _type(item: h5py.Dataset) -> str:
    if h5py.check_ref_dtype(item.dtype) is not None:
        return "reference"
    return "compound" if item.dtype.names else "list of varying length" if item.dtype.kind == "O" else str(item.dtype)


def _numbers(path: Path, item: h5py.Dataset, transposed: bool) -> np.ndarray | StoredArray:
    if item.size * item.dtype.itemsize >= LARGE_BYTES:
        return StoredArray(partial(open_dataset, path, item.name), item.shape, item.dtype, transposed)
    values = item[()]
    return np.ascontiguousarray(values.T) if transposed else values


def _matlab(path: Path, item: h5py.Dataset, kind: str) -> Any:
    if "MATLAB_object_decode" in item.attrs or kind in ("string", "function_handle"):
        raise ValueError(f"found a MATLAB {kind} object, expected numbers, logicals or {CELLSTR}")
    if kind == "char":
        return _characters(item)
    if kind == "cell":
        return np.array([_cell(item, reference) for reference in _elements(item)], dtype=np.str_)
    if "MATLAB_empty" in item.attrs:
        return np.empty(tuple(int(size) for size in item[()]))
    if kind == "logical":
        return item[()].T.astype(bool)
    if kind not in NUMERIC or item.dtype.kind not in "iuf":
        raise ValueError(f"found MATLAB class {kind} as {_type(item)}, expected numbers, logicals or {CELLSTR}")
    return _numbers(path, item, transposed=True)


def _elements(item: h5py.Dataset) -> np.ndarray:
    return np.array([], dtype=object) if "MATLAB_empty" in item.attrs else item[()].T.ravel(order="F")


def _cell(item: h5py.Dataset, reference: Any) -> str:
    inside = item.file[reference] if isinstance(reference, h5py.Reference) and reference else None
    kind = bytes(inside.attrs.get("MATLAB_class", b"")).decode("latin-1") if inside is not None else "nothing"
    if kind != "char":
        raise ValueError(f"found a cell that holds {kind or 'no MATLAB array'}, expected {CELLSTR}")
    texts = _characters(inside)
    if len(texts) != 1:
        raise ValueError(f"found a cell with {len(texts)} lines of text, expected {CELLSTR}")
    return str(texts[0])


def _characters(item: h5py.Dataset) -> np.ndarray:
    """One text per row of a char matrix; rows of a matrix are padded with blanks by MATLAB, a single one is not."""
    if "MATLAB_empty" in item.attrs:
        return np.array([""])
    rows = np.atleast_2d(item[()].T).astype("<u2")
    texts = [np.ascontiguousarray(row).tobytes().decode("utf-16-le") for row in rows]
    return np.array([text.rstrip(" ") for text in texts] if len(texts) > 1 else texts, dtype=np.str_)
