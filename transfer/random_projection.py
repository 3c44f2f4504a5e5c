"""Features projected at random to fewer, with what that does to the distances between stimuli.

What comes in: features (stimuli, features), an array or a memory map. What goes out: projected features float64
(stimuli, components) and the error that was made, measured on these stimuli. scikit-learn's random projections
(https://scikit-learn.org/stable/modules/random_projection.html) are drawn for one block of features after the other, so
that neither the features nor the random matrix need fit into memory.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import DataDimensionalityWarning
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection, johnson_lindenstrauss_min_dim

from transfer.sample_space import feature_blocks

KINDS = ("gaussian", "sparse")
# Numbers of the random matrix that are drawn at a time.
BLOCK_NUMBERS = 2**24


@dataclass(frozen=True)
class Projected:
    """Projected `features` float64 (stimuli, components), their origin the mean of the stimuli, and how they were made.

    `mean_distortion` and `max_distortion` are of | d'^2 / d^2 - 1 |, d and d' the distances of two stimuli before and
    after, over all pairs of different stimuli: the epsilon of the lemma of Johnson and Lindenstrauss as it turned out.
    """

    features: np.ndarray
    kind: str
    seed: int
    mean_distortion: float
    max_distortion: float


def random_projection(
    features: np.ndarray, components: int | str = "auto", kind: str = "gaussian", eps: float = 0.1, seed: int = 0
) -> Projected:
    """Project features (stimuli, features) to `components` dimensions.

    Args:
        features: read block by block.
        components: a number, or "auto": as many as keep all squared distances to a share of `eps` with good
            probability (`johnson_lindenstrauss_min_dim`).
        kind: "gaussian", or "sparse" with the density 1 / sqrt(features) of Li et al. 2006.
        eps: for "auto".
        seed: the same seed gives the same projection.

    Raises:
        ValueError: an unknown kind, fewer than 2 stimuli, NaN, or not fewer components than features.
    """
    stimuli, count = features.shape
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, found {kind!r}")
    if stimuli < 2:
        raise ValueError(f"a projection is judged by the distances between stimuli, found {stimuli} stimuli")
    if components == "auto":
        components = int(johnson_lindenstrauss_min_dim(stimuli, eps=eps))
    if not 0 < components < count:
        raise ValueError(f"a projection to {components} components needs more features than that, found {count}")
    projected, products = np.zeros((stimuli, components)), np.zeros((stimuli, stimuli))
    size = max(1, BLOCK_NUMBERS // components)
    for number, block in enumerate(feature_blocks(features, size)):
        centred = block - block.mean(0)
        projected += project_block(centred, kind, components, count, (seed, number))
        products += centred @ centred.T
    mean_distortion, max_distortion = distortion(products, projected @ projected.T)
    return Projected(projected, kind, seed, mean_distortion, max_distortion)


def project_block(block: np.ndarray, kind: str, components: int, features: int, seed: tuple[int, int]) -> np.ndarray:
    """Project one block (stimuli, block) of `features` in all; `seed`, of the call and the block, says how."""
    state = np.random.RandomState(np.random.SeedSequence(seed).generate_state(4))
    if kind == "gaussian":
        projection = GaussianRandomProjection(components, random_state=state)
    else:
        projection = SparseRandomProjection(components, density=1 / np.sqrt(features), random_state=state)
    with warnings.catch_warnings():
        # That a block has fewer features than there are components means nothing.
        warnings.simplefilter("ignore", DataDimensionalityWarning)
        return projection.fit(block).transform(block)


def distortion(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Mean and maximum of | d'^2 / d^2 - 1 | over pairs, from the products (stimuli, stimuli) before and after."""
    rows, columns = np.triu_indices(len(before), k=1)
    squared = [
        products.diagonal()[rows] + products.diagonal()[columns] - 2 * products[rows, columns]
        for products in (before, after)
    ]
    # Stimuli with the same features stay together.
    apart = squared[0] > 1e-12 * before.diagonal().max()
    if not apart.any():
        return 0.0, 0.0
    error = np.abs(squared[1][apart] / squared[0][apart] - 1)
    return float(error.mean()), float(error.max())
