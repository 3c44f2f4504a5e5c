"""An array whose first axis is trials, each in a file of its own, read when it is asked for.

Comes in: one `.npy` file per trial. Goes out: `TrialFiles`, which is indexed as an array (trials, ...) is; of a trial
only the part that is asked for is read. Trials shorter than the longest end in NaN.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Read = Callable[[int], np.ndarray]


class TrialFiles:
    """Array-like of `shape` (trials, ...) and `dtype` that `read(trial)` fills, one trial at a time.

    `array[3]` is one trial; `array[2:5]`, `array[[4, 1]]` and `array[mask]` stack trials; further indices go to the
    axes of a trial, as in `array[3, :, 10:90]`. A trial that `read` gives with a shorter `time_axis` (of a trial) ends
    in NaN. `read` may give a memory map, of which only what is indexed is then read.
    """

    def __init__(self, read: Read, shape: Sequence[int], dtype: Any = np.float32, time_axis: int = -1) -> None:
        self.read = read
        self.time_axis = time_axis
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, *rest = key if isinstance(key, tuple) else (key,)
        if isinstance(rows, int | np.integer):
            return self._trial(range(len(self))[rows], tuple(rest))
        chosen = np.arange(len(self))[rows]
        trials = [self._trial(int(row), tuple(rest)) for row in chosen]
        if trials:
            return np.stack(trials)
        return np.empty((0, *np.empty(self.shape[1:], np.void)[tuple(rest)].shape), self.dtype)

    def _trial(self, row: int, rest: tuple[Any, ...]) -> np.ndarray:
        values, expected = self.read(row), self.shape[1:]
        if values.shape == expected:
            return np.asarray(values[rest] if rest else values, self.dtype)
        axis = self.time_axis % max(1, self.ndim - 1)
        missing = [wanted - found for wanted, found in zip(expected, values.shape, strict=False)]
        if values.ndim != len(expected) or any(n < 0 or (n and at != axis) for at, n in enumerate(missing)):
            raise ValueError(f"trial {row} has shape {values.shape}, expected {expected}")
        keys = [*rest, *[slice(None)] * (len(expected) - len(rest))]
        time = keys[axis] if len(keys) == len(expected) else None
        if isinstance(time, slice) and all(isinstance(key, slice | int | np.integer) for key in keys):
            return self._window(values, keys, axis)
        padding = [(0, n) for n in missing]
        return np.pad(np.asarray(values, self.dtype), padding, constant_values=np.nan)[rest]

    def _window(self, values: np.ndarray, keys: list[Any], axis: int) -> np.ndarray:
        """Slices of a trial that ends early: NaN after its end, and nothing but the window is read of it."""
        wanted = range(self.shape[1:][axis])[keys[axis]]
        inside = [time for time in wanted if time < values.shape[axis]]
        shape = list(np.broadcast_to(np.float32(0), self.shape[1:])[tuple(keys)].shape)
        window = np.full(shape, np.nan, self.dtype)
        if inside:
            ends = (inside[-1] + wanted.step) if inside[-1] + wanted.step >= 0 else None
            keys[axis] = slice(inside[0], ends, wanted.step)
            first = wanted.index(inside[0])
            before = sum(isinstance(key, slice) for key in keys[:axis])
            place = (slice(None),) * before + (slice(first, first + len(inside)),)
            window[place] = values[tuple(keys)]
        return window


def npy_file(path: Path) -> np.ndarray:
    """The array in a `.npy` file, as a memory map; objects are refused. Raises ValueError naming the file."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (ValueError, EOFError, OSError) as error:
        line = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as an array of numbers or text ({line})") from None
