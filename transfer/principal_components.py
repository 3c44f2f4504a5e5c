"""Principal components of many features and few images, for many splits at the price of one.

What comes in: features (images, features). What goes out: scores of train and test images on the components of the
train images. The products between images hold all that is needed: with the centred train features U S V', the train
scores are U S, and U and S^2 are eigenvectors and eigenvalues of the products between train images (kernel PCA with
a linear kernel, Schoelkopf et al. 1998, https://doi.org/10.1162/089976698300017467). So the features are gone through
once, and each split takes a part of the products. The components are those of a full SVD.
"""

import numpy as np
from scipy.linalg import eigh

COLUMNS = 4096


def image_products(features: np.ndarray) -> np.ndarray:
    """Products float64 (images, images) between images of float32 features, centred to lose no digits."""
    products = np.zeros((len(features), len(features)))
    for first in range(0, features.shape[1], COLUMNS):
        block = features[:, first : first + COLUMNS].astype(np.float64)
        block -= block.mean(0)
        products += block @ block.T
    return products


def component_scores(
    products: np.ndarray, train: np.ndarray, test: np.ndarray, components: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (train images, components) and (test images, components) on the train images' principal components.

    There are at most as many components as train images, and none without variance.

    Args:
        products: of `image_products`.
        train, test: rows.
        components: how many, those of the largest variance.
    """
    within, across = products[np.ix_(train, train)], products[np.ix_(test, train)]
    means, mean = within.mean(0), within.mean()
    within = within - means - means[:, None] + mean
    across = across - means - across.mean(1)[:, None] + mean
    count = len(train)
    values, vectors = eigh(within, subset_by_index=[max(count - components, 0), count - 1])
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > max(values[0], 0) * count * np.finfo(np.float64).eps
    lengths = np.sqrt(values[kept])
    return vectors[:, kept] * lengths, across @ vectors[:, kept] / lengths
