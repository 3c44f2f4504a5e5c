"""Arrays inside larger files, read part by part, and the rows of them that are trials.

Comes in: a way to open an array of an HDF5 file or a zarr store, or a memory map. Goes out: `StoredArray`, which reads
what it is indexed with, and `StoredRows`, whose first axis is trials or stimuli. Both can be pickled and survive a
fork, as workers of a DataLoader need: what is open is never carried over, each process opens the file itself.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

# What is read at a time where an array is looked through.
BLOCK_BYTES = 64 * 2**20
# Rows are read together where at least this share of the rows between them is wanted.
DENSE = 0.5


class StoredArray:
    """Array-like that reads from disk what it is indexed with: integers, slices and `...`.

    `open_array` opens what is stored, indexed as h5py and zarr do; it must be picklable. `shape` is that of the stored
    array; `transposed` reverses the order of the axes, as MATLAB has them the other way round than HDF5.
    """

    def __init__(self, open_array: Callable[[], Any], shape: Sequence[int], dtype: Any, transposed: bool = False):
        self.open_array = open_array
        self.transposed = transposed
        self.shape = tuple(int(size) for size in (reversed(shape) if transposed else shape))
        self.dtype = np.dtype(dtype)
        self._opened: tuple[int, Any] | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        key = _all_axes(key if isinstance(key, tuple) else (key,), self.ndim)
        forward = tuple(_forward(part, size) for part, size in zip(key, self.shape, strict=True))
        values = np.asarray(self._array()[forward[::-1] if self.transposed else forward])
        values = values.T if self.transposed else values
        # HDF5 has no negative steps: the same elements are read forwards, then turned round.
        turned = [part.step is not None and part.step < 0 for part in key if isinstance(part, slice)]
        return values[tuple(slice(None, None, -1 if turn else 1) for turn in turned)] if any(turned) else values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def _array(self) -> Any:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self.open_array())
        return self._opened[1]


class StoredRows:
    """Array-like (rows, ...) of chosen places of an array on disk.

    `at`: int (rows, axes), where each row is along the first one or two axes of `array`. `rows[3]`, `rows[2:5]`,
    `rows[[4, 1]]` and `rows[mask]` read these rows; further integers and slices go to the axes of a row, as in
    `rows[3, :, 10:90]`, and only that is read. Values become `dtype` and are multiplied by `factor`.
    """

    def __init__(self, array: Any, at: np.ndarray, dtype: Any = None, factor: float = 1) -> None:
        self.array = array
        self.at = at
        self.dtype = np.dtype(dtype or array.dtype)
        self.factor = factor
        self.shape = (len(at), *array.shape[at.shape[1] :])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, *rest = _all_axes(key if isinstance(key, tuple) else (key,), self.ndim)
        if not all(isinstance(part, int | np.integer | slice) for part in rest):
            raise IndexError(f"rows on disk are indexed by integers and slices, found {rest}")
        if isinstance(rows, int | np.integer):
            return self._in_unit(self.array[(*self.at[range(len(self))[rows]], *rest)])
        chosen = self.at[np.arange(len(self))[rows]]
        shape = np.empty((1, *self.shape[1:]), np.void)[(0, *rest)].shape
        found = np.empty((len(chosen), *shape), self.dtype)
        for these in _neighbours(chosen):
            first, last = chosen[these, -1].min(), chosen[these, -1].max()
            values = self.array[(*chosen[these[0], :-1], slice(first, last + 1), *rest)]
            found[these] = self._in_unit(values[chosen[these, -1] - first])
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def _in_unit(self, values: Any) -> np.ndarray:
        values = np.asarray(values).astype(self.dtype, copy=False)
        return values if self.factor == 1 else values * self.dtype.type(self.factor)


def blocks(array: Any, block_bytes: int | None = None) -> Iterator[tuple[slice, ...]]:
    """Keys that cut an array into blocks of about BLOCK_BYTES, cut along the axes that lie slowest on disk."""
    shape, steps = array.shape, list(array.shape)
    flags = getattr(array, "flags", None)
    reverse = (
        flags.f_contiguous and not flags.c_contiguous if flags is not None else getattr(array, "transposed", False)
    )
    for axis in reversed(range(len(shape))) if reverse else range(len(shape)):
        one = array.dtype.itemsize * int(np.prod(steps)) // max(1, steps[axis])
        steps[axis] = int(min(shape[axis], max(1, (block_bytes or BLOCK_BYTES) // max(1, one))))
        if one <= (block_bytes or BLOCK_BYTES):
            break
    yield from product(*(_cut(size, step) for size, step in zip(shape, steps, strict=True)))


def _cut(size: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, size)) for first in range(0, size, max(1, step))]


def _neighbours(at: np.ndarray) -> Iterator[np.ndarray]:
    """Which of the rows are read together: same first axis, close along the last; the others one by one."""
    if not len(at):
        return
    _, run = np.unique(at[:, :-1], axis=0, return_inverse=True) if at.shape[1] > 1 else (None, np.zeros(len(at), int))
    order = np.lexsort((at[:, -1], run.ravel()))
    for these in np.split(order, np.flatnonzero(np.diff(run.ravel()[order])) + 1):
        spanned = at[these[-1], -1] - at[these[0], -1] + 1
        yield from [these] if len(these) >= DENSE * spanned else these[:, None]


def _all_axes(key: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    """The key with one part for every axis."""
    at = next((i for i, part in enumerate(key) if part is Ellipsis), len(key))
    given = len(key) - (at < len(key))
    if given > ndim:
        raise IndexError(f"found {given} indices for {ndim} axes")
    return (*key[:at], *[slice(None)] * (ndim - given), *key[at + 1 :])


def _forward(part: Any, size: int) -> Any:
    """An integer from 0, or a slice with a positive step, that names the same elements."""
    if not isinstance(part, slice):
        return range(size)[part]
    indices = range(*part.indices(size))
    if not indices:
        return slice(0, 0)
    indices = indices if indices.step > 0 else indices[::-1]
    return slice(indices[0], indices[-1] + 1, indices.step)
