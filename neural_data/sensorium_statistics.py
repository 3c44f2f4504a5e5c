"""Statistics across trials as the folders of Sensorium have them: mean, std (ddof 0), median, min, max.

Comes in: the files of some trials. Goes out: arrays by name. Those of images are one number over pixels and trials;
all others are one per element, so that those of videos and traces are per frame: across trials, not across time.
"""

import math
from pathlib import Path

import numpy as np

from neural_data.recording import BLOCK_BYTES

STATISTICS = ("mean", "std", "median", "min", "max")
MEDIAN_BYTES = 2**28


def per_element(files: list[Path]) -> dict[str, np.ndarray]:
    """Statistics across `.npy` files of one shape, each float64 of that shape, NaN where all files have NaN.

    Blocks of rows of all files are read at a time."""
    stored = [np.load(file, mmap_mode="r") for file in files]
    shape = stored[0].shape
    rows = [values.reshape(math.prod(shape[:-1]), shape[-1]) for values in stored]
    found = {name: np.full(rows[0].shape, np.nan) for name in STATISTICS}
    step = max(1, BLOCK_BYTES // 4 // (len(rows) * shape[-1] * 8))
    for first in range(0, len(rows[0]), step):
        part = slice(first, first + step)
        # Sorted, NaN comes last: then the median, like the extremes, is at a place that the count of numbers tells.
        ordered = np.sort([values[part] for values in rows], axis=0)
        there = ~np.isnan(ordered)
        count = there.sum(axis=0)
        known = count > 0
        n = np.maximum(count, 1)
        total = np.sum(ordered, axis=0, where=there)
        mean = total / n
        variance = np.sum((ordered - mean) ** 2, axis=0, where=there) / n
        at = {"min": 0 * n, "max": n - 1, "low": (n - 1) // 2, "high": n // 2}
        picked = {name: np.take_along_axis(ordered, place[None], axis=0)[0] for name, place in at.items()}
        median = (picked["low"] + picked["high"]) / 2
        values = {"mean": mean, "std": np.sqrt(variance), "median": median} | picked
        for name in STATISTICS:
            found[name][part] = np.where(known, values[name], np.nan)
    return {name: values.reshape(shape) for name, values in found.items()}


def over_pixels(files: list[Path]) -> dict[str, np.ndarray]:
    """One number over all pixels of all `.npy` files, float32 (); the median is that of every k-th file where all of
    them would take more than MEDIAN_BYTES."""
    sums, low, high = np.zeros(3), np.inf, -np.inf
    for file in files:
        image = np.load(file).astype(float)
        sums += (image.size, image.sum(), (image**2).sum())
        low, high = min(low, image.min()), max(high, image.max())
    mean = sums[1] / sums[0]
    step = math.ceil(sums[0] * 8 / MEDIAN_BYTES)
    median = np.median([np.load(file).astype(float) for file in files[::step]])
    values = {"mean": mean, "std": np.sqrt(sums[2] / sums[0] - mean**2), "median": median, "min": low, "max": high}
    return {name: np.asarray(value, np.float32) for name, value in values.items()}
