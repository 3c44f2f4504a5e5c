"""A labelled array (xarray.DataArray) out of a pickle, without xarray, and of releases that no current one can load.

Comes in: what `restricted_pickle.read_pickle` made of it. Goes out: `LabelledArray`: dimensions, values (a memory map
into the pickle where they are large) and coordinates as plain arrays.

The layouts, read in the sources of the releases: numpy arrays and dtypes pickle as `_reconstruct` and `dtype` with a
state (numpy/core/src/multiarray/methods.c); indexes as `_new_Index(class, {...})`, where a MultiIndex has `levels` and
`codes`, called `labels` before pandas 0.24, and codes are `FrozenNDArray`s up to 0.25; text has an array class of its
own from pandas 3 on; a DataArray has `_variable`, `_coords` and `_name`, a Variable `_dims` and `_data` (xarray 0.15 to
2026), and an index behind a coordinate is wrapped by `PandasIndexAdapter`, called `PandasIndexingAdapter` since 0.18.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from neural_data.restricted_pickle import BytesInFile, Name, Record

_NUMPY = {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")}
_ARRAYS = {"numpy.ndarray", "pandas.core.indexes.frozen.FrozenNDArray"}
_INDEXES = {
    *(f"pandas.core.indexes.numeric.{kind}Index" for kind in ("Int64", "UInt64", "Float64")),
    *("pandas.core.indexes.base.Index", "pandas.core.indexes.range.RangeIndex", "pandas.core.indexes.multi.MultiIndex"),
    *("pandas.Index", "pandas.RangeIndex", "pandas.MultiIndex"),
}
_TEXT = {
    *("pandas._libs.arrays.__pyx_unpickle_NDArrayBacked", "pandas.arrays.StringArray", "pandas.StringDtype"),
    *("pandas.core.arrays.string_.StringArray", "pandas.core.arrays.string_.StringDtype"),
}
_XARRAY = {
    *("xarray.core.dataarray.DataArray", "xarray.core.variable.Variable", "xarray.core.variable.IndexVariable"),
    *("xarray.core.indexing.PandasIndexAdapter", "xarray.core.indexing.PandasIndexingAdapter"),
    *("xarray.core.indexing.PandasMultiIndexingAdapter", "xarray.core.indexes.PandasIndex"),
    "xarray.core.indexes.PandasMultiIndex",
}
_OTHER = {"numpy.dtype", "pandas.core.indexes.base._new_Index", "pandas.core.indexes.frozen.FrozenList"}
# What a pickle of labelled arrays may name; the last two are how plain dictionaries and bytes were once written.
NAMES = frozenset(
    _NUMPY | _ARRAYS | _INDEXES | _TEXT | _XARRAY | _OTHER | {"collections.OrderedDict", "_codecs.encode"}
)

_CODES = {"b1", "O", "O8", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8"}


@dataclass(frozen=True)
class LabelledArray:
    """`values` with one name in `dims` per axis; `coordinates`: dimensions and values by name.

    The levels of a MultiIndex are coordinates of their own along its dimension.
    """

    dims: tuple[str, ...]
    values: np.ndarray
    coordinates: dict[str, tuple[tuple[str, ...], np.ndarray]]


def labelled_array(value: Any) -> LabelledArray:
    """The `LabelledArray` in the record of a DataArray. Raises ValueError where the layout is none of those above."""
    if not (isinstance(value, Record) and value.name == "xarray.core.dataarray.DataArray"):
        raise ValueError(f"found {_kind(value)}, expected an xarray.DataArray")
    state = _slots(value)
    dims, values = _variable(state.get("_variable"))
    coordinates = {}
    for name, variable in _expected(state.get("_coords"), dict, "_coords").items():
        coordinates |= _coordinate(name, variable)
    strange = [name for name in (*dims, *coordinates) if not re.fullmatch(r"\w{1,100}", name)]
    if strange:
        # Names become columns and parts of file names.
        raise ValueError(f"found a coordinate called {strange[0][:100]!r}, expected letters, digits and underscores")
    sizes = dict(zip(dims, values.shape, strict=True))
    for name, (along, labels) in coordinates.items():
        expected = tuple(sizes.get(dim) for dim in along)
        if labels.shape != expected:
            raise ValueError(
                f"coordinate {name} has shape {labels.shape}, expected {expected} along {', '.join(along)}"
            )
    return LabelledArray(dims, values, coordinates)


def plain_array(value: Any) -> np.ndarray:
    """The array in the record of a numpy array; a memory map, read-only, where its bytes stayed in the file."""
    if isinstance(value, Record) and value.name in _TEXT:
        return _text_array(value)
    if not (isinstance(value, Record) and value.name.endswith("_reconstruct")):
        raise ValueError(f"found {_kind(value)}, expected an array")
    built = value.args[0] if value.args else None
    if not (isinstance(built, Name) and built.name in _ARRAYS):
        raise ValueError(f"found an array of class {_kind(built)}, expected numpy.ndarray")
    _, shape, dtype, fortran, data = _expected(value.state, tuple, "the state of an array", 5)
    dtype, order = _dtype(dtype), "F" if fortran is True else "C"
    if not (isinstance(shape, tuple) and all(isinstance(size, int) and size >= 0 for size in shape)):
        raise ValueError(f"found an array of shape {str(shape)[:80]}")
    if dtype.kind == "O":
        return _objects(data, shape)
    if not isinstance(data, bytes | BytesInFile) or len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array of shape {shape} and {dtype} does not come with its bytes")
    if isinstance(data, BytesInFile):
        return np.memmap(data.path, dtype, "r", data.start, shape, order)
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _coordinate(name: Any, variable: Any) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    state = _slots(variable)
    dims, data = _dims(state), state.get("_data")
    if isinstance(data, Record) and data.name.startswith("xarray.core.indexing."):
        index = _slots(data).get("array")
        if _index_class(index).endswith("MultiIndex"):
            return {level: (dims, values) for level, values in _levels(index).items()}
        return {str(name): (dims, _index_values(index))}
    return {str(name): (dims, plain_array(data))}


def _variable(variable: Any) -> tuple[tuple[str, ...], np.ndarray]:
    state = _slots(variable)
    dims, values = _dims(state), plain_array(state.get("_data"))
    if len(dims) != values.ndim:
        raise ValueError(f"found {values.ndim} axes with the dimensions {', '.join(dims)}")
    return dims, values


def _dims(state: dict[str, Any]) -> tuple[str, ...]:
    dims = state.get("_dims")
    if not (isinstance(dims, tuple) and all(isinstance(dim, str) and dim.isprintable() for dim in dims)):
        raise ValueError(f"found {_kind(dims)} as dimensions, expected their names")
    return dims


def _slots(value: Any) -> dict[str, Any]:
    """The attributes of an object with __slots__, whose state is (None, {...}), or of another, whose state is {...}."""
    state = value.state if isinstance(value, Record) else None
    if isinstance(state, tuple) and len(state) == 2:
        state = state[1]
    return _expected(state, dict, f"the state of {_kind(value)}")


def _index_class(index: Any) -> str:
    """The class of the index that the record of `_new_Index` is of."""
    if isinstance(index, Record) and index.name.endswith("_new_Index") and len(index.args) == 2:
        built, parts = index.args
        if isinstance(built, Name) and built.name in _INDEXES and isinstance(parts, dict):
            return built.name
    raise ValueError(f"found {_kind(index)}, expected a pandas index")


def _index_values(index: Any) -> np.ndarray:
    kind, parts = _index_class(index), index.args[1]
    if kind.endswith("RangeIndex"):
        limits = [parts.get(name) for name in ("start", "stop", "step")]
        if not all(isinstance(limit, int) for limit in limits) or not limits[2]:
            raise ValueError("found a RangeIndex without start, stop and step")
        if len(range(*limits)) > 10**9:
            raise ValueError(f"found a RangeIndex of {len(range(*limits))} items")
        return np.arange(*limits)
    return plain_array(parts.get("data"))


def _levels(index: Record) -> dict[str, np.ndarray]:
    """The values of each level of a MultiIndex, NaN or None where the code is -1, which stands for missing."""
    parts = index.args[1]
    codes = parts.get("codes", parts.get("labels"))
    columns = [_listed(parts.get("levels")), _listed(codes), _listed(parts.get("names"))]
    if len({len(column) for column in columns}) != 1 or not all(isinstance(name, str) for name in columns[2]):
        raise ValueError("found a MultiIndex whose levels, codes and names do not belong together")
    return {
        name: _taken(name, _index_values(level), plain_array(code)) for level, code, name in zip(*columns, strict=True)
    }


def _taken(name: str, level: np.ndarray, codes: np.ndarray) -> np.ndarray:
    if codes.dtype.kind not in "iu" or (codes.size and not -1 <= codes.min() <= codes.max() < len(level)):
        raise ValueError(f"level {name} has codes that point outside of its {len(level)} values")
    missing = codes < 0
    if not missing.any():
        return level[codes]
    if level.dtype.kind in "biuf":
        level = np.append(level.astype(float), np.nan)
    else:
        level = np.append(level.astype(object), None)
    return level[codes]


def _listed(value: Any) -> list[Any]:
    """The items of a list, a tuple or pandas' FrozenList."""
    if isinstance(value, Record) and value.name.endswith("FrozenList") and len(value.args) == 1:
        value = value.args[0]
    return list(_expected(value, (list, tuple), "a part of a MultiIndex"))


