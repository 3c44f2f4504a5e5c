"""How well each layer of a model predicts recorded neurons, as a share of what can be predicted.

What comes in: a checkpoint and a `Recording`. What goes out: a run folder with `neurons.parquet` (score of every neuron
by model and layer), `predictivity.csv` and `.parquet` (median and interval by layer, area and animal), and
`excluded.csv` (neurons that were not scored, and why). Splits, halvings and the score corrected for the reliability of
the neuron and of the prediction are mouse-vision's (Nayebi, Kong et al. 2023, PLOS Comput Biol 19(10):e1011506).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from neural_data.arrays import read_arrays
from neural_data.recording import Recording
from neural_data.reliability import halves_batch, pearson, spearman_brown, split_half_reliability
from neural_data.splits import image_splits
from pretrain.checkpoint import TrainedBackbone, load_trained_backbone
from pretrain.durable import write_atomically
from pretrain.models import create_model, model_info
from pretrain.progress import progress, say
from pretrain.run_folder import RunFolder, open_run
from transfer.config import PredictivityConfig
from transfer.features import prepare_stimuli, stimulus_features
from transfer.mapping import PLSMapping
from transfer.summary import best_layer_score, summarise

SILENT, UNRELIABLE, UNSCORED = "silent", "unreliable", "unscored"
# Halvings that are mapped at once; both halves of each are one set of responses.
BLOCK_HALVINGS = 25


@dataclass(frozen=True)
class AnimalData:
    """The repeated responses of one animal, ready for scoring.

    `half1`, `half2` float64 (halvings, stimuli, neurons) of the neurons that are scored; `stimuli` and `neurons` are
    rows of the recording; `reliability` (neurons,); `excluded` lists the other neurons and why.
    """

    animal: str
    half1: np.ndarray
    half2: np.ndarray
    stimuli: np.ndarray
    neurons: np.ndarray
    reliability: np.ndarray
    excluded: pd.DataFrame


def predictivity(config: PredictivityConfig) -> Path:
    """Score every fit layer, and the baselines, on a recording; the same config resumes the same run folder.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: one line on what is wrong with the config or the data.
    """
    for key in ("checkpoint", "recording"):
        if getattr(config, key) is None:
            raise ValueError(f"{key} is not set; see `murine predictivity --help`")
    trained = load_trained_backbone(config.checkpoint, config.model)
    recording = read_arrays(config.recording)
    animals = [animal_data(recording, animal, config) for animal in recording.animals]
    layers = config.layers or list(model_info(trained.spec.name).fit_layers)
    features = model_features(trained, recording, layers, config)
    run = open_run(config, "predictivity", "predictivity")
    inputs = {"checkpoint": str(trained.path), "recording_sha256": content_hash(recording)}
    require_same_inputs(run, inputs)
    run.status(
        **inputs, recording=recording.name, checkpoint_epoch=trained.epoch, checkpoint_step=trained.step,
        stimuli=len(recording.stimuli), device=pick_accelerator(config.accelerator),
    )  # fmt: skip
    say(recording.summary())
    excluded = pd.concat([data.excluded for data in animals], ignore_index=True)
    say_excluded(excluded, animals)
    scores = score_all(run, features, [data for data in animals if len(data.neurons)], recording, config)
    write_tables(run, scores, excluded, features, config)
    return run.path


def require_same_inputs(run: RunFolder, inputs: dict[str, str]) -> None:
    """Refuse to mix scores: a pretraining can have gone on, or a recording changed, since the run folder was made."""
    for name, value in inputs.items():
        before = run.facts.get(name)
        if before not in (None, value):
            raise FileExistsError(f"{run.path} holds scores of {name} {before}, not of {value}; choose another out=")


def content_hash(recording: Recording) -> str:
    """SHA-256 of stimuli, trials, responses and neurons, so that an edited file is not taken for the one before."""
    digest = hashlib.sha256()
    for array in (recording.stimuli, recording.responses):
        for part in array:
            digest.update(np.ascontiguousarray(part).data)
    for table in (recording.trials, recording.neurons):
        digest.update(table.to_csv(index=False).encode())
    return digest.hexdigest()


def animal_data(recording: Recording, animal: str, config: PredictivityConfig) -> AnimalData:
    """Select an animal's repeated stimuli and reliable neurons, and halve its repeats."""
    repeated = recording.repeats(animal)
    presented = np.isfinite(repeated.responses).any(2).sum(0)
    twice = presented >= 2
    if twice.sum() < 4:
        raise ValueError(
            f"{recording.name}: animal {animal!r} saw {int(twice.sum())} stimuli at least twice; "
            "a split into train and test stimuli and of the repeats into halves needs 4"
        )
    if not twice.all():
        say(f"animal {animal}: {int((~twice).sum())} stimuli that it saw only once are left out")
    responses = repeated.responses[:, twice]
    reason, reliability = exclusions(responses, config)
    kept = reason == ""
    if kept.any():
        half1, half2 = halves_batch(responses[:, :, kept], config.halvings)
    else:
        say(f"animal {animal}: no neuron can be scored")
        half1 = half2 = np.zeros((config.halvings, responses.shape[1], 0))
    excluded = recording.neurons.iloc[repeated.neurons[~kept]][["neuron_id", "animal", "area"]].assign(
        reason=reason[~kept], reliability=reliability[~kept]
    )
    return AnimalData(
        animal, half1, half2, repeated.stimuli[twice], repeated.neurons[kept], reliability[kept], excluded
    )


