"""Files of torch's that hold weights, read as data whoever wrote them.

What comes in: a path, in torch's zip format or in the one before it. What goes out: dicts of tensors and plain values
on the CPU. Nothing in the file can run code: `torch.load(weights_only=True)`, and NumPy values, which training logs
often hold, are passed over unread, because a forged dtype makes NumPy follow addresses that the file made up.
"""

import re
import zipfile
from pathlib import Path
from typing import Any

import torch


class UnreadNumpyValue:
    """Stands where a file holds a NumPy scalar or array; NumPy never sees what the file says about it."""

    def __init__(self, *unread: Any) -> None:
        pass

    def __setstate__(self, unread: Any) -> None:
        pass


# By these names NumPy pickles dtypes, scalars and arrays, up to version 1 and since version 2.
NUMPY_NAMES = (
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)


def read_weights(path: Path) -> Any:
    """What a file of torch's holds, on the CPU, if it is nothing but data; tensors are read from disk when used.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no file of torch's, it is damaged, or it holds something that could run code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"file {str(path)!r} does not exist")
    allowed = torch.serialization.safe_globals([(UnreadNumpyValue, name) for name in NUMPY_NAMES])
    try:
        with allowed:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    # The bytes of a stranger's file can fail in any way that the reader's code has.
    except Exception as error:
        raise ValueError(f"{path} cannot be read as weights: {why_unreadable(error)}") from error


def why_unreadable(error: Exception) -> str:
    """One line out of torch's many, which otherwise advise to trust the file."""
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code:
        return f"it holds {code[1]}, which could run code; only tensors and plain values are read"
    if "weights_only" in str(error) or not str(error):
        return "it is not a file that torch.save wrote from tensors and plain values"
    return str(error).splitlines()[0]
