"""A labelled array (xarray.DataArray) as xarray 0.15 and pandas 0.25 pickled it, without either.

Comes in: dimensions, values, labels. Goes out: a `Call` that `pickle_writer.py` writes and `pickled_xarray.py` reads.

The layout is that of mouse-vision's packaged files, read in the sources of the releases: __slots__ of DataArray,
Variable and PandasIndexAdapter; Index.__reduce__ and MultiIndex.__reduce__; FrozenNDArray.
"""

from typing import Any

import numpy as np
import pandas as pd

from neural_data.pickle_writer import Call, Name, array, dtype

INDEX_CLASSES = {"i": ("numeric", "Int64Index"), "f": ("numeric", "Float64Index"), "O": ("base", "Index")}


def data_array(
    dims: tuple[str, ...],
    values: np.ndarray | Call,
    labels: dict[str, np.ndarray],
    units: dict[str, np.ndarray],
    extra: dict[str, tuple[tuple[str, ...], np.ndarray]] | None = None,
    **layout: Any,
) -> Call:
    """A DataArray with the dimension `units`.

    `labels`: of the other dimensions, (n,) each. `units`: levels of their MultiIndex, (units,) each. `extra`: further
    coordinates, their dimensions and values. `layout`: how the MultiIndex is, see `multi_index`.
    """
    coords = {dim: index_variable(dim, index(of_dim, dim)) for dim, of_dim in labels.items()}
    coords["units"] = index_variable("units", multi_index(units, **layout), "O")
    coords |= {name: variable(*parts) for name, parts in (extra or {}).items()}
    main = variable(dims, values)
    return slots("dataarray", "DataArray", _coords=coords, _name=None, _variable=main, _indexes=None, _file_obj=None)


def index(values: np.ndarray, name: str | None = None) -> Call:
    """A pandas index of whole numbers, numbers or objects."""
    module, kind = INDEX_CLASSES[values.dtype.kind]
    parts = {"data": values, "name": name}
    return Call("pandas.core.indexes.base", "_new_Index", (Name(f"pandas.core.indexes.{module}", kind), parts))


def multi_index(columns: dict[str, np.ndarray], codes: str = "codes", frozen: bool = True) -> Call:
    """A MultiIndex with a level per column; NaN and None have the code -1.

    `codes`: what the codes are called, "labels" before pandas 0.24. `frozen`: whether they are FrozenNDArrays.
    """
    kind = Name("pandas.core.indexes.frozen", "FrozenNDArray") if frozen else None
    levels, numbers = [], []
    for values in columns.values():
        number, level = pd.factorize(values, sort=True)
        levels.append(index(np.asarray(level.astype(object) if level.dtype.kind not in "if" else level)))
        numbers.append(array(number.astype(np.int32), kind))
    parts = {"levels": levels, codes: numbers, "sortorder": None, "names": list(columns)}
    return Call("pandas.core.indexes.base", "_new_Index", (Name("pandas.core.indexes.multi", "MultiIndex"), parts))


def slots(module: str, name: str, **state: Any) -> Call:
    """An object of xarray's with __slots__."""
    return Call(f"xarray.core.{module}", name, (), (None, state), new=True)


def index_variable(dim: str, wrapped: Call, kind: str = "i8") -> Call:
    """The coordinate that an index labels a dimension with."""
    adapter = slots("indexing", "PandasIndexAdapter", array=wrapped, _dtype=dtype(np.dtype(kind)))
    return slots("variable", "IndexVariable", _dims=(dim,), _data=adapter, _attrs=None, _encoding=None)


def variable(dims: tuple[str, ...], values: np.ndarray | Call) -> Call:
    """Values with a name for each axis."""
    return slots("variable", "Variable", _dims=dims, _data=values, _attrs={}, _encoding=None)
