"""Named arrays of a zarr store (formats 2 and 3), a folder or a .zip.

Comes in: a path. Goes out: arrays by name, those at the root of the store or in the only group that it has. Large ones
stay on disk, the others are read. zarr is an optional dependency: `pip install 'murine[zarr]'`.
"""

import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neural_data.stored_array import StoredArray

# Arrays below this size are read at once: chunks would be decompressed again for every trial.
LARGE_BYTES = 2**28
GROUP_FILES = ("zarr.json", ".zgroup")


def is_zarr(path: Path) -> bool:
    """Whether a folder or zip file is a zarr store: whether its root says so."""
    if path.is_dir():
        return any((path / name).is_file() for name in (*GROUP_FILES, ".zarray"))
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name in GROUP_FILES for name in archive.namelist())


def read_zarr(path: Path, skip: str = "\0") -> dict[str, Any]:
    """The arrays in a store but those whose name begins with `skip`.

    Raises ValueError of one line naming the store and the array, or where zarr is not installed.
    """
    path, name = Path(path).absolute(), ""
    arrays = {}
    try:
        for name in _names(path):
            if not name.rpartition("/")[2].startswith(skip):
                arrays[name.rpartition("/")[2]] = _array(path, name)
    except ModuleNotFoundError:
        raise ValueError(f"{path}: reading zarr stores needs zarr: pip install 'murine[zarr]'") from None
    except (ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
        start = f"{path}: {name}" if name else f"{path}"
        raise ValueError(f"{start}: {' '.join(str(error).split())}") from None
    return arrays


def open_stored(path: Path, name: str = "") -> Any:
    """The group or array of that name in a store, opened for reading."""
    import zarr

    store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else str(path)
    return zarr.open(store, path=name, mode="r")


def _names(path: Path) -> list[str]:
    """Paths of the arrays: at the root, or in the only group."""
    import zarr

    group = open_stored(path)
    if not isinstance(group, zarr.Group):
        raise ValueError("is a single array, expected a group of arrays")
    groups, names = sorted(group.group_keys()), sorted(group.array_keys())
    if groups and (names or len(groups) > 1):
        raise ValueError(f"found the groups {', '.join(groups)}, expected arrays, or one group that holds them")
    return names or [f"{inner}/{name}" for inner in groups for name in sorted(group[inner].array_keys())]


def _array(path: Path, name: str) -> Any:
    array = open_stored(path, name)
    _refuse_pickle(array)
    kind = np.dtype(array.dtype).kind
    if kind in "UT":
        return np.array(np.asarray(array[...]).tolist(), dtype=np.str_)
    if kind not in "biufS":
        raise ValueError(f"found {array.dtype}, expected numbers or text")
    if array.nbytes >= LARGE_BYTES and kind != "S":
        return StoredArray(partial(open_stored, path, name), array.shape, array.dtype)
    return np.asarray(array[...])


def _refuse_pickle(array: Any) -> None:
    """zarr itself opens no array of pickled objects; its codecs could still be named as a filter of another."""
    codecs = (*(getattr(array.metadata, "filters", None) or ()), getattr(array.metadata, "compressor", None))
    if any("pickle" in str(getattr(codec, "codec_id", "")) for codec in codecs):
        raise ValueError("holds pickled objects, which could run code; expected numbers or text")
