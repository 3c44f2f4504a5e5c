"""Pickles written operation by operation, in the layouts of releases that no current Python can install.

`pickled(value)` writes plain data, numpy arrays and `Call`s; `packaged(...)` is the dictionary of mouse-vision's files
as xarray 0.15 and pandas 0.25 pickled it (read in their sources: __slots__ of DataArray, Variable and
PandasIndexAdapter; Index.__reduce__ and MultiIndex.__reduce__; FrozenNDArray).
"""

import pickle
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd


@dataclass
class Name:
    module: str
    name: str


@dataclass
class Call:
    """`module.name(*args)`, or with `new` the object made by `cls.__new__`; then given `state`."""

    module: str
    name: str
    args: tuple = ()
    state: Any = None
    new: bool = False


def pickled(value: Any, protocol: int = 4, framed: bool = False) -> bytes:
    """The pickle of a value. `framed`: all in one frame, as Python before 3.7 wrote long bytes, too."""
    body = _operations(value, protocol) + pickle.STOP
    if framed:
        body = pickle.FRAME + struct.pack("<Q", len(body)) + body
    return pickle.PROTO + bytes([protocol]) + body


def _operations(value: Any, protocol: int) -> bytes:
    def many(items: Any) -> bytes:
        return pickle.MARK + b"".join(_operations(item, protocol) for item in items)

    if isinstance(value, np.ndarray):
        return _operations(array(value), protocol)
    if isinstance(value, Name):
        if protocol < 4:
            return pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()
        return _operations(value.module, protocol) + _operations(value.name, protocol) + pickle.STACK_GLOBAL
    if isinstance(value, Call):
        called = _operations(Name(value.module, value.name), protocol) + _operations(value.args, protocol)
        made = called + (pickle.NEWOBJ if value.new else pickle.REDUCE)
        return made if value.state is None else made + _operations(value.state, protocol) + pickle.BUILD
    if isinstance(value, dict):
        return pickle.EMPTY_DICT + many(part for item in value.items() for part in item) + pickle.SETITEMS
    if isinstance(value, list):
        return pickle.EMPTY_LIST + many(value) + pickle.APPENDS
    if isinstance(value, tuple):
        return many(value) + pickle.TUPLE
    if isinstance(value, bytes):
        return (pickle.BINBYTES8 + struct.pack("<Q", len(value)) if protocol > 3 else
                pickle.BINBYTES + struct.pack("<I", len(value))) + value  # fmt: skip
    # Numbers, text, None and booleans as Python writes them, without its frame and its end.
    return (
        pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"") if isinstance(value, str) else pickle.dumps(value, 2)[2:-1]
    )


def dtype(kind: np.dtype) -> Call:
    flags = 63 if kind.kind == "O" else 0
    order = "|" if kind.itemsize == 1 or kind.kind == "O" else kind.str[0]
    code = "O8" if kind.kind == "O" else kind.str[1:]
    sizes = (kind.itemsize, 4, 8) if kind.kind == "U" else (-1, -1, flags)
    return Call("numpy", "dtype", (code, 0, 1), (3, order, None, None, None, *sizes))


def array(values: np.ndarray, subclass: Name | None = None) -> Call:
    fortran = values.flags.f_contiguous and not values.flags.c_contiguous
    data = values.ravel().tolist() if values.dtype.kind == "O" else values.tobytes("F" if fortran else "C")
    args = (subclass or Name("numpy", "ndarray"), (0,), b"b")
    return Call("numpy.core.multiarray", "_reconstruct", args, (1, values.shape, dtype(values.dtype), fortran, data))


def index(values: np.ndarray, name: str | None = None) -> Call:
    kinds = {"i": ("numeric", "Int64Index"), "f": ("numeric", "Float64Index"), "O": ("base", "Index")}
    module, kind = kinds[values.dtype.kind]
    parts = {"data": values, "name": name}
    return Call("pandas.core.indexes.base", "_new_Index", (Name(f"pandas.core.indexes.{module}", kind), parts))


