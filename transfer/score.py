"""Scores of predictions by a team's protocol: per neuron, animal, tier and class of stimuli.

What comes in: a `ScoreConfig`: a folder of `murine predict`, recordings with responses, and a `ScoreProtocol`. What
goes out: a run folder with

    scores.csv      tier, stimulus_class, animal ("all": the protocol's one number), metric, value, of how many neurons
                    (`neurons`, `without_score` of them undefined), trials and stimuli, every option of the protocol
    neurons.csv     one row per neuron, tier and class, with every metric and the protocol's name
    traces.csv      a few neurons over time, of the first tier with repeats (`score_traces.py`)
    protocol.json   the options

Responses and predictions are read a block of neurons at a time, so that memory does not grow with the recording. Trials
without responses are passed over and counted: `withheld`. Trials that are shorter here than by the protocol's rule,
because a modality ended or less was predicted, are scored as far as they go and counted: `shortened`.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pretrain.durable import write_atomically
from pretrain.progress import Meter, progress, say
from pretrain.run_folder import open_run
from transfer.predict_config import ScoreConfig
from transfer.prediction_folder import open_predictions
from transfer.score_protocol import ScoreProtocol
from transfer.score_traces import traces
from transfer.scored_animals import Scored, protocol_of, scored_animals
from transfer.trial_scores import METRICS, score_images, score_trials

ALL = "all"
COUNTS = ("trials", "stimuli", "withheld", "shortened")
# What leaves out neurons where it is undefined, whatever the protocol does with correlations: the programs that have
# these metrics do so.
LEFT_OUT = ("feve", "normalized_correlation", "single_trial_ceiling", "oracle_conservative")


def score(config: ScoreConfig) -> Path:
    """Score predictions, and return the run folder.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: one line on what is wrong with the config or the data.
    """
    if config.predictions is None:
        raise ValueError("predictions is not set; name the run folder of `murine predict`")
    predictions = open_predictions(config.predictions)
    protocol = protocol_of(config, predictions.dynamic)
    animals = scored_animals(config, predictions, protocol)
    groups = {name: list(groups_of(scored, config)) for name, scored in animals.items()}
    if not any(groups.values()):
        raise ValueError(f"{predictions.path}: no trial of tiers={config.tiers or 'any'} has responses to score with")
    run = open_run(config, "score", "score")
    say_withheld(animals)
    tables = []
    with progress("score", sum(map(len, groups.values()))) as meter:
        for name, scored in animals.items():
            tables += [score_group(scored, group, config.memory_gb, meter) for group in groups[name]]
    write_tables(run.path, tables, protocol)
    write_traces(run.path, animals, groups, tables)
    run.status(state="finished", protocol=asdict(protocol), predictions=str(predictions.path.resolve()))
    return run.path


def say_withheld(animals: dict[str, Scored]) -> None:
    """One line with the trials that were predicted and have no responses to be scored with."""
    rows = pd.concat([scored.rows[scored.rows["withheld"]] for scored in animals.values()])
    if len(rows):
        counts = ", ".join(f"{count} of {tier}" for tier, count in rows["tier"].value_counts(sort=False).items())
        say(f"responses are withheld, so that these trials are not scored: {counts}")


@dataclass(frozen=True, eq=False)
class Group:
    """Trials that are scored together, of a tier and a class (or "all"), and how many were passed over."""

    tier: str
    stimulus_class: str
    trials: pd.DataFrame
    withheld: int


def groups_of(scored: Scored, config: ScoreConfig) -> Iterator[Group]:
    """The tiers, and the classes within them where there are several, that have trials with responses."""
    for tier, of_tier in scored.rows.groupby("tier", sort=False):
        classes = of_tier["stimulus_class"].unique()
        wanted = [ALL, *(classes if config.classes and len(classes) > 1 else [])]
        for name in wanted:
            chosen = of_tier if name == ALL else of_tier[of_tier["stimulus_class"] == name]
            known = chosen[~chosen["withheld"]]
            if len(known):
                yield Group(str(tier), name or "unnamed", known, len(chosen) - len(known))


def score_group(scored: Scored, group: Group, memory_gb: float, meter: Meter) -> pd.DataFrame:
    """One row per neuron, with the metrics and what they are of."""
    frames = int((group.trials["stop"] - group.trials["start"]).sum())
    # Float64 of responses and predictions, and what estimates make of them.
    block = max(1, int(memory_gb * 1e9 / (8 * 6 * frames)))
    ids = scored.recording.neurons["neuron_id"].to_numpy()
    stimulus = group.trials["stimulus"].to_numpy()
    parts = []
    for first in range(0, len(ids), block):
        responses, predictions = scored.read(group.trials, slice(first, first + block))
        score_block = score_trials if scored.recording.dynamic else score_images
        parts.append(pd.DataFrame(score_block(responses, predictions, stimulus, scored.protocol)))
    meter.advance(1, f"{scored.animal} {group.tier}")
    return pd.concat(parts, ignore_index=True).assign(
        animal=scored.animal,
        neuron_id=ids,
        tier=group.tier,
        stimulus_class=group.stimulus_class,
        trials=len(group.trials),
        stimuli=len(np.unique(stimulus)),
        withheld=group.withheld,
        shortened=int(group.trials["shortened"].sum()),
    )


def write_tables(path: Path, tables: list[pd.DataFrame], protocol: ScoreProtocol) -> None:
    """`scores.csv`, `neurons.csv` and `protocol.json`."""
    neurons = pd.concat(tables, ignore_index=True)
    first = ["animal", "neuron_id", "tier", "stimulus_class"]
    metrics = [metric for metric in METRICS if metric in neurons]
    options = {"protocol": protocol.name, "response_space": protocol.response_space}
    save_csv(path / "neurons.csv", neurons[first + metrics].assign(**options))
    save_csv(path / "scores.csv", summary(neurons, metrics, protocol))
    text = json.dumps(asdict(protocol), indent=1) + "\n"
    write_atomically(path / "protocol.json", lambda file: file.write(text.encode()))


def write_traces(
    path: Path, animals: dict[str, Scored], groups: dict[str, list[Group]], tables: list[pd.DataFrame]
) -> None:
    """`traces.csv`, of every animal the first tier that has repeats."""
    of_group, found = iter(tables), []
    for name, scored in animals.items():
        pairs = [(group, next(of_group)) for group in groups[name]]
        drawn = (traces(scored, group.trials, table) for group, table in pairs if group.stimulus_class == ALL)
        found.append(next((each for each in drawn if each is not None), None))
    if any(each is not None for each in found):
        save_csv(path / "traces.csv", pd.concat([each for each in found if each is not None]))


def save_csv(path: Path, table: pd.DataFrame) -> None:
    write_atomically(path, lambda file: file.write(table.to_csv(index=False, float_format="%.8g").encode()))


def summary(neurons: pd.DataFrame, metrics: list[str], protocol: ScoreProtocol) -> pd.DataFrame:
    """One row per tier, class, animal and metric; of the animal "all" the protocol's one number."""
    rows = []
    for (tier, name), group in neurons.groupby(["tier", "stimulus_class"], sort=False):
        animals = dict(iter(group.groupby("animal", sort=False)))
        counts = {animal: own.iloc[0][list(COUNTS)] for animal, own in animals.items()}
        for metric in metrics:
            values = {animal: own[metric].to_numpy() for animal, own in animals.items()}
            if all(np.isnan(each).all() for each in values.values()):
                continue
            how = score_protocol_of(metric, protocol)
            each = {animal: (how.mean(own), own, counts[animal]) for animal, own in values.items()}
            pooled = np.concatenate(list(values.values()))
            each[ALL] = how.one_number(values), pooled, sum(counts.values())
            for animal, (value, own, count) in each.items():
                of = {"tier": tier, "stimulus_class": name, "animal": animal, "metric": metric, "value": value}
                number = {"neurons": len(own), "without_score": int(np.isnan(own).sum())}
                rows.append(of | number | count.to_dict() | protocol.options())
    return pd.DataFrame(rows)


def score_protocol_of(metric: str, protocol: ScoreProtocol) -> ScoreProtocol:
    """The protocol that a metric is averaged by: some leave out neurons where they are undefined."""
    if metric not in LEFT_OUT:
        return protocol
    return ScoreProtocol(**(asdict(protocol) | {"undefined": "omit"}))
