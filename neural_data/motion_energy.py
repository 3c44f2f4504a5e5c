"""Spatiotemporal energy neurons: one bank of moving Gabor filters, read out at points.

Comes in: a table of features, and videos (frames, height, width) from -1 to 1. Goes out: feature maps float32
(features, rows, columns, frames) at the pixels where receptive fields may lie; their readout at any point between those
pixels; and the receptive fields (neurons, lags, height, width) that follow.

Of each feature the filter is G(x, y) h(t). G is a complex Gabor of zero mean, whose real and imaginary parts are in
quadrature. h is real for separable features; for those that prefer a direction it is fast + i * direction * slow, of
the causal biphasic kernels of Adelson and Bergen (J. Opt. Soc. Am. A 2:284, 1985,
https://doi.org/10.1364/JOSAA.2.000284),

    (k t)^n exp(-k t) (1 / n! - (k t)^2 / (n + 2)!),     n = 3 (fast) and 5 (slow), k = 1 / time_ms,

so that real and imaginary part of the product are their oriented filters, "even * fast - odd * slow" and "odd * fast +
even * slow". A simple feature is the half-wave rectified real part, a complex one the absolute value, the root of the
motion energy; both are divided by local contrast (Carandini and Heeger, Nature Reviews Neuroscience 13:51, 2012) as in
`simulate_images.py`, pooled over the past that the filter sees:

    feature = (amplitude^2 / (c50^2 + contrast^2))^(exponent / 2)
"""

from dataclasses import dataclass
from functools import cached_property
from math import factorial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neural_data.retinotopy import CENTRAL
from neural_data.simulate_images import C50, CYCLES_PER_SIGMA, FIELD_SIGMA, POOL_SIZE
from neural_data.simulation_config import FIELD_SIZE

if TYPE_CHECKING:
    from scipy.sparse import csr_array

TIME_CONSTANTS_MS = (20.0, 30.0)  # fast kernel: crosses zero 4.5 of them after a flash, 90 and 134 ms
LAST = 20.0  # time constants after which less than 1 % of either kernel's peak is left
BLOCK_FRAMES = 64  # filtered at a time
DIRECTIONAL = 0.5  # share of the features that prefer a direction


def draw_features(
    areas: list[str], per_area: int, complex_share: float, width: int, rng: np.random.Generator
) -> pd.DataFrame:
    """A bank for videos of `width` pixels: `per_area` features for each area, larger in higher areas.

    Columns: `area`; `kind`, "simple" or "complex"; `orientation` across the stripes and `phase` in radians;
    `direction`, 1 for motion towards the orientation, -1 away from it, 0 for none; `frequency` in cycles per pixel;
    `sigma` of the envelope and `pool`, the same of the window of contrast, in pixels; `time_ms`. There is at least one
    feature of each kind unless the share of complex ones is 0 or 1.
    """
    complex_features = round(complex_share * per_area)
    if 0 < complex_share < 1:
        complex_features = min(max(complex_features, 1), per_area - 1)
    kinds = ["complex"] * complex_features + ["simple"] * (per_area - complex_features)
    banks = []
    for area in areas:
        scale = width * FIELD_SIZE[area]
        sigma = rng.uniform(*FIELD_SIGMA, per_area) * scale
        banks.append(
            pd.DataFrame(
                {
                    "area": area,
                    "kind": kinds,
                    "orientation": np.pi * rng.permutation(np.arange(per_area) + rng.uniform()) / per_area,
                    "direction": np.where(rng.random(per_area) < DIRECTIONAL, rng.choice([-1, 1], per_area), 0),
                    "frequency": rng.uniform(*CYCLES_PER_SIGMA, per_area) / sigma,
                    "sigma": sigma,
                    "phase": rng.uniform(0, 2 * np.pi, per_area),
                    "pool": POOL_SIZE * np.mean(FIELD_SIGMA) * scale,
                    "time_ms": rng.choice(TIME_CONSTANTS_MS, per_area),
                }
            )
        )
    return pd.concat(banks, ignore_index=True)


