"""Predictions of fitted encoders, from a config to a run folder.

What comes in: a `PredictConfig`: one or several runs of `murine fit`, and recordings. What goes out: a run folder with
`config.yaml`, `status.json` and the predictions of every frame of every trial asked for (`prediction_folder.py`), those
of trials whose responses are withheld too. Several runs are averaged with weights, each loaded once; memory holds one
encoder and one piece. Killed and started again, predicting goes on at the piece where it was.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from neural_data.recording import Recording
from pretrain.config import AUTO
from pretrain.freed_memory import keep_freed_memory
from pretrain.progress import Meter, progress, say
from pretrain.run_folder import open_run
from transfer.compared_models import pick_accelerator
from transfer.fit_recordings import Animal, open_animals
from transfer.fitted import Fitted, fitted_file, load_fitted
from transfer.frame_statistics import part_of_trial
from transfer.normalisation import Normalisation
from transfer.normalisation_statistics import inputs_of, response_stds
from transfer.predict_config import PredictConfig
from transfer.prediction_folder import Predictions, create_predictions
from transfer.response_space import convert
from transfer.trial_prediction import TrialPredictor

# Cores that were published with windows that slide over a trial, and how these were blended. All others see whole
# trials, whatever window they were trained on.
SLIDING = {"dwiseneuro": "ones", "dwiseneuro_distillation": "ones", "dynamic_vfm": "dynamic_vfm"}
AT_A_TIME = 32

# Number and rows of what is written together.
Piece = tuple[int, np.ndarray]


def predict(config: PredictConfig) -> Path:
    """Predict, and return the run folder; the same config goes on where it was.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: one line on what is wrong with the config, a run or a recording.
    """
    if not config.runs:
        raise ValueError("runs is not set; name run folders of `murine fit`, runs=[runs/fit]")
    weights = run_weights(config)
    for path in config.runs:
        fitted_file(path)  # so that a run that is not there is not found out hours later
    first = load_fitted(config.runs[0])
    animals = animals_to_predict(config, first)
    space = config.response_space or first.response_space
    trials = {name: trials_to_predict(animal.recording, config.tiers) for name, animal in animals.items()}
    if not any(map(len, trials.values())):
        raise ValueError(f"tiers={config.tiers}: no animal has a trial of these")
    run = open_run(config, "predict", "predict")
    facts = {
        "response_space": space,
        "dynamic": next(iter(animals.values())).recording.dynamic,
        "runs": [str(Path(path).expanduser().resolve()) for path in config.runs],
        "weights": weights,
        "max_frames": config.max_frames or first.max_frames,
        "animals": {
            name: {"recording": str(Path(animal.path).resolve()), "name": animal.recording.name}
            for name, animal in animals.items()
        },
    }
    predictions = create_predictions(
        run.path, facts, trials, {name: animal.neuron_ids for name, animal in animals.items()}
    )
    device = pick_accelerator(config.accelerator)
    batch_size = batch_size_of(config, device, facts["dynamic"])
    if device == "cpu":
        keep_freed_memory()
    run.status(device=device, trials={name: len(table) for name, table in trials.items()})
    with progress("predict", len(weights) * sum(map(len, trials.values()))) as meter:
        for number, path in enumerate(config.runs):
            fitted = first if number == 0 else load_fitted(path)
            require_animals(fitted, animals)
            predictor = make_predictor(fitted, config, device, batch_size)
            predict_with(predictor, fitted, number, weights[number], animals, predictions, meter)
    run.status(state="finished")
    return run.path


def run_weights(config: PredictConfig) -> list[float]:
    """Weights of the runs, of sum 1. Raises ValueError where there are not as many as runs, or all are 0."""
    weights = config.weights or [1.0] * len(config.runs)
    if len(weights) != len(config.runs) or not sum(weights) > 0:
        raise ValueError(f"weights={config.weights}: expected {len(config.runs)} of them, one per run, not all 0")
    return [weight / sum(weights) for weight in weights]


def animals_to_predict(config: PredictConfig, fitted: Fitted) -> dict[str, Animal]:
    """The recordings of the animals, from where they were fitted unless the config says where.

    Raises ValueError where an animal is not in the fit, or has other neurons."""
    names = config.animals or fitted.animals
    if absent := [name for name in names if name not in fitted.animals]:
        raise ValueError(f"animals: {fitted.path} has no {absent[0]!r}; it has {', '.join(fitted.animals)}")
    paths = [config.recording] if config.recording else dict.fromkeys(fitted.recordings[name] for name in names)
    found = open_animals(paths, names, config.max_frames or fitted.max_frames)
    found = {name: found[name] for name in names}
    require_animals(fitted, found)
    return found


def require_animals(fitted: Fitted, animals: dict[str, Animal]) -> None:
    """Fail where a run lacks an animal, or knows it with other neurons."""
    for name, animal in animals.items():
        if name not in fitted.animals:
            raise ValueError(
                f"{fitted.path} has no animal {name!r}, which the other runs have; choose animals=[...] that all have"
            )
        if fitted.neuron_ids[name] != animal.neuron_ids:
            raise ValueError(
                f"{animal.path}: animal {name!r} has {len(animal.neuron_ids)} neurons that are not those of "
                f"{fitted.path}, which has {len(fitted.neuron_ids[name])}, or in another order"
            )


def trials_to_predict(recording: Recording, tiers: Sequence[str]) -> pd.DataFrame:
    """`row`, `tier` and `frames` of the trials of some tiers, by default all but "none"."""
    tier = recording.trials["tier"]
    chosen = tier.isin(list(tiers)) if tiers else tier != "none"
    rows = np.flatnonzero(chosen.to_numpy() & (recording.frames > 0))
    return pd.DataFrame({"row": rows, "tier": tier.to_numpy()[rows], "frames": recording.frames[rows]})


def batch_size_of(config: PredictConfig, device: str, dynamic: bool) -> int:
    """How many windows, trials or images are predicted at a time."""
    if config.batch_size != AUTO:
        return config.batch_size
    return 1 if device == "cpu" and dynamic else AT_A_TIME


def predict_with(
    predictor: TrialPredictor,
    fitted: Fitted,
    number: int,
    weight: float,
    animals: dict[str, Animal],
    predictions: Predictions,
    meter: Meter,
) -> None:
    """Add what one run predicts to the pieces that do not have it yet; the next ones are read meanwhile."""
    say(f"run {number + 1} of {len(predictions.facts['runs'])}: {fitted.path}, {described(predictor)}")
    for name, animal in animals.items():
        work = AnimalOfRun(predictor, fitted, name, animal.recording, predictions, number, weight)
        left = [piece for piece in work.own.pieces() if work.own.done(piece[0]) <= number]
        meter.advance(len(work.own.trials) - sum(len(rows) for _, rows in left))
        size = predictor.batch_size if predictions.dynamic and not predictor.window else 1
        groups = [left[first : first + size] for first in range(0, len(left), size)]
        with ThreadPoolExecutor(1) as reader:
            coming = [reader.submit(work.read, groups[0])] if groups else []
            for place, pieces in enumerate(groups):
                trials = coming.pop().result()
                if place + 1 < len(groups):
                    coming.append(reader.submit(work.read, groups[place + 1]))
                work.add(pieces, trials)
                meter.advance(len(trials))


def make_predictor(fitted: Fitted, config: PredictConfig, device: str, batch_size: int) -> TrialPredictor:
    """The predictor of a run, with windows as published unless the config says otherwise."""
    plan = fitted.plan
    sliding = config.window == "sliding" or (config.window == "auto" and fitted.spec.core in SLIDING)
    if sliding and plan.whole and config.window == "sliding":
        raise ValueError(f"window=sliding: {fitted.path} was fitted on whole trials or images, which have no windows")
    blending = SLIDING.get(fitted.spec.core, "ones") if config.blending == "auto" else config.blending
    window = plan.frames if sliding and not plan.whole else 0
    return TrialPredictor(fitted.encoder, window, plan.stride, blending, batch_size, device, config.precision)


def described(predictor: TrialPredictor) -> str:
    """How a run predicts, for people."""
    if not predictor.window:
        return "whole trials"
    return f"windows of {predictor.window} frames with stride {predictor.stride}, blended as {predictor.blending}"


class AnimalOfRun:
    """One animal of one run of an ensemble: reads its trials, predicts them, and adds them to the pieces."""

    def __init__(
        self,
        predictor: TrialPredictor,
        fitted: Fitted,
        animal: str,
        recording: Recording,
        predictions: Predictions,
        number: int,
        weight: float,
    ) -> None:
        self.predictor, self.animal, self.recording = predictor, animal, recording
        self.normalisation = fitted.normalisations[animal]
        self.own, self.number, self.weight = predictions.animals[animal], number, weight
        self.source, self.target = fitted.response_space, predictions.response_space
        self.std = dict(self.normalisation.std_by_space)
        absent = [space for space in (self.source, self.target) if space != "raw" and space not in self.std]
        if self.source != self.target and absent:
            self.std |= response_stds(recording, train_rows(recording), absent)

    def read(self, pieces: list[Piece]) -> list[dict[str, np.ndarray]]:
        """The trials of some pieces, as the encoder sees them."""
        return [shown(self.recording, self.normalisation, int(row)) for _, rows in pieces for row in rows]

    def add(self, pieces: list[Piece], trials: list[dict[str, np.ndarray]]) -> None:
        """Predict and write pieces: of videos with one trial each, of images one piece of many."""
        if self.own.dynamic:
            predicted = self.predictor.video(self.animal, trials)
        else:
            predicted = [self.predictor.images(self.animal, trials).T]
        for (piece, _), values in zip(pieces, predicted, strict=True):
            frames = np.arange(values.shape[1]) if self.own.dynamic else np.zeros(values.shape[1], np.int64)
            values = self.weight * convert(values, frames, self.source, self.target, self.std)
            self.own.add(piece, values if self.own.dynamic else values.T, self.number)


def train_rows(recording: Recording) -> np.ndarray:
    """Rows of tier "train" with responses, or of all tiers where there is no such tier."""
    tier = recording.trials["tier"].to_numpy()
    usable = ~recording.withheld & (tier != "none") & (recording.frames > 0)
    train = usable & (tier == "train")
    return np.flatnonzero(train if train.any() else usable)


def shown(recording: Recording, normalisation: Normalisation, row: int) -> dict[str, np.ndarray]:
    """What an encoder sees of a trial; responses are not read."""
    frames = int(recording.frames[row])
    parts = {part: part_of_trial(recording, part, row, frames) for part in inputs_of(recording)}
    if not recording.video:
        return normalisation.apply({name: part[0] if name == "images" else part[:, 0] for name, part in parts.items()})
    # What was recorded once in a trial is the same in all of its frames.
    signals = {name: np.broadcast_to(part, (len(part), frames)) for name, part in parts.items() if name != "video"}
    return normalisation.apply(parts | signals, np.arange(frames))
