"""The whole predictivity protocol beside the loop over scikit-learn's PLS that it replaces.

    python benchmarks/predictivity.py           # as Allen: 118 images, 50 repeats, 6 areas, 8 animals, 1,700 neurons
    python benchmarks/predictivity.py --quick

Ours is `murine predictivity` itself, from the stimuli to the tables: the first four fit layers of AlexNet, 10 splits x
100 halvings, PLS with 25 components, every area of every animal apart. The loop fits `PLSRegression(scale=False)` to
the raw features of each half, as users of the field do. It runs on a fraction of the fits, which is printed, and its
time per fit is multiplied; ours is measured whole. Scores are compared fit by fit: with scikit-learn's own tolerance,
which ends the search for a component early, and with one at which it has converged.
"""

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.cross_decomposition import PLSRegression
from timing import rounded

from neural_data.arrays import read_arrays, write_arrays
from neural_data.halvings import halves_batch, seeded_orders
from neural_data.reliability import pearson, spearman_brown
from neural_data.simulate import FIELD_SIZE, SimulationConfig, simulate
from neural_data.splits import image_splits
from pretrain.models import create_model, model_info
from transfer.compared_models import checkpoints_of, compared_models, stimulus_features
from transfer.config import PredictivityConfig
from transfer.corrected_score import scoring
from transfer.neuron_groups import NeuronGroup, neuron_groups
from transfer.predictivity import predictivity
from transfer.protocol import HalvedRepeats, Source

NEURONS = 1700
CONVERGED = {"tol": 1e-14, "max_iter": 20_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two areas of two animals, one layer, few halvings")
    parser.add_argument("--sampled", type=int, default=24, help="halvings that scikit-learn fits, two fits each")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that the sampled halvings are divided into")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(rounded(compare(Path(folder), options.quick, options.sampled, options.rounds))))


def compare(folder: Path, quick: bool, sampled: int, rounds: int) -> dict[str, float]:
    config = prepare(folder, quick)
    started = time.perf_counter()
    predictivity(config)
    seconds = time.perf_counter() - started
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    groups, _ = neuron_groups(read_arrays(config.recording), config)
    features = layer_features(config)
    fits = 2 * config.splits * config.halvings * len(groups) * len(features)
    print(f"{fits:,} fits: {len(features)} layers, {len(groups)} groups, {sum(len(g.neurons) for g in groups)} neurons")
    print(f"{'murine':>14}  {seconds:9.1f} s in all, {seconds / fits * 1e3:.3f} ms per fit, peak {peak_gb:.2f} GB")

    chosen = sample(config, groups, features, sampled)
    per_fit = peer_seconds_per_fit(chosen, rounds)
    whole = per_fit * fits
    print(f"{'scikit-learn':>14}  {whole:9.0f} s in all, {per_fit * 1e3:.1f} ms per fit, on {2 * sampled} fits")
    default, converged = (difference(config, chosen, settings) for settings in ({}, CONVERGED))
    print(f"largest difference of a score: {default:.1e} with scikit-learn's tolerance, {converged:.1e} converged")
    return {
        "speedup": whole / seconds,
        "max_score_difference": converged,
        "max_score_difference_default_tolerance": default,
        "seconds": seconds,
        "peak_gb": peak_gb,
        "ms_per_fit": seconds / fits * 1e3,
    }


def prepare(folder: Path, quick: bool) -> PredictivityConfig:
    """Write a recording and a file of weights, and say how to score them."""
    areas = list(FIELD_SIZE)[: 2 if quick else 6]
    settings = SimulationConfig(
        animals=2 if quick else 8, areas=areas, neurons_per_area=36, repeats=50, dead_neurons=0
    )  # fmt: skip
    recording, _ = simulate(settings)
    kept = min(NEURONS, len(recording.neurons))
    responses = np.asarray(recording.responses)[:, :kept]
    write_arrays(replace(recording, responses=responses, neurons=recording.neurons[:kept]), folder / "recording")
    torch.manual_seed(0)
    torch.save(create_model("alexnet_bn").state_dict(), folder / "alexnet_bn.pt")
    return PredictivityConfig(
        checkpoint=str(folder / "alexnet_bn.pt"), recording=str(folder / "recording"), model="alexnet_bn",
        layers=list(model_info("alexnet_bn").fit_layers[: 1 if quick else 4]), splits=2 if quick else 10,
        halvings=10 if quick else 100, baselines=False, interanimal="none", min_reliability=-1,
        stimulus_view="whole", out=str(folder / "run"),
    )  # fmt: skip


def layer_features(config: PredictivityConfig) -> dict[str, np.ndarray]:
    """Raw features (stimuli, features) by layer."""
    model = next(iter(compared_models(checkpoints_of(config), config)))
    recording = read_arrays(config.recording)
    rows = np.arange(len(recording.stimuli))
    return stimulus_features(model, recording.stimuli, rows, model.layers, Path(config.out), config)


Halving = tuple[np.ndarray, NeuronGroup, np.ndarray, np.ndarray, int]


def sample(
    config: PredictivityConfig, groups: list[NeuronGroup], features: dict[str, np.ndarray], number: int
) -> list[Halving]:
    """Random halvings of the protocol: features of a layer, a group, train and test stimuli, the halving."""
    rng = np.random.default_rng(0)
    splits = image_splits(len(next(iter(features.values()))), config.splits, config.train_fraction)
    layers = list(features.values())
    return [
        (
            layers[rng.integers(len(layers))],
            groups[rng.integers(len(groups))],
            *splits[rng.integers(len(splits))],
            int(rng.integers(config.halvings)),
        )
        for _ in range(number)
    ]


def peer_seconds_per_fit(chosen: list[Halving], rounds: int) -> float:
    """Median over the rounds of the seconds per fit."""
    per_round = max(1, len(chosen) // rounds)
    found = []
    for first in range(0, len(chosen), per_round):
        part = chosen[first : first + per_round]
        started = time.perf_counter()
        for halving in part:
            peer_score(halving, {})
        found.append((time.perf_counter() - started) / (2 * len(part)))
    return float(np.median(found))


def peer_score(halving: Halving, settings: dict[str, float]) -> np.ndarray:
    """Scores (neurons,) of one halving with scikit-learn's regression on the raw features."""
    features, group, train, test, number = halving
    half1, half2 = (half[number] for half in halves_batch(group.responses, number + 1))

    def predict(half: np.ndarray) -> np.ndarray:
        regression = PLSRegression(25, scale=False, **settings)
        return regression.fit(features[train].astype(np.float64), half[train]).predict(features[test])

    first, second = predict(half1), predict(half2)
    ceiling = spearman_brown(pearson(first, second)) * spearman_brown(pearson(half1[test], half2[test]))
    return pearson(first, half2[test]) / np.sqrt(np.where(ceiling > 0, ceiling, np.nan))


def difference(config: PredictivityConfig, chosen: list[Halving], settings: dict[str, float]) -> float:
    """Largest difference between our scores and scikit-learn's, over all sampled halvings and neurons."""
    how = scoring(config)
    largest = 0.0
    for features, group, train, test, number in chosen:
        repeats = HalvedRepeats(group.responses, seeded_orders(config.halvings, len(group.responses))[0])
        source = Source(how.prepare(features).values)
        ours = how.score(source, repeats.halves(slice(number, number + 1)), train, test)[0]
        theirs = peer_score((features, group, train, test, number), settings)
        largest = max(largest, float(np.nanmax(np.abs(ours - theirs))))
    return largest


if __name__ == "__main__":
    main()
