"""Random splits of the stimuli into train and test, as mouse-vision makes them.

Comes in: the number of stimuli. Goes out: pairs of index arrays (train, test) that share no stimulus. Source:
Nayebi, Kong et al., PLOS Comput Biol 19(10):e1011506, 2023; their code's rule: split s permutes the stimuli
with the legacy generator seeded s, and the first ceil(train_fraction * stimuli) are train.
"""

import math

import numpy as np


def image_splits(
    n_stimuli: int, n_splits: int = 10, train_fraction: float = 0.5
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`n_splits` pairs (train, test) of int64 stimulus indices; the defaults are the published ones.

    Raises ValueError where a split would have no train or no test stimulus.
    """
    if n_splits < 1:
        raise ValueError(f"n_splits must be at least 1, found {n_splits}")
    # Rounded first: 0.55 * 20 is 11.000000000000002 in binary, and must give 11.
    n_train = math.ceil(round(train_fraction * n_stimuli, 9))
    if not 0 < n_train < n_stimuli:
        raise ValueError(
            f"train_fraction {train_fraction} of {n_stimuli} stimuli is {n_train} train stimuli: "
            "at least one train and one test stimulus are needed"
        )
    permutations = [np.random.RandomState(s).permutation(n_stimuli) for s in range(n_splits)]
    return [(order[:n_train], order[n_train:]) for order in permutations]
