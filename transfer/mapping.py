"""From features to neurons: partial least squares regression, and what every mapping can do.

What comes in: features X (stimuli, features) and responses Y (stimuli, neurons). What goes out: predicted responses.
PLS2 (Wold et al. 2001, https://doi.org/10.1016/S0169-7439(01)00155-1) with the components of scikit-learn's
`PLSRegression(scale=False)`, in the improved kernel algorithm of Dayal and MacGregor (1997, J. Chemometrics 11:73-85):
only the covariance of features and responses is deflated, so that sets of responses to the same stimuli share their
features. These are coordinates in the directions that the stimuli span (`sample_space.py`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch

from transfer.leading_direction import Array, inverse, leading_directions, lib
from transfer.sample_space import check_finite, one_blas_thread, train_basis, train_space

# Squared, relative to features of size 1: float32 features know no direction smaller than this.
NO_VARIANCE = 1e-16
# Covariances that are worked on at a time: with their Gram matrices and scores they stay in a core's cache.
BLOCK_BYTES = 2**20
# Blocks come in this number or a multiple, equally large, so that as many threads finish together.
BLOCKS_TOGETHER = 4
# On a GPU a block is as large as its memory allows, with room for a dozen arrays of that size.
GPU_BLOCK_BYTES = 2**30
# Splits of a layer whose decomposition is kept: those of the default protocol, and their inner ones.
SPACES_REMEMBERED = 32
LARGEST_REMEMBERED = 2**22


class Mapping(Protocol):
    """Follows scikit-learn, and predicts from many sets of responses at once, because that is where the time goes.

    `rotation_invariant` says that only distances and angles between stimuli count, so that `sample_coordinates` of the
    features can stand for them.
    """

    rotation_invariant: bool

    def fit(self, X: np.ndarray, Y: np.ndarray) -> "Mapping":
        """Fit X (stimuli, features) to Y (stimuli, neurons)."""

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predicted responses float64 (stimuli, neurons) for X (stimuli, features)."""

    def fit_predict_many(self, X: np.ndarray, Y: np.ndarray, X_test: np.ndarray) -> np.ndarray:
        """Fit X (stimuli, features) to each Y (sets, stimuli, neurons); predict X_test: (sets, tests, neurons)."""


def fit_predict_sets(mapping: Mapping, X: np.ndarray, Y: np.ndarray, X_test: np.ndarray) -> np.ndarray:
    """`fit_predict_many`, for every mapping also where each set has features (sets, stimuli, features) of its own."""
    if X.ndim == 2 or isinstance(mapping, PLSMapping):
        return mapping.fit_predict_many(X, Y, X_test)
    one_by_one = zip(X, Y[:, None], X_test, strict=True)
    return np.concatenate([mapping.fit_predict_many(*of_set) for of_set in one_by_one])


