"""How well each layer of models predicts recorded neurons, as a share of what can be predicted.

What comes in: checkpoints and recordings. What goes out: a run folder with `neurons.parquet` (score of every neuron by
model and layer), `predictivity.csv` and `.parquet` (median and interval by layer, area and animal; the rows of the
model `animals` are the inter-animal ceiling), `chosen.csv` (one number per model and area), `differences.csv` (model
against model on the same neurons), and `excluded.csv` (neurons that were not scored, and why). The protocol is
mouse-vision's (Nayebi, Kong et al. 2023, PLOS Comput Biol 19(10):e1011506).
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neural_data.formats import read_recordings
from neural_data.halvings import seeded_orders
from neural_data.recording import Recording
from pretrain.durable import write_atomically
from pretrain.progress import Meter, progress, say
from pretrain.run_folder import RunFolder, open_run
from transfer.compared_models import (
    AnyModel,
    Trained,
    checkpoints_of,
    compared_models,
    pick_accelerator,
    stimulus_features,
)
from transfer.config import PredictivityConfig
from transfer.corrected_score import Scoring, scoring
from transfer.differences import paired_differences
from transfer.interanimal import ANIMALS, other_animals, score_from_animals
from transfer.layer_choice import chosen_scores, one_number
from transfer.neuron_groups import NeuronGroup, neuron_groups, say_counts
from transfer.protocol import HalvedRepeats, Source, mean_over_splits, score_halves
from transfer.static_responses import static_responses
from transfer.summary import median_over_neurons, summarise


@dataclass(frozen=True)
class Recorded:
    """One recording, its groups of neurons, and the rows of its stimuli that any of them is scored on."""

    recording: Recording
    groups: list[NeuronGroup]
    rows: np.ndarray


def predictivity(config: PredictivityConfig) -> Path:
    """Score every fit layer, the baselines and other animals; the same config resumes the same run folder.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: one line on what is wrong with the config or the data.
    """
    trained = checkpoints_of(config)
    recorded, excluded = recorded_neurons(config)
    models = list(compared_models(trained, config))
    run = open_run(config, "predictivity", "predictivity")
    inputs = inputs_of(trained, recorded)
    require_same_inputs(run, inputs)
    say_counts([group for part in recorded for group in part.groups], excluded)
    run.status(
        **inputs, **facts_of(trained),
        recording=", ".join(part.recording.name for part in recorded),
        stimuli=sum(len(part.rows) for part in recorded), device=pick_accelerator(config.accelerator),
    )  # fmt: skip
    scores = score_all(run, models, recorded, config)
    write_tables(run, scores, excluded, config)
    return run.path


def recorded_neurons(config: PredictivityConfig) -> tuple[list[Recorded], pd.DataFrame]:
    """The recordings with their groups, and the neurons that are in no group."""
    if config.recording is None:
        raise ValueError("recording is not set; see `murine predictivity --help`")
    recorded, excluded = [], []
    for recording in read_recordings(config.recording):
        say(recording.summary())
        recording, unselected = static_responses(recording, config)
        groups, left_out = neuron_groups(recording, config)
        rows = np.unique(np.concatenate([group.stimuli for group in groups])) if groups else np.array([], np.int64)
        recorded.append(Recorded(recording, groups, rows))
        excluded += [unselected, left_out]
    animals = [animal for part in recorded for animal in part.recording.animals]
    twice = [animal for animal in dict.fromkeys(animals) if animals.count(animal) > 1]
    if twice:
        raise ValueError(f"{config.recording}: animal {twice[0]!r} is in two recordings; score them one by one")
    return recorded, pd.concat([table for table in excluded if len(table)] or excluded[:1], ignore_index=True)


def require_same_inputs(run: RunFolder, inputs: dict[str, Any]) -> None:
    """Refuse to mix scores: a pretraining can have gone on, or a recording changed, since the run folder was made."""
    for name, value in inputs.items():
        before = run.facts.get(name)
        if before not in (None, value):
            raise FileExistsError(f"{run.path} holds scores of {name} {before}, not of {value}; choose another out=")


def inputs_of(trained: Sequence[Trained], recorded: Sequence[Recorded]) -> dict[str, Any]:
    paths = [str(item.path) for item in trained]
    return {"checkpoint": paths[0] if len(paths) == 1 else paths, "recording_sha256": content_hash(recorded)}


def facts_of(trained: Sequence[Trained]) -> dict[str, Any]:
    epochs, steps = [item.epoch for item in trained], [item.step for item in trained]
    if len(trained) == 1:
        return {"checkpoint_epoch": epochs[0], "checkpoint_step": steps[0]}
    return {"checkpoint_epoch": epochs, "checkpoint_step": steps}


def content_hash(recorded: Sequence[Recorded]) -> str:
    """SHA-256 of all that is scored, so that an edited file is not taken for the one before."""
    digest = hashlib.sha256()
    for part in recorded:
        for row in part.rows:
            digest.update(np.ascontiguousarray(part.recording.stimuli[row]).data)
        for group in part.groups:
            digest.update(np.ascontiguousarray(group.responses).data)
            digest.update(group.neurons.to_csv(index=False).encode())
    return digest.hexdigest()


def score_all(
    run: RunFolder,
    models: Sequence[AnyModel],
    recorded: Sequence[Recorded],
    config: PredictivityConfig,
) -> pd.DataFrame:
    """Scores by neuron, model, layer and split, each with the number of features and the error of their projection.

    What is finished is read back from `pieces/`: one file per model, layer and animal.
    """
    how = scoring(config)
    per_layer = sum(len(part.groups) for part in recorded)
    sources = [other_animals(part.groups, config.interanimal) for part in recorded]
    total = sum(len(model.layers) for model in models) * per_layer + sum(map(len, sources))
    tables: list[pd.DataFrame] = []
    with progress("predictivity", total) as meter:
        for model in models:
            for part in recorded:
                tables += score_model(run, model, part, how, config, meter)
        for others in sources:
            for animal in dict.fromkeys(group.animal for group, _ in others):
                of_animal = [pair for pair in others if pair[0].animal == animal]
                work = (score_from_animals(group, found, how, config) for group, found in of_animal)
                tables.append(piece(run, (ANIMALS, config.interanimal, animal), work, len(of_animal), meter))
    return pd.concat(tables, ignore_index=True)


def score_model(
    run: RunFolder,
    model: AnyModel,
    part: Recorded,
    how: Scoring,
    config: PredictivityConfig,
    meter: Meter,
) -> list[pd.DataFrame]:
    """The pieces of one model on one recording; features are computed for the layers that are not finished."""
    animals = {animal: [group for group in part.groups if group.animal == animal] for animal in part.recording.animals}
    animals = {animal: groups for animal, groups in animals.items() if groups}
    missing = [
        layer
        for layer in model.layers
        if not all(piece_file(run, (model.label, layer, animal)).exists() for animal in animals)
    ]
    store = run.path / "features"
    features = {}
    if missing:
        features = stimulus_features(model, part.recording.stimuli, part.rows, missing, store, config)
    tables = []
    for layer in model.layers:
        prepared = how.prepare(features.pop(layer)) if layer in features else None
        for animal, groups in animals.items():
            work = score_groups(prepared, part, groups, how, config, choose=len(model.layers) > 1)
            tables.append(piece(run, (model.label, layer, animal), work, len(groups), meter))
    shutil.rmtree(store, ignore_errors=True)
    return tables


def score_groups(
    prepared: Any, part: Recorded, groups: Sequence[NeuronGroup], how: Scoring, config: PredictivityConfig, choose: bool
) -> Iterator[pd.DataFrame]:
    for group in groups:
        features = prepared.values[np.searchsorted(part.rows, group.stimuli)]
        (orders,) = seeded_orders(config.halvings, len(group.responses))
        repeats = HalvedRepeats(group.responses, orders)
        neurons = how.scored(group.neurons)
        table = score_halves(Source(features), repeats, neurons, how.score, config, choose, group.places)
        yield table.assign(features=prepared.size, projection_error=prepared.projection_error)


def piece(
    run: RunFolder, name: tuple[str, str, str], work: Iterator[pd.DataFrame], parts: int, meter: Meter
) -> pd.DataFrame:
    """The scores of one model, layer and animal: read back, or worked out and kept."""
    model, layer, animal = name
    note = f"{model} {layer}, animal {animal}"
    path = piece_file(run, name)
    if path.exists():
        meter.advance(parts, note)
        return pd.read_parquet(path)
    tables = []
    for table in work:
        tables.append(table)
        meter.advance(1, note)
    found = pd.concat(tables, ignore_index=True).assign(model=model, layer=layer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, found.to_parquet)
    return found


def piece_file(run: RunFolder, name: tuple[str, str, str]) -> Path:
    model, layer, animal = (part.replace("/", "_") for part in name)
    return run.path / "pieces" / f"{model}-{layer}" / f"{animal}.parquet"


def write_tables(
    run: RunFolder,
    scores: pd.DataFrame,
    excluded: pd.DataFrame,
    config: PredictivityConfig,
) -> None:
    """Write the tables of the run, and its headline number into the status."""
    neurons = mean_over_splits(scores)
    of_layer = scores.groupby(["model", "layer"], sort=False)
    table = summarise(neurons, excluded, of_layer["features"].max().to_dict(), config.bootstrap, config.seed)
    if config.random_projection:
        errors = of_layer["projection_error"].max()
        table["projection_error"] = [errors.get((row.model, row.layer)) for row in table.itertuples()]
    if config.report_train:
        table["fitted"] = median_over_neurons(neurons, table, "fitted_score")
    numbers = one_number(scores[scores["model"] != ANIMALS], config.bootstrap, config.seed)
    chosen = chosen_scores(scores[scores["model"] != ANIMALS])
    differences = paired_differences(chosen, config.bootstrap, config.seed)
    for name, frame in (("neurons", neurons), ("predictivity", table)):
        write_atomically(run.path / f"{name}.parquet", frame.to_parquet)
    tables = {"predictivity": table, "chosen": numbers, "differences": differences, "excluded": excluded}
    for name, frame in tables.items():
        write_atomically(run.path / f"{name}.csv", lambda file, frame=frame: frame.to_csv(file, index=False))
    run.status(
        state="finished",
        best_layer_score=float(numbers["median"].iloc[0]),
        neurons=len(neurons[["animal", "neuron_id"]].drop_duplicates()),
    )
