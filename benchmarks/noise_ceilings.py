"""By how much each noise ceiling is off, against the number of repeats, on simulated neurons whose truth is known.

Comes in: nothing; `--quick` takes fewer neurons and draws, `--write FILE` puts the tables into a Markdown file, between
its lines `<!-- tables -->` and `<!-- end of tables -->`. Goes out: the tables, and one line of JSON. Poisson spikes are
drawn anew from the rates of two simulated populations; intervals are tested on Poisson neurons whose rates are drawn
from a gamma distribution, so that the truth is that of all stimuli of their kind.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from neural_data.bootstrap import bootstrap_interval
from neural_data.correlation import pearson
from neural_data.explainable_variance import explainable_fraction, feve
from neural_data.halvings import halves_batch
from neural_data.noise_correction import noise_corrected
from neural_data.oracle import oracle_conservative, oracle_jackknife
from neural_data.reliability import split_half_reliability
from neural_data.signal_power import (
    cc_max,
    cc_norm,
    noise_power,
    signal_power,
    single_trial_ceiling,
    unbiased_r_squared,
)
from neural_data.simulate import SimulationConfig, simulate

REPEATS = (2, 3, 5, 10, 20, 50)
STIMULI = 118
POPULATIONS = {"weak": 0.8, "strong": 0.98}  # median reliability of the mean over 50 repeats
MODEL_R = 0.8  # correlation of the model whose predictions are scored with the true rates
LEVEL = 0.95
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="60 neurons and 1 draw instead of 500 and 20")
    parser.add_argument("--write", type=Path, metavar="FILE", help="Markdown file to put the tables into")
    options = parser.parse_args()
    neurons, draws = (60, 1) if options.quick else (500, 20)
    tables, at_50 = [], {}
    for name, reliability in POPULATIONS.items():
        errors = population_errors(reliability, neurons, draws)
        tables.append(bias_table(name, errors))
        means = {estimate.removesuffix(", median"): np.nanmean(by[50]) for estimate, by in errors.items()}
        at_50 |= {f"{name}, {estimate}": round(float(mean), 5) for estimate, mean in means.items()}
    tables.append(interval_table(neurons, resamples=100 if options.quick else 1000))
    text = "\n\n".join(tables)
    print(text)
    if options.write:
        write_between_marks(options.write, text)
    print(json.dumps({"neurons": neurons, "draws": draws, "bias_at_50": at_50}))


def population_errors(reliability: float, neurons: int, draws: int) -> dict[str, dict[int, np.ndarray]]:
    """Estimate less truth, (draws x neurons,), by the estimate's name and the number of repeats."""
    config = SimulationConfig(
        animals=1, areas=["VISp"], neurons_per_area=neurons, dead_neurons=0.0, stimuli=STIMULI, repeats=50, size=32,
        reliability=reliability,
    )  # fmt: skip
    rates = simulate(config)[1].rates
    rng = np.random.default_rng(0)
    predictions = noisy_model(rates, rng)
    errors: dict[str, dict[int, list[np.ndarray]]] = {}
    for _ in range(draws):
        spikes = rng.poisson(rates, (max(REPEATS), *rates.shape)).astype(float)
        for repeats in REPEATS:
            for name, error in estimate_errors(spikes[:repeats], rates, predictions).items():
                errors.setdefault(name, {}).setdefault(repeats, []).append(error)
    return {name: {r: np.concatenate(parts) for r, parts in by.items()} for name, by in errors.items()}