def multi_index(columns: dict[str, np.ndarray], codes: str = "codes", frozen: bool = True) -> Call:
    kind = Name("pandas.core.indexes.frozen", "FrozenNDArray") if frozen else None
    levels, numbers = [], []
    for values in columns.values():
        number, level = pd.factorize(values, sort=True)
        levels.append(index(np.asarray(level.astype(object) if level.dtype.kind not in "if" else level)))
        numbers.append(array(number.astype(np.int16), kind))
    parts = {"levels": levels, codes: numbers, "sortorder": None, "names": list(columns)}
    return Call("pandas.core.indexes.base", "_new_Index", (Name("pandas.core.indexes.multi", "MultiIndex"), parts))


def slots(module: str, name: str, **state: Any) -> Call:
    return Call(f"xarray.core.{module}", name, (), (None, state), new=True)


def index_variable(dim: str, wrapped: Call, kind: str = "i8") -> Call:
    adapter = slots("indexing", "PandasIndexAdapter", array=wrapped, _dtype=dtype(np.dtype(kind)))
    return slots("variable", "IndexVariable", _dims=(dim,), _data=adapter, _attrs=None, _encoding=None)


def variable(dims: tuple[str, ...], values: np.ndarray) -> Call:
    return slots("variable", "Variable", _dims=dims, _data=values, _attrs={}, _encoding=None)


def data_array(
    dims: tuple[str, ...],
    values: np.ndarray,
    labels: dict[str, np.ndarray],
    units: dict[str, np.ndarray],
    extra: dict[str, tuple[tuple[str, ...], np.ndarray]] | None = None,
    **layout: Any,
) -> Call:
    coords = {dim: index_variable(dim, index(of_dim, dim)) for dim, of_dim in labels.items()}
    coords["units"] = index_variable("units", multi_index(units, **layout), "O")
    coords |= {name: variable(*parts) for name, parts in (extra or {}).items()}
    main = variable(dims, values)
    return slots("dataarray", "DataArray", _coords=coords, _name=None, _variable=main, _indexes=None, _file_obj=None)


NEUROPIXELS_DIMS = ("trials", "frame_id", "time_relative_to_stimulus_onset", "units")


def packaged(seed: int = 0, repeats: int = 4, images: int = 6, bins: int = 5, **changed: Any) -> dict[str, Any]:
    """A small Neuropixels file: two animals in two areas, the second without its last repeats. `values` is added for
    tests to compare with; the pickle is of the others."""
    rng = np.random.default_rng(seed)
    units = {
        "unit_id": np.array([951, 952, 953, 954, 955]),
        "specimen_id": np.array([71, 71, 71, 82, 82]),
        "visual_area": np.array(["VISp", "VISp", "VISl", "VISp", "VISl"], object),
        "image_selectivity_ns": rng.uniform(size=5).round(3),
        "run_pval_ns": np.array([0.5, 0.01, np.nan, 0.2, 0.9]),
    }
    values = rng.poisson(0.4, (repeats, images, bins, 5)) / 0.01
    values[-1, :, :, 3:] = np.nan
    labels = {
        "trials": np.arange(repeats) + 1,
        "frame_id": np.arange(images),
        "time_relative_to_stimulus_onset": 0.005 + 0.01 * np.arange(bins),
    }
    along = ("time_relative_to_stimulus_onset", "units")
    reliability = rng.uniform(-0.2, 1, (bins, 5))
    extra = {"splithalf_r_mean": (along, reliability), "splithalf_r_std": (along, 0.1 * reliability)}
    stimuli = rng.integers(0, 256, (images, 8, 9)).astype(np.uint8)
    data = data_array(NEUROPIXELS_DIMS, values, labels, units, extra, **changed)
    return {"stimuli": stimuli, "neural_data": data, "values": values, "reliability": reliability, "units": units}


def write_packaged(path: Any, package: dict[str, Any], **how: Any) -> Any:
    path.write_bytes(pickled({name: package[name] for name in ("stimuli", "neural_data")}, **how))
    return path
