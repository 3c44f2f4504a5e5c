"""Our PLS mapping beside a loop over scikit-learn's, on the same simulated recording, in one process.

Comes in: nothing; `--quick` takes fewer halvings and rounds. Goes out: a table and one line of JSON. Both sides fit the
two halves of each halving of one animal on 59 stimuli with as many features as AlexNet's first layer, and predict the
other 59. Ours goes from the features to coordinates once, which is part of its time. The limit is named by the time
that the same products of matrices alone take. JSON: the figures for 35 neurons, and those for 100 with `_100_neurons`.
"""

import argparse
import json
import warnings

import numpy as np
from sklearn.cross_decomposition import PLSRegression
from timing import median_seconds, rounded

from neural_data.reliability import halves_batch
from neural_data.simulate import SimulationConfig, simulate
from neural_data.splits import image_splits
from transfer.mapping import PLSMapping
from transfer.sample_space import sample_coordinates

COMPONENTS = 25
FEATURES = 14_400
# What a component takes on average until its matrix is of rank one.
SQUARINGS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="50 halvings and 3 rounds instead of 100 and 5")
    quick = parser.parse_args().quick
    halvings, rounds, peer_fits = (50, 3, 1) if quick else (100, 5, 4)
    print(f"{2 * halvings} fits: 59 stimuli, {FEATURES:,} features, {COMPONENTS} components; ms per fit")
    print(f"{'neurons':>8} {'murine':>10} {'scikit-learn':>13} {'products alone':>15} {'difference':>11}")
    figures = compare(35, halvings, rounds, peer_fits)
    figures |= {f"{name}_100_neurons": value for name, value in compare(100, halvings, rounds, peer_fits).items()}
    print(json.dumps(rounded(figures)))


def compare(neurons: int, halvings: int, rounds: int, peer_fits: int) -> dict[str, float]:
    """Print the row of one number of neurons; returns its figures, of the median over rounds."""
    features, responses = job(neurons, halvings)
    train, test = image_splits(len(features), 1)[0]
    fits = responses[:, train]

    def murine() -> np.ndarray:
        coordinates = sample_coordinates(features)
        return PLSMapping(COMPONENTS).fit_predict_many(coordinates[train], fits, coordinates[test])

    def scikit_learn(count: int = peer_fits, **settings: float) -> list[np.ndarray]:
        models = (PLSRegression(COMPONENTS, scale=False, **settings) for _ in range(count))
        return [
            model.fit(features[train], one).predict(features[test]) for model, one in zip(models, fits, strict=False)
        ]

    jobs = {"murine": murine, "scikit-learn": scikit_learn, "products": lambda: products(fits)}
    counts = {"murine": len(fits), "scikit-learn": peer_fits, "products": len(fits)}
    with warnings.catch_warnings():
        # scikit-learn says that it stopped before it converged.
        warnings.simplefilter("ignore")
        ours, peer, limit = (time / counts[name] for name, time in median_seconds(jobs, rounds).items())
        exact = scikit_learn(1, tol=1e-20, max_iter=20_000)[0]
    difference = np.abs(murine()[0] - exact).max() / np.abs(exact).max()
    print(f"{neurons:>8} {ours * 1e3:>10.2f} {peer * 1e3:>13.1f} {limit * 1e3:>15.2f} {difference:>11.1e}")
    return {
        "speedup": peer / ours,
        "ms_per_fit": ours * 1e3,
        "share_of_limit": limit / ours,
        "max_difference": float(difference),
    }


def job(neurons: int, halvings: int) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (stimuli, features), random filters of the stimuli, rectified, and the halves of one animal.

    The halves are (2 * halvings, stimuli, neurons).
    """
    recording, _ = simulate(SimulationConfig(animals=1, neurons_per_area=neurons, dead_neurons=0))
    half1, half2 = halves_batch(recording.repeats(recording.animals[0]).responses[:, :, :neurons], halvings)
    images = np.asarray(recording.stimuli, np.float32).reshape(len(recording.stimuli), -1)
    images = (images - images.mean()) / images.std()
    filters = np.random.default_rng(0).standard_normal((images.shape[1], FEATURES), np.float32)
    return np.maximum(images @ filters, 0), np.concatenate([half1, half2])


def products(fits: np.ndarray) -> None:
    """As many products of matrices as the components need, by the same threads, and nothing else."""
    sets, stimuli, neurons = fits.shape
    size = min(stimuli - 1, neurons)
    covariance = np.random.default_rng(0).standard_normal((sets, stimuli - 1, neurons))
    gram = np.random.default_rng(0).standard_normal((sets, size, size))

    def multiply(block: slice) -> None:
        for _ in range(COMPONENTS):
            covariance[block] @ covariance[block].mT if neurons > size else covariance[block].mT @ covariance[block]
            for _ in range(SQUARINGS):
                gram[block] @ gram[block]

    PLSMapping(COMPONENTS).share(multiply, sets, 8 * (stimuli - 1) * neurons)


if __name__ == "__main__":
    main()