def noisy_model(rates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Predictions whose correlation with the rates is MODEL_R for every neuron, and whose errors are the rest."""
    signal = rates - rates.mean(axis=0)
    noise = rng.normal(size=rates.shape)
    noise -= noise.mean(axis=0)
    noise -= signal * (noise * signal).sum(axis=0) / (signal**2).sum(axis=0)
    noise *= np.linalg.norm(signal, axis=0) / np.linalg.norm(noise, axis=0)
    return rates.mean(axis=0) + MODEL_R * (MODEL_R * signal + np.sqrt(1 - MODEL_R**2) * noise)


def estimate_errors(responses: np.ndarray, rates: np.ndarray, predictions: np.ndarray) -> dict[str, np.ndarray]:
    """Estimate less what it is taken for, (neurons,), by name; of powers as a share of the truth."""
    repeats = len(responses)
    signal, noise = rates.var(axis=0, ddof=1), rates.mean(axis=0)
    reliability, fraction = signal / (signal + noise / repeats), signal / (signal + noise)
    half1, half2 = halves_batch(responses, 20)
    perfect = (pearson(rates, half2, axis=-2), 1.0, pearson(half1, half2, axis=-2))
    return {
        "`split_half_reliability`": split_half_reliability(responses) - reliability,
        "`cc_max` squared": cc_max(responses) ** 2 - reliability,
        "`cc_max`": cc_max(responses) - np.sqrt(reliability),
        "`single_trial_ceiling`": single_trial_ceiling(responses) - np.sqrt(fraction),
        "`oracle_jackknife`": oracle_jackknife(responses) - np.sqrt(fraction),
        "`oracle_conservative`": oracle_conservative(responses) - np.sqrt(fraction),
        "`explainable_fraction` (FEV)": explainable_fraction(responses) - fraction,
        "`signal_power`, relative": signal_power(responses) / signal - 1,
        "`noise_power`, relative": noise_power(responses) / noise - 1,
        "`feve`, FEV at least 0.15": feve(responses, predictions) - MODEL_R**2,
        "`cc_norm`, median": cc_norm(responses, predictions) - MODEL_R,
        "`unbiased_r_squared`, median": unbiased_r_squared(responses, predictions) - MODEL_R**2,
        "`noise_corrected` of the true rates, median": nan_mean(noise_corrected(*perfect)) - 1,
    }


def nan_mean(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)


def bias_table(population: str, errors: dict[str, dict[int, np.ndarray]]) -> str:
    """Mean error and, in brackets, the root mean square error of one neuron, or medians of both; and what share of the
    neurons has no value."""
    rows = [[name, *(cell(by[repeats], "median" in name) for repeats in REPEATS)] for name, by in errors.items()]
    reliability = POPULATIONS[population]
    return table(f"**{population.capitalize()} neurons**: median reliability {reliability} at 50 repeats.", rows)


def cell(errors: np.ndarray, median: bool) -> str:
    known = errors[~np.isnan(errors)]
    undefined = 1 - len(known) / len(errors)
    if undefined > 0.95:
        return f"{undefined:.0%} undefined"
    middle, size = (np.median(known), np.median(np.abs(known))) if median else (known.mean(), rms(known))
    return f"{middle:+.3f} ({size:.3f})" + (f", {undefined:.0%} undefined" if undefined >= 0.005 else "")


def rms(errors: np.ndarray) -> float:
    return float(np.sqrt((errors**2).mean()))


def interval_table(neurons: int, resamples: int) -> str:
    """How often an interval of one neuron holds the truth of all stimuli, not only of those that were shown."""
    rng = np.random.default_rng(1)
    shape = (max(REPEATS), STIMULI, neurons)
    signal = rng.uniform(0.05, 1, size=neurons)
    gaussian = np.sqrt(signal) * rng.normal(size=shape[1:]) + rng.normal(size=shape)
    # An exponential distribution of rates: mean and noise g, signal g^2, so that the ratio of the two is g again.
    spikes = rng.poisson(signal * rng.exponential(size=shape[1:]), shape).astype(float)
    rows = []
    for tuning, responses in {"normal": gaussian, "exponential": spikes}.items():
        for name, (estimate, truth) in interval_estimates(signal).items():
            covered = []
            for repeats in REPEATS:
                found = bootstrap_interval(estimate, responses[:repeats], level=LEVEL, resamples=resamples)
                right = (found.low <= truth(repeats)) & (truth(repeats) <= found.high)
                covered.append(f"{right.mean():.0%}")
            rows.append([f"{name}, {tuning} tuning", *covered])
    return table(f"**Intervals**: share of {LEVEL:.0%} intervals that hold the truth, {resamples:,} resamples.", rows)


def interval_estimates(ratio: np.ndarray) -> dict[str, tuple[Callable[..., np.ndarray], Callable[[int], np.ndarray]]]:
    """Estimates by name, and their truth by the number of repeats, for ratios (neurons,) of signal to noise."""
    fraction = ratio / (ratio + 1)
    return {
        "`split_half_reliability`": (
            functools.partial(split_half_reliability, halvings=20),
            lambda repeats: ratio / (ratio + 1 / repeats),
        ),
        "`cc_max`": (cc_max, lambda repeats: np.sqrt(ratio / (ratio + 1 / repeats))),
        "`single_trial_ceiling`": (single_trial_ceiling, lambda _: np.sqrt(fraction)),
        "`explainable_fraction`": (explainable_fraction, lambda _: fraction),
    }


def table(title: str, rows: list[list[str]]) -> str:
    header = ["estimate", *(f"{repeats} repeats" for repeats in REPEATS)]
    lines = [header, ["---"] * len(header), *rows]
    return title + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_between_marks(path: Path, text: str) -> None:
    page = path.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: expected a line {BEGIN} and after it a line {END}")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
