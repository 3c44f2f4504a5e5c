"""Which of many `.npy` files hold the same array: how stimuli that were shown several times are found again.

Comes in: files. Goes out: a number for each, the same for identical arrays; or, of clips that were cut short, the one
that they are the start of. Nothing but what is needed to tell them apart is read, and nothing is written.
"""

import hashlib
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from neural_data.trial_files import npy_file

# Elements at the start, the middle and the end of an array that tell most arrays apart.
GLANCE = 2048


def identical_files(paths: Sequence[Path]) -> np.ndarray:
    """int64 (paths,): files with equal dtype, shape and values share a number; numbers follow first appearance.

    Arrays are glanced at in three places; only those that look alike are read whole and compared by BLAKE2b. Raises
    FileNotFoundError, or ValueError naming a file that is no array.
    """
    looks = {path: _glance(path) for path in dict.fromkeys(paths)}
    alike = pd.Series(list(looks.values())).duplicated(keep=False).tolist()
    for path, several in zip(list(looks), alike, strict=True):
        looks[path] = (looks[path], _digest(path) if several else b"")
    return pd.factorize(pd.Series([looks[path] for path in paths], dtype=object))[0].astype(np.int64)


def longest_versions(paths: Sequence[Path]) -> np.ndarray:
    """int64 (paths,): for each of different files the place in `paths` of the longest one that begins with it.

    That is its own place where no other begins with it, or where such others are no versions of each other. Arrays
    must have an axis of time first. Of files that begin alike, the shorter ones are compared with the longer ones.
    """
    begins: dict[Hashable, list[int]] = {}
    for place, path in enumerate(paths):
        array = npy_file(path)
        begins.setdefault((array.dtype.str, array.shape[1:], array[:1].tobytes()), []).append(place)
    longest = np.arange(len(paths))
    for alike in begins.values():
        arrays = {place: npy_file(paths[place]) for place in alike} if len(alike) > 1 else {}
        ordered = sorted(arrays, key=lambda place: -len(arrays[place]))
        for at, place in enumerate(ordered):
            found = {int(longest[other]) for other in ordered[:at] if _starts_with(arrays[other], arrays[place])}
            longest[place] = found.pop() if len(found) == 1 else place
    return longest


def _starts_with(longer: np.ndarray, shorter: np.ndarray) -> bool:
    n = len(shorter)
    if len(longer) == n or not all(np.array_equal(longer[at], shorter[at]) for at in (n // 2, n - 1)):
        return False
    return np.array_equal(longer[:n], shorter)


def _glance(path: Path) -> Hashable:
    array = npy_file(path)
    flat, middle = array.reshape(-1), array.size // 2
    parts = (flat[:GLANCE], flat[middle : middle + GLANCE], flat[-GLANCE:])
    return array.dtype.str, array.shape, *(part.tobytes() for part in parts)


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(npy_file(path)).data).digest()
