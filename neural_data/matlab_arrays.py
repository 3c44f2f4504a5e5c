"""Named arrays of MATLAB's files up to version 7, read with scipy.

Comes in: a path. Goes out: arrays by name with the axes that MATLAB shows; char matrices and cell arrays of character
vectors as text, logicals as true and false. The file is read whole; nothing in it is executed.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from neural_data.hdf5_arrays import CELLSTR


def read_matlab(path: Path, skip: str = "\0") -> dict[str, np.ndarray]:
    """The arrays in a file but those whose name begins with `skip`; of a file that holds one struct, its fields.

    Raises ValueError of one line naming the file and the variable.
    """
    variables = {name: values for name, values in _load(path).items() if not name.startswith((skip, "__"))}
    if len(variables) == 1 and _is_struct(*variables.values()):
        (struct,) = variables.values()
        variables = {name: struct[name].flat[0] for name in struct.dtype.names if not name.startswith(skip)}
    arrays = {}
    for name, values in variables.items():
        try:
            arrays[name] = _array(values)
        except ValueError as error:
            raise ValueError(f"{path}: {_name(name, values)}: {error}") from None
    return arrays


def _load(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadWarning

    try:
        with warnings.catch_warnings():
            # Two variables of one name, or numbers with an imaginary part, of which one would be lost.
            warnings.simplefilter("error", MatReadWarning)
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            # mat_dtype: MATLAB stores doubles that are whole as small integers; their class says what they are.
            return loadmat(path, mat_dtype=True)
    except Exception as error:
        # scipy gives TypeError, struct.error, zlib.error, MemoryError and others where the bytes are no MATLAB file.
        line = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as a MATLAB file ({line or type(error).__name__})") from None


def _name(name: str, values: Any) -> str:
    """The name of a variable; that of an object is not where scipy looks for it."""
    named = isinstance(values, _matlab_types()[2]) and "s0" in (values.dtype.names or ())
    return bytes(values["s0"].flat[0]).decode("latin-1") if named else name


def _is_struct(values: Any) -> bool:
    kinds = _matlab_types()
    return isinstance(values, np.ndarray) and not isinstance(values, kinds) and values.dtype.names and values.size == 1


def _matlab_types() -> tuple[type, ...]:
    from scipy.io.matlab import MatlabFunction, MatlabObject, MatlabOpaque

    return MatlabFunction, MatlabObject, MatlabOpaque


def _array(values: Any) -> np.ndarray:
    expected = f"expected numbers, logicals or {CELLSTR}"
    if isinstance(values, _matlab_types()):
        raise ValueError(f"found a MATLAB object, function or string array, {expected}")
    if not isinstance(values, np.ndarray):
        raise ValueError("found a sparse matrix, expected a full one; convert it with full()")
    if values.dtype.names:
        raise ValueError("found a MATLAB struct beside arrays or in a struct, expected arrays, or one struct of arrays")
    if values.dtype.kind == "O":
        return np.array([_cell(cell) for cell in values.ravel(order="F")], dtype=np.str_)
    if values.dtype.kind == "U":
        # Rows of a char matrix are padded with blanks by MATLAB.
        return np.array([""]) if not values.size else np.char.rstrip(values, " ") if values.size > 1 else values
    if values.dtype.kind not in "biuf":
        raise ValueError(f"found {values.dtype}, {expected}")
    # Stimulus by stimulus, not pixel by pixel, as they are asked for.
    return np.ascontiguousarray(values)


def _cell(cell: Any) -> str:
    if not isinstance(cell, np.ndarray) or cell.dtype.kind != "U" or cell.size > 1:
        found = cell.dtype if isinstance(cell, np.ndarray) else type(cell).__name__
        raise ValueError(f"found a cell that holds {found}, expected {CELLSTR}")
    return str(cell.flat[0]) if cell.size else ""