def _dtype(value: Any) -> np.dtype:
    """The dtype in its record, from its text alone; records and subarrays are refused."""
    code = value.args[0] if isinstance(value, Record) and value.name == "numpy.dtype" and value.args else None
    if not isinstance(code, str) or not (code in _CODES or re.fullmatch("[SU][0-9]{1,6}", code)):
        raise ValueError(f"found the dtype {str(code)[:80]!r}, expected numbers, text or objects")
    dtype, state = np.dtype(code.replace("O8", "O")), value.state
    if state is None:
        return dtype
    # (version, byte order, subarray, names, fields, ...): only the order is of use for a plain dtype.
    plain = isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None)
    if not plain or state[1] not in ("<", ">", "|", "="):
        raise ValueError(f"found the dtype {code} with an unknown state")
    return dtype.newbyteorder(state[1])


def _objects(data: Any, shape: tuple[int, ...]) -> np.ndarray:
    items = _expected(data, list, "the items of an array")
    if len(items) != math.prod(shape):
        raise ValueError(f"an array of shape {shape} comes with {len(items)} items")
    values = np.empty(len(items), object)
    values[:] = [_scalar(item) for item in items]
    # Objects are listed row by row whatever the order in memory was.
    return values.reshape(shape)


def _scalar(value: Any) -> Any:
    if isinstance(value, Record) and value.name.endswith("multiarray.scalar") and len(value.args) == 2:
        dtype, data = _dtype(value.args[0]), value.args[1]
        if isinstance(data, Record) and data.name == "_codecs.encode" and data.args:
            data = _expected(data.args[0], str, "the bytes of a number").encode("latin1")
        if not isinstance(data, bytes) or dtype.kind == "O" or len(data) != dtype.itemsize:
            raise ValueError(f"found a number of {dtype} without its bytes")
        return np.frombuffer(data, dtype)[0].item()
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"found {_kind(value)} in an array, expected numbers and text")


def _text_array(value: Record) -> np.ndarray:
    """The array behind pandas' StringArray, whose state is (dtype, array) or holds it by the name `_ndarray`."""
    state = value.state
    parts = state if isinstance(state, tuple) else state.values() if isinstance(state, dict) else ()
    for part in parts:
        if isinstance(part, Record) and part.name.endswith("_reconstruct"):
            return plain_array(part)
    raise ValueError(f"found {value.name} without its array")


def _expected(value: Any, kind: Any, what: str, length: int | None = None) -> Any:
    if not isinstance(value, kind) or (length is not None and len(value) != length):
        raise ValueError(f"found {_kind(value)} as {what}")
    return value


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Record | Name) else type(value).__name__