def temporal_kernels(time_ms: float, frame_rate_hz: float) -> np.ndarray:
    """The fast and the slow kernel, float32 (2, lags), unit length, at the middles of frames; lag 0 is the present."""
    lags = int(np.ceil(LAST * max(TIME_CONSTANTS_MS) * frame_rate_hz / 1000))
    kt = (np.arange(lags) + 0.5) * 1000 / frame_rate_hz / time_ms
    kernels = [kt**n * np.exp(-kt) * (1 / factorial(n) - kt**2 / factorial(n + 2)) for n in (3, 5)]
    return np.stack([kernel / np.linalg.norm(kernel) for kernel in kernels]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class MotionEnergy:
    """The bank of `features` (see `draw_features`) on videos of one size and rate: the core that animals share."""

    features: pd.DataFrame
    height: int
    width: int
    frame_rate_hz: float
    exponent: float

    @property
    def rows(self) -> np.ndarray:
        """Rows of pixels at which features are computed."""
        return _central(self.height)

    @property
    def columns(self) -> np.ndarray:
        """Columns of pixels at which features are computed."""
        return _central(self.width)

    def maps(self, video: np.ndarray) -> np.ndarray:
        """Feature maps float32 (features, rows, columns, frames) of a video (frames, height, width), -1 to 1.

        Before its first frame and outside of its frame a video is grey, 0.
        """
        pixels = np.ascontiguousarray(video.transpose(1, 2, 0), np.float32).reshape(self.height, -1)
        maps = np.empty((len(self.features), len(self.rows), len(self.columns), len(video)), np.float32)
        gains = {}
        for at, feature in enumerate(self.features.itertuples()):
            of_pool = (feature.pool, feature.time_ms)
            if of_pool not in gains:
                gains[of_pool] = (C50**2 + self._contrast_squared(pixels, *of_pool)) ** (-self.exponent / 2)
            amplitude = self._amplitude(pixels, feature, *self._gabors[at])
            np.multiply(amplitude if self.exponent == 1 else amplitude**2, gains[of_pool], out=maps[at])
        return maps

    def readout(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> "csr_array":
        """The matrix, sparse float32 (neurons, features * rows * columns), that reads maps at points.

        `x`, `y`: (neurons,) in pixels, between which maps are interpolated bilinearly; `weights`: (neurons, features).
        """
        from scipy.sparse import csr_array

        neuron, feature = np.nonzero(weights)
        shape = (len(self.features), len(self.rows), len(self.columns))
        (top, bottom), row = _between(y - self.rows[0], shape[1])
        (left, right), column = _between(x - self.columns[0], shape[2])
        values, places = [], []
        for in_y, of_y in ((row, top), (row + 1, bottom)):
            for in_x, of_x in ((column, left), (column + 1, right)):
                values.append((of_y * of_x)[neuron] * weights[neuron, feature])
                places.append(np.ravel_multi_index((feature, in_y[neuron], in_x[neuron]), shape))
        entries = (np.tile(neuron, 4), np.concatenate(places))
        return csr_array((np.concatenate(values).astype(np.float32), entries), shape=(len(weights), np.prod(shape)))

    def filters(self, x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """What the readout's points see of the video: sum of `weights` times the filters' real parts, float32 (neurons,
        lags, height, width). Arguments as in `readout`."""
        in_y = _interpolation(y - self.rows[0], len(self.rows))
        in_x = _interpolation(x - self.columns[0], len(self.columns))
        lags = temporal_kernels(1.0, self.frame_rate_hz).shape[1]
        total = np.zeros((len(weights), lags, self.height, self.width), np.float32)
        for at, feature in enumerate(self.features.itertuples()):
            own = np.flatnonzero(weights[:, at])
            rows, columns = self._gabors[at]
            pair = np.einsum("nr,krh,nc,pkcw->pnhw", in_y[own], rows, in_x[own], columns, optimize=True)
            even, odd = pair * weights[own, at, None, None]
            fast, slow = temporal_kernels(feature.time_ms, self.frame_rate_hz)[:, None, :, None, None]
            filters = even[:, None] * fast
            if feature.direction:
                filters = (filters - feature.direction * odd[:, None] * slow) / np.sqrt(2)
            total[own] += filters
        return total

    def _amplitude(self, pixels: np.ndarray, feature: Any, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """What a feature sees before normalisation, (rows, columns, frames)."""
        fast, slow = temporal_kernels(feature.time_ms, self.frame_rate_hz)
        if feature.kind == "simple" and not feature.direction:
            return np.maximum(causal(_separable(pixels, rows, columns[:1])[0], fast), 0)
        even, odd = _separable(pixels, rows, columns)
        first = causal(even, fast)
        if feature.direction:
            first = (first - feature.direction * causal(odd, slow)) / np.float32(np.sqrt(2))
        if feature.kind == "simple":
            return np.maximum(first, 0)
        second = causal(odd, fast)
        if feature.direction:
            second = (second + feature.direction * causal(even, slow)) / np.float32(np.sqrt(2))
        return np.hypot(first, second)

    @cached_property
    def _gabors(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [self._gabor(feature) for feature in self.features.itertuples()]

    def _gabor(self, feature: Any) -> tuple[np.ndarray, np.ndarray]:
        """The even and the odd Gabor of a feature as sums of three products of functions of y and of x: float32
        (3, rows, height) and (2, 3, columns, width).

        With waves Y and X along the axes and the envelope E they are real and imaginary part of Y X - mean E E, without
        whose second term the cell would also answer to luminance."""
        offset = np.arange(-np.ceil(4 * feature.sigma), np.ceil(4 * feature.sigma) + 1)
        in_y, in_x = _wave(offset, feature, "y")[:, None], _wave(offset, feature, "x")
        mean = (in_y * in_x).sum() / np.abs(in_y * in_x).sum()
        # Unit length of a filter on average over phases.
        scale = np.exp(1j * feature.phase) * np.sqrt(2) / np.linalg.norm(in_y * in_x - mean * np.abs(in_y * in_x))
        in_y = _wave(np.arange(self.height) - self.rows[:, None], feature, "y")
        in_x = _wave(np.arange(self.width) - self.columns[:, None], feature, "x")
        in_x, luminance = scale * in_x, scale * mean * np.abs(in_x)
        even, odd = (in_x.real, -in_x.imag, -luminance.real), (in_x.imag, in_x.real, -luminance.imag)
        rows = np.stack([in_y.real, in_y.imag, np.abs(in_y)])
        return rows.astype(np.float32), np.stack([np.stack(even), np.stack(odd)]).astype(np.float32)

    def _contrast_squared(self, pixels: np.ndarray, pool: float, time_ms: float) -> np.ndarray:
        """Variance of the pixels under a Gaussian window, float32 (rows, columns, frames), weighted over the past by
        the squares of the kernels."""
        windows = []
        for size, centres in ((self.height, self.rows), (self.width, self.columns)):
            window = np.exp(-((np.arange(size) - centres[:, None]) ** 2) / (2 * pool**2))
            windows.append((window / window.sum(axis=1, keepdims=True)).astype(np.float32)[None])
        rows, columns = windows
        mean, of_squares = (_separable(values, rows, columns[None])[0] for values in (pixels, pixels**2))
        weight = (temporal_kernels(time_ms, self.frame_rate_hz) ** 2).mean(axis=0)
        return causal(np.maximum(of_squares - mean**2, 0), weight)


def causal(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolution along the last axis with a kernel (lags,) that reaches into the past; 0 before the first sample."""
    lags, frames = len(kernel), values.shape[-1]
    lag = np.arange(BLOCK_FRAMES) + lags - 1 - np.arange(BLOCK_FRAMES + lags - 1)[:, None]
    matrix = np.where((lag >= 0) & (lag < lags), kernel[np.clip(lag, 0, lags - 1)], 0)
    # Blocks are matrix products whose cost does not grow with the square of the length.
    past = np.concatenate([np.zeros((*values.shape[:-1], lags - 1), values.dtype), values], axis=-1)
    result = np.empty_like(values)
    for first in range(0, frames, BLOCK_FRAMES):
        length = min(BLOCK_FRAMES, frames - first)
        block = past[..., first : first + length + lags - 1]
        result[..., first : first + length] = block @ matrix[: length + lags - 1, :length]
    return result


def _separable(pixels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """sum over k of rows[k] @ frame @ columns[p, k].T for each frame: (p, rows, columns, frames).

    `pixels` (height, width * frames), `rows` (k, rows, height), `columns` (p, k, columns, width).
    """
    terms, n_rows, height = rows.shape
    parts, _, n_columns, width = columns.shape
    seen = rows.swapaxes(0, 1).reshape(-1, height) @ pixels
    across = columns.swapaxes(1, 2).reshape(parts * n_columns, terms * width)
    found = across @ seen.reshape(n_rows, terms * width, -1)
    return found.reshape(n_rows, parts, n_columns, -1).swapaxes(0, 1)


def _wave(offset: np.ndarray, feature: Any, axis: str) -> np.ndarray:
    """The Gabor's factor along one axis: Gaussian times the wave that runs along the orientation."""
    along = np.cos(feature.orientation) if axis == "x" else np.sin(feature.orientation)
    return np.exp(-(offset**2) / (2 * feature.sigma**2) + 2j * np.pi * feature.frequency * along * offset)


def _central(size: int) -> np.ndarray:
    first, last = (share * (size - 1) for share in CENTRAL)
    return np.arange(int(np.floor(first)), int(np.ceil(last)) + 1)


def _between(place: np.ndarray, size: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Of places between pixels: weights of the pixel before and of the one after, and the index of the one before."""
    before = np.clip(np.floor(place).astype(np.int64), 0, size - 2)
    return (1 - (place - before), place - before), before


def _interpolation(place: np.ndarray, size: int) -> np.ndarray:
    """Bilinear interpolation along one axis as a matrix, float64 (places, size)."""
    (one, other), before = _between(place, size)
    matrix = np.zeros((len(place), size))
    matrix[np.arange(len(place)), before] = one
    matrix[np.arange(len(place)), before + 1] = other
    return matrix
