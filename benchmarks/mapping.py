"""Our PLS mapping beside a loop over scikit-learn's, on the same simulated recording, in one process.

Comes in: nothing; `--quick` takes fewer halvings and rounds. Goes out: a table and one line of JSON. Both sides fit the
two halves of each halving of one animal on 59 stimuli of AlexNet's size of features and predict the other 59. The limit
is named by the time that the same products of matrices alone take.
"""

import argparse
import json

import numpy as np
import torch
from sklearn.cross_decomposition import PLSRegression
from timing import median_seconds, rounded

from neural_data.reliability import halves_batch
from neural_data.simulate import SimulationConfig, simulate
from neural_data.splits import image_splits
from transfer.mapping import SQUARINGS, PLSMapping

COMPONENTS = 25
FEATURES = 3456


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 halvings and 3 rounds instead of 100 and 5")
    quick = parser.parse_args().quick
    halvings, rounds, peer_fits = (4, 3, 2) if quick else (100, 5, 10)
    features, responses = job(halvings)
    train, test = image_splits(len(features), 1)[0]
    x, x_test = features[train], features[test]
    fits = responses[:, train]

    jobs = {
        "murine": lambda: PLSMapping(COMPONENTS).fit_predict_many(x, fits, x_test),
        "scikit-learn": lambda: [scikit_learn(x, one, x_test) for one in fits[:peer_fits]],
        "matrix products alone": lambda: products(fits),
    }
    counts = {"murine": len(fits), "scikit-learn": peer_fits, "matrix products alone": len(fits)}
    seconds = {name: time_of_job / counts[name] for name, time_of_job in median_seconds(jobs, rounds).items()}
    ours, peer, limit = seconds.values()
    exact = scikit_learn(x, fits[0], x_test, tol=1e-14, max_iter=5000)
    difference = np.abs(PLSMapping(COMPONENTS).fit(x, fits[0]).predict(x_test) - exact).max() / np.abs(exact).max()

    print(f"{len(fits)} fits: {len(x)} stimuli, {FEATURES} features, {fits.shape[2]} neurons, {COMPONENTS} components")
    for name, per_fit in seconds.items():
        print(f"{name:>22}  {per_fit * 1e3:9.2f} ms per fit")
    figures = {
        "speedup": peer / ours,
        "ms_per_fit": ours * 1e3,
        "share_of_limit": limit / ours,
        "max_difference": difference,
    }
    print(json.dumps(rounded(figures)))


def job(halvings: int) -> tuple[np.ndarray, np.ndarray]:
    """Random features (stimuli, features) and the halves (2 * halvings, stimuli, neurons) of one simulated animal."""
    recording, _ = simulate(SimulationConfig(animals=1, neurons_per_area=100))
    half1, half2 = halves_batch(recording.repeats(recording.animals[0]).responses, halvings)
    features = np.random.default_rng(0).standard_normal((len(recording.stimuli), FEATURES))
    return features, np.concatenate([half1, half2])


def scikit_learn(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, **settings: float) -> np.ndarray:
    return PLSRegression(COMPONENTS, scale=False, **settings).fit(x, y).predict(x_test)


def products(fits: np.ndarray) -> None:
    """As many products of matrices as the squarings need, and nothing else."""
    square = torch.rand(len(fits), fits.shape[1] - 1, fits.shape[1] - 1, dtype=torch.float64)
    for _ in range(SQUARINGS * COMPONENTS):
        square @ square


if __name__ == "__main__":
    main()