def predict_splits(
    mapping: Mapping, features: np.ndarray, responses: np.ndarray, splits: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Iterator[np.ndarray]:
    """Predictions (sets, tests, neurons) of the test stimuli of each split, fitted to its train stimuli.

    Args:
        mapping: whose `rotation_invariant` says whether `features` may be `sample_coordinates` of the features.
        features: (stimuli, features).
        responses: (sets, stimuli, neurons), such as the halves of all halvings.
        splits: pairs (train, test) of rows.
    """
    for train, test in splits:
        yield mapping.fit_predict_many(features[train], responses[:, train], features[test])


class PLSMapping:
    """Partial least squares with `n_components`, or as many as the training stimuli allow.

    `device` is "cpu" or torch's name of a GPU. On CPUs sets are shared by as many threads as torch uses.
    """

    rotation_invariant = True

    def __init__(self, n_components: int = 25, device: str = "cpu") -> None:
        if n_components < 1:
            raise ValueError(f"n_components must be at least 1, found {n_components}")
        self.n_components = n_components
        self.device = device
        self.spaces: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def fit(self, X: np.ndarray, Y: np.ndarray) -> "PLSMapping":
        """Fit X (stimuli, features) to Y (stimuli, neurons); keeps `coef_` (features, neurons), `intercept_`."""
        X, Y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
        check_shapes(X, Y)
        check_finite(X, Y)
        basis, coordinates = train_basis(X)
        centred = (Y - Y.mean(0))[None]
        rotations, answers = components(coordinates, centred, self.n_components)
        self.coef_ = basis @ (rotations[0].T @ answers[0])
        self.intercept_ = Y.mean(0) - X.mean(0) @ self.coef_
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predicted responses (stimuli, neurons) for X (stimuli, features)."""
        return np.asarray(X, np.float64) @ self.coef_ + self.intercept_

    def fit_predict_many(self, X: np.ndarray, Y: np.ndarray, X_test: np.ndarray) -> np.ndarray:
        """Fit X (stimuli, features) to each Y (sets, stimuli, neurons); predict X_test: (sets, tests, neurons).

        Sets may have features of their own: X (sets, stimuli, features) and X_test (sets, tests, features).
        """
        return self.fit_predict_grid(X, Y, X_test, [self.n_components])[0]

    def fit_predict_grid(self, X: np.ndarray, Y: np.ndarray, X_test: np.ndarray, grid: Sequence[int]) -> np.ndarray:
        """As `fit_predict_many`, with each number of components in `grid`: (grid, sets, tests, neurons).

        One fit has them all: its first a components are those of a fit with a components.
        """
        X, Y, X_test = (np.asarray(array, np.float64) for array in (X, Y, X_test))
        check_shapes(X, Y, X_test)
        check_finite(X, Y, X_test)
        own = X.ndim == 3
        centre = X.mean(1, keepdims=True) if own else 0.0
        train, test = (X - centre, X_test - centre) if own else self.space_of(X, X_test)
        predicted = np.empty((len(grid), len(Y), X_test.shape[-2], Y.shape[2]))

        def predict_block(sets: slice) -> None:
            mean = Y[sets].mean(1, keepdims=True)
            arrays = (train[sets], Y[sets] - mean, test[sets]) if own else (train, Y[sets] - mean, test)
            arrays = (self.on_device(array) for array in arrays)
            for row, part in zip(predicted, grid_predictions(*arrays, grid), strict=True):
                row[sets] = part if self.device == "cpu" else part.cpu().numpy()
                row[sets] += mean

        self.share(predict_block, len(Y), 8 * train.shape[-1] * Y.shape[2])
        return predicted

    def fit_predict_groups(self, X: np.ndarray, groups: Sequence[np.ndarray], X_test: np.ndarray) -> list[np.ndarray]:
        """`fit_predict_many` for several Y that differ in sets and neurons, such as animals, as one job for a GPU.

        They are made equally wide with neurons that are always silent: those have no part in any component.
        """
        widest = max(Y.shape[2] for Y in groups)
        together = np.concatenate([np.pad(Y, ((0, 0), (0, 0), (0, widest - Y.shape[2]))) for Y in groups])
        predicted = self.fit_predict_many(X, together, X_test)
        ends = np.cumsum([len(Y) for Y in groups])
        return [part[:, :, : Y.shape[2]] for part, Y in zip(np.split(predicted, ends[:-1]), groups, strict=True)]

    def space_of(self, X: np.ndarray, X_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`train_space` of these stimuli, remembered: neurons of many animals are fitted to the same few splits."""
        if X.nbytes + X_test.nbytes > LARGEST_REMEMBERED:
            return train_space(X, X_test)
        key = blake2b(X.tobytes() + X_test.tobytes()).digest()
        if key not in self.spaces:
            if len(self.spaces) == SPACES_REMEMBERED:
                self.spaces.pop(next(iter(self.spaces)))
            self.spaces[key] = train_space(X, X_test)
        return self.spaces[key]

    def on_device(self, array: np.ndarray) -> Array:
        return array if self.device == "cpu" else torch.from_numpy(array).to(self.device)

    def share(self, work: Callable[[slice], None], sets: int, set_bytes: int) -> None:
        """Call `work` for blocks of the sets; the blocks, and so the results, do not depend on who does them."""
        if self.device != "cpu":
            for block in even_blocks(sets, sets * set_bytes / GPU_BLOCK_BYTES):
                work(block)
            return
        blocks = even_blocks(sets, sets * set_bytes / BLOCK_BYTES, BLOCKS_TOGETHER)
        if len(blocks) == 1:
            work(blocks[0])
            return
        # A batch of small matrices keeps one core of BLAS busy: our threads take blocks instead, and BLAS starts none.
        with one_blas_thread(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(work, blocks))


def even_blocks(sets: int, wanted: float, multiple: int = 1) -> list[slice]:
    """The sets in `wanted` blocks of equal size or more; in a multiple of `multiple` where they are more than one."""
    count = math.ceil(wanted)
    if count > 1:
        count = math.ceil(count / multiple) * multiple
    ends = np.linspace(0, sets, max(count, 1) + 1).astype(int)
    return [slice(first, last) for first, last in pairwise(ends) if first < last]


def grid_predictions(X: Array, Y: Array, X_test: Array, grid: Sequence[int]) -> list[Array]:
    """Predictions (sets, tests, neurons) of centred responses with each number of components."""
    rotations, answers = components(X, Y, max(grid))
    scores = (rotations @ X_test.mT).mT
    return [scores[:, :, :count] @ answers[:, :count] for count in grid]


def components(X: Array, Y: Array, count: int) -> tuple[Array, Array]:
    """PLS components of centred X (stimuli, r) or (sets, stimuli, r) and each centred Y (sets, stimuli, neurons).

    Returns rotations R (sets, components, r), with scores X R', and answers Q (sets, components, neurons), with
    predictions X R' Q. Where nothing is left to explain they are zero.
    """
    count = min(count, X.shape[-2] - 1, X.shape[-1]) if Y.shape[2] else 0
    unit = float(abs(X).max()) if count else 1.0
    X = X / unit
    covariance = X.mT @ Y
    sets, directions, neurons = covariance.shape
    rotations, loadings = zeros(X, sets, count, directions), zeros(X, sets, count, directions)
    answers, product = zeros(X, sets, count, neurons), zeros(X, *covariance.shape)
    for number in range(count):
        weights = leading_directions(covariance)
        # Weights are for features from which the components so far were taken; rotations are for the features.
        used = loadings[:, :number] @ weights[:, :, None]
        rotation = weights - (used.mT @ rotations[:, :number])[:, 0]
        scores = products(X, rotation)
        strength = inverse_variance((scores * scores).sum(1))[:, None]
        loading = products(X.mT, scores) * strength
        explained = (rotation[:, None] @ covariance)[:, 0]
        covariance -= lib(X).multiply(loading[:, :, None], explained[:, None], out=product)
        rotations[:, number], loadings[:, number], answers[:, number] = rotation, loading, explained * strength
    return rotations / unit, answers


def products(matrices: Array, vectors: Array) -> Array:
    """Products (sets, n) of one matrix (n, m), or of each of (sets, n, m), with vectors (sets, m)."""
    return vectors @ matrices.mT if matrices.ndim == 2 else (matrices @ vectors[:, :, None])[:, :, 0]


def inverse_variance(variance: Array) -> Array:
    return lib(variance).where(variance > NO_VARIANCE, inverse(variance), 0.0)


def zeros(like: Array, *shape: int) -> Array:
    return np.zeros(shape) if isinstance(like, np.ndarray) else like.new_zeros(shape)


def check_shapes(X: np.ndarray, Y: np.ndarray, X_test: np.ndarray | None = None) -> None:
    """ValueError if X and Y, or with X_test several sets Y, cannot belong together."""
    many = X_test is not None
    own = many and X.ndim == 3
    fits = X.ndim == 2 + own and Y.ndim == 2 + many and X.shape[-2] == Y.shape[-2] >= 2
    if not fits or (own and len(X) != len(Y)):
        raise ValueError(
            f"a mapping needs X (stimuli, features) and Y ({'sets, ' * many}stimuli, neurons) for the same 2 or more "
            f"stimuli, found {X.shape} and {Y.shape}"
        )
    if many and (X_test.ndim != X.ndim or X_test.shape[-1] != X.shape[-1] or (own and len(X_test) != len(X))):
        expected = f"({'sets, ' * own}tests, {X.shape[-1]} features)"
        raise ValueError(f"X_test must be {expected} as X is, found {X_test.shape}")
