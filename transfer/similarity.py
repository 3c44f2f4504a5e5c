"""How alike two populations arrange the same stimuli: RSA and linear CKA, for many sets of responses at once.

What comes in: responses or features (..., stimuli, neurons), leading axes such as halvings. What goes out: similarity
(...), float64. No mapping is fitted.

RSA: Pearson correlation between the dissimilarities, 1 - Pearson r between the responses to two stimuli, of all pairs
of stimuli (Kriegeskorte et al. 2008, https://doi.org/10.3389/neuro.06.004.2008), as in mouse-vision. CKA: the cosine
between matrices of products of stimuli, centred (Kornblith et al. 2019, https://arxiv.org/abs/1905.00414), or, without
the bias that many neurons and few stimuli give, U-centred, which is CKA with the unbiased HSIC of Song et al. (2012,
JMLR 13:1393-1434; Nguyen et al. 2021, https://arxiv.org/abs/2010.15327; Szekely and Rizzo 2014,
https://doi.org/10.1214/14-AOS1255).
"""

import numpy as np

from neural_data.reliability import pearson
from transfer.sample_space import feature_blocks

# Features of a block, so that a memory map is never read whole.
BLOCK_FEATURES = 4096


def rsa(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """RSA (...) of two populations (..., stimuli, neurons), whose leading axes broadcast.

    NaN where a stimulus has the same response of all neurons. Raises ValueError where the stimuli differ in number.
    """
    check_stimuli(first, second, fewest=3)
    return rsa_of_dissimilarities(dissimilarities(first), dissimilarities(second))


def rsa_of_dissimilarities(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """RSA (...) from dissimilarities (..., stimuli, stimuli): those of a layer are computed once, for every subset."""
    return pearson(pairs(first), pairs(second), axis=-1)


def dissimilarities(responses: np.ndarray) -> np.ndarray:
    """1 - Pearson r over neurons, for each two stimuli: (..., stimuli, neurons) to (..., stimuli, stimuli)."""
    # A shift of all responses to a stimulus changes nothing; after this one no digits are lost to a large mean.
    shift = np.asarray(responses[..., :BLOCK_FEATURES], np.float64).mean(-1, keepdims=True)
    products, sums = 0.0, 0.0
    for block in feature_blocks(responses, BLOCK_FEATURES):
        block = block - shift
        products = products + block @ block.mT
        sums = sums + block.sum(-1)
    products = products - sums[..., :, None] * sums[..., None, :] / responses.shape[-1]
    length = np.sqrt(np.maximum(products.diagonal(0, -2, -1), 0))
    # Where all neurons respond alike nothing but rounding is left, which is no correlation.
    nothing = length <= 1e-12 * np.sqrt(np.square(shift[..., 0]) * responses.shape[-1])
    length = np.where(nothing, np.nan, length)
    return 1 - np.clip(products / (length[..., :, None] * length[..., None, :]), -1, 1)


def cka(first: np.ndarray, second: np.ndarray, unbiased: bool = False) -> np.ndarray:
    """Linear CKA (...) of two populations (..., stimuli, neurons), whose leading axes broadcast.

    The unbiased one is 0 on average where there is nothing in common, and so at times negative; it needs 4 stimuli.
    Coordinates of a layer (`sample_space.py`) can stand for its features. NaN where a population does not vary.
    """
    check_stimuli(first, second, fewest=4 if unbiased else 2)
    centred = u_centred if unbiased else double_centred
    return cosine(centred(products_between(first)), centred(products_between(second)))


def products_between(responses: np.ndarray) -> np.ndarray:
    """Products (..., stimuli, stimuli) between stimuli of (..., stimuli, neurons), each neuron minus its mean."""
    products = 0.0
    for block in feature_blocks(responses, BLOCK_FEATURES):
        block = block - block.mean(-2, keepdims=True)
        products = products + block @ block.mT
    return products


def double_centred(products: np.ndarray) -> np.ndarray:
    """Of neurons that have mean 0, products are centred; this takes away what rounding left."""
    products = products - products.mean(-1, keepdims=True)
    return products - products.mean(-2, keepdims=True)


def u_centred(products: np.ndarray) -> np.ndarray:
    """U-centred products: diagonal 0, and sums of rows and columns 0 without it."""
    stimuli = products.shape[-1]
    off_diagonal = np.where(np.eye(stimuli, dtype=bool), 0.0, products)
    rows = off_diagonal.sum(-1, keepdims=True) / (stimuli - 2)
    total = rows.sum(-2, keepdims=True) / (stimuli - 1)
    return np.where(np.eye(stimuli, dtype=bool), 0.0, off_diagonal - rows - rows.mT + total)


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine (...) between matrices (..., n, n); NaN where one is zero."""
    shared = (first * second).sum((-2, -1))
    lengths = np.linalg.norm(first, axis=(-2, -1)) * np.linalg.norm(second, axis=(-2, -1))
    return np.divide(shared, lengths, out=np.full(np.shape(lengths), np.nan), where=lengths > 0)


def pairs(matrices: np.ndarray) -> np.ndarray:
    """The entries (..., pairs) above the diagonal of (..., stimuli, stimuli)."""
    rows, columns = np.triu_indices(matrices.shape[-1], k=1)
    return matrices[..., rows, columns]


def check_stimuli(first: np.ndarray, second: np.ndarray, fewest: int) -> None:
    shapes = np.shape(first), np.shape(second)
    if min(map(len, shapes)) < 2 or shapes[0][-2] != shapes[1][-2] or shapes[0][-2] < fewest:
        raise ValueError(
            f"similarity needs two arrays (..., stimuli, neurons) for the same {fewest} or more stimuli, "
            f"found {shapes[0]} and {shapes[1]}"
        )