def exclusions(responses: np.ndarray, config: PredictivityConfig) -> tuple[np.ndarray, np.ndarray]:
    """Why each neuron of (repeats, stimuli, neurons) is left out ("" if it is not), and its reliability.

    A neuron is silent if it has the same response to everything, unreliable below `min_reliability`, and unscored if a
    response is missing in all repeats of a half, so that no mapping can be fitted to it.
    """
    # These pass over NaN, and do not warn where there is nothing else.
    silent = np.fmax.reduce(responses, (0, 1)) == np.fmin.reduce(responses, (0, 1))
    reliability = split_half_reliability(responses, config.halvings)
    missing = np.zeros(len(silent), bool)
    if np.isnan(responses).any():
        missing = np.isnan(np.stack(halves_batch(responses, config.halvings))).any((0, 1, 2))
    # In this order a silent neuron, whose reliability is undefined, is called silent.
    reason = np.select(
        [silent, missing, ~(reliability >= config.min_reliability)], [SILENT, UNSCORED, UNRELIABLE], default=""
    )
    return reason, reliability


def model_features(
    trained: TrainedBackbone, recording: Recording, layers: list[str], config: PredictivityConfig
) -> dict[tuple[str, str], np.ndarray]:
    """Features (stimuli, features) by (model, layer): trained, and the baselines random and pixels."""
    device = torch.device(pick_accelerator(config.accelerator))
    inputs = prepare_stimuli(np.asarray(recording.stimuli), trained.spec, config.stimulus_view)
    features = stimulus_features(trained.backbone.to(device), inputs, layers)
    found = {("trained", layer): values for layer, values in features.items()}
    if config.baselines:
        torch.manual_seed(config.seed)
        untrained = create_model(trained.spec.name, **trained.spec.args).to(device)
        features = stimulus_features(untrained, inputs, layers)
        found |= {("random", layer): values for layer, values in features.items()}
        found["pixels", "pixels"] = inputs.flatten(1).numpy()
    return found


