"""Pickles written operation by operation, of objects whose classes need not be installed.

Comes in: plain data, numpy arrays, and `Call`s, which say how an object is to be made. Goes out: the bytes of a pickle,
part by part, so that what is large need not be in memory. It is the counterpart of `restricted_pickle.py`, which reads
the calls back as data.
"""

import pickle
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Name:
    """A class or function, by its module and name."""

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


@dataclass
class LongBytes:
    """`size` bytes that come in parts when they are written."""

    size: int
    parts: Iterable[bytes]


def pickled(value: Any, protocol: int = 4, framed: bool = False) -> bytes:
    """The pickle of a value. `framed`: all in one frame, as Python before 3.7 wrote long bytes, too."""
    body = b"".join(_operations(value, protocol)) + pickle.STOP
    if framed:
        body = pickle.FRAME + struct.pack("<Q", len(body)) + body
    return pickle.PROTO + bytes([protocol]) + body


def pickle_parts(value: Any, protocol: int = 4) -> Iterator[bytes]:
    """The pickle of a value, without a frame, part by part."""
    yield pickle.PROTO + bytes([protocol])
    yield from _operations(value, protocol)
    yield pickle.STOP


def dtype(kind: np.dtype) -> Call:
    """How numpy pickles a dtype of numbers, text or objects."""
    flags = 63 if kind.kind == "O" else 0
    order = "|" if kind.itemsize == 1 or kind.kind == "O" else kind.str[0]
    code = "O8" if kind.kind == "O" else kind.str[1:]
    sizes = (kind.itemsize, 4, 8) if kind.kind == "U" else (-1, -1, flags)
    return Call("numpy", "dtype", (code, 0, 1), (3, order, None, None, None, *sizes))


def array(values: np.ndarray, subclass: Name | None = None) -> Call:
    """How numpy pickles an array (numpy/core/src/multiarray/methods.c)."""
    fortran = values.flags.f_contiguous and not values.flags.c_contiguous
    data = values.ravel().tolist() if values.dtype.kind == "O" else values.tobytes("F" if fortran else "C")
    return _array(values.shape, values.dtype, fortran, data, subclass)


def streamed_array(shape: tuple[int, ...], kind: np.dtype, parts: Iterable[np.ndarray]) -> Call:
    """The same of an array of numbers whose parts, stretches of its first axis, are made when they are written."""
    size = int(np.prod(shape)) * kind.itemsize
    return _array(shape, kind, False, LongBytes(size, (np.ascontiguousarray(part, kind).tobytes() for part in parts)))


def _array(shape: tuple[int, ...], kind: np.dtype, fortran: bool, data: Any, subclass: Name | None = None) -> Call:
    args = (subclass or Name("numpy", "ndarray"), (0,), b"b")
    return Call("numpy.core.multiarray", "_reconstruct", args, (1, shape, dtype(kind), fortran, data))


def _operations(value: Any, protocol: int) -> Iterator[bytes]:
    if isinstance(value, np.ndarray):
        yield from _operations(array(value), protocol)
    elif isinstance(value, Name):
        yield from _name(value, protocol)
    elif isinstance(value, Call):
        yield from _call(value, protocol)
    elif isinstance(value, dict):
        items = [part for item in value.items() for part in item]
        yield from _many(pickle.EMPTY_DICT, items, pickle.SETITEMS, protocol)
    elif isinstance(value, list):
        yield from _many(pickle.EMPTY_LIST, value, pickle.APPENDS, protocol)
    elif isinstance(value, tuple):
        yield from _many(b"", value, pickle.TUPLE, protocol)
    elif isinstance(value, bytes | LongBytes):
        yield from _bytes(value, protocol)
    else:
        yield _plain(value)


def _many(before: bytes, items: Iterable[Any], after: bytes, protocol: int) -> Iterator[bytes]:
    yield before + pickle.MARK
    for item in items:
        yield from _operations(item, protocol)
    yield after


def _name(value: Name, protocol: int) -> Iterator[bytes]:
    if protocol < 4:
        yield pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()
    else:
        yield _plain(value.module) + _plain(value.name) + pickle.STACK_GLOBAL


def _call(value: Call, protocol: int) -> Iterator[bytes]:
    yield from _name(Name(value.module, value.name), protocol)
    yield from _operations(value.args, protocol)
    yield pickle.NEWOBJ if value.new else pickle.REDUCE
    if value.state is not None:
        yield from _operations(value.state, protocol)
        yield pickle.BUILD


def _bytes(value: bytes | LongBytes, protocol: int) -> Iterator[bytes]:
    size = len(value) if isinstance(value, bytes) else value.size
    yield pickle.BINBYTES8 + struct.pack("<Q", size) if protocol > 3 else pickle.BINBYTES + struct.pack("<I", size)
    yield from [value] if isinstance(value, bytes) else value.parts


def _plain(value: Any) -> bytes:
    """Numbers, text, None and booleans as Python writes them, without its frame, its memo and its end."""
    written = pickle.dumps(value, 2)[2:-1]
    return written.replace(b"q\x00", b"") if isinstance(value, str) else written