def pick_accelerator(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def say_excluded(excluded: pd.DataFrame, animals: list[AnimalData]) -> None:
    scored = sum(len(data.neurons) for data in animals)
    if scored == 0:
        raise ValueError("no neuron is reliable enough to be scored; lower min_reliability, or check the recording")
    counts = excluded["reason"].value_counts()
    parts = [f"{counts[reason]:,} {reason}" for reason in (SILENT, UNRELIABLE, UNSCORED) if reason in counts]
    say(f"{scored:,} neurons are scored; excluded: {', '.join(parts) or 'none'}")


def score_all(
    run: RunFolder,
    features: dict[tuple[str, str], np.ndarray],
    animals: list[AnimalData],
    recording: Recording,
    config: PredictivityConfig,
) -> pd.DataFrame:
    """Score of every neuron by model and layer; a (model, layer) that is finished is read back from `pieces/`."""
    pieces = run.path / "pieces"
    pieces.mkdir(exist_ok=True)
    tables = []
    total = len(features) * len(animals) * config.splits
    with progress("predictivity", total) as meter:
        for (model, layer), values in features.items():
            piece = pieces / f"{model}-{layer.replace('/', '_')}.parquet"
            if piece.exists():
                tables.append(pd.read_parquet(piece))
                meter.advance(len(animals) * config.splits, f"{model} {layer}")
                continue
            parts = []
            for data in animals:
                scores = np.zeros((config.splits, len(data.neurons)))
                for number, split_score in enumerate(score_splits(values[data.stimuli], data, config)):
                    scores[number] = split_score
                    meter.advance(1, f"{model} {layer}, animal {data.animal}")
                neurons = recording.neurons.iloc[data.neurons][["neuron_id", "animal", "area"]]
                parts.append(
                    neurons.assign(
                        model=model, layer=layer, score=mean_of_defined(scores), reliability=data.reliability
                    )
                )
            table = pd.concat(parts, ignore_index=True)
            write_atomically(piece, table.to_parquet)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def score_splits(features: np.ndarray, data: AnimalData, config: PredictivityConfig) -> Iterator[np.ndarray]:
    """The score (neurons,) of each split, mean over the halvings.

    `features` (stimuli, features) are those of the animal's stimuli.
    """
    for train, test in image_splits(len(features), config.splits, config.train_fraction):
        blocks = []
        for first in range(0, config.halvings, BLOCK_HALVINGS):
            half1, half2 = (half[first : first + BLOCK_HALVINGS] for half in (data.half1, data.half2))
            blocks.append(score_halvings(features, half1, half2, train, test, config.components))
        yield mean_of_defined(np.concatenate(blocks))


def score_halvings(
    features: np.ndarray, half1: np.ndarray, half2: np.ndarray, train: np.ndarray, test: np.ndarray, components: int
) -> np.ndarray:
    """Noise-corrected scores (halvings, neurons) of features (stimuli, features).

    With mappings M1, M2 fitted to the train stimuli of half 1 and half 2, and on the test stimuli
    score = r(M1(x), s2) / sqrt(SB(r(M1(x), M2(x))) SB(r(s1, s2))), SB(r) = 2 r / (1 + r). It is NaN where the product
    under the root is negative, and can exceed 1.
    """
    halvings = len(half1)
    responses = np.concatenate([half1[:, train], half2[:, train]])
    predicted = PLSMapping(components).fit_predict_many(features[train], responses, features[test])
    first, second = predicted[:halvings], predicted[halvings:]
    s1, s2 = half1[:, test], half2[:, test]
    ceiling = spearman_brown(pearson(first, second, axis=1)) * spearman_brown(pearson(s1, s2, axis=1))
    root = np.sqrt(ceiling, out=np.full(ceiling.shape, np.nan), where=ceiling > 0)
    return pearson(first, s2, axis=1) / root


def mean_of_defined(scores: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where nothing is defined."""
    defined = ~np.isnan(scores)
    total = np.where(defined, scores, 0).sum(0)
    count = defined.sum(0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def write_tables(
    run: RunFolder,
    scores: pd.DataFrame,
    excluded: pd.DataFrame,
    features: dict[tuple[str, str], np.ndarray],
    config: PredictivityConfig,
) -> None:
    """Write the tables of the run, and its headline number into the status."""
    sizes = {key: values.shape[1] for key, values in features.items()}
    table = summarise(scores, excluded, sizes, config.bootstrap, config.seed)
    for name, frame in (("neurons", scores), ("predictivity", table)):
        write_atomically(run.path / f"{name}.parquet", frame.to_parquet)
    for name, frame in (("predictivity", table), ("excluded", excluded)):
        write_atomically(run.path / f"{name}.csv", lambda file, frame=frame: frame.to_csv(file, index=False))
    best = best_layer_score(scores[scores["model"] == "trained"], config.seed)
    run.status(state="finished", best_layer_score=best, neurons=len(scores[["animal", "neuron_id"]].drop_duplicates()))
