"""Animals that were predicted, beside their recordings, as a protocol looks at both.

What comes in: a folder of `murine predict`, recordings, and a `ScoreProtocol`. What goes out: by animal which of its
trials count with which frames, and responses and predictions of these in the protocol's space, a block of neurons at a
time, so that memory does not grow with the recording.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neural_data.formats import format_of
from neural_data.recording import Recording
from neural_data.sensorium import read_sensorium
from transfer.fit_recordings import open_animals, recording_paths
from transfer.normalisation_statistics import response_stds
from transfer.predict import train_rows
from transfer.prediction_folder import AnimalPredictions, Predictions
from transfer.response_space import response_scale
from transfer.score_protocol import ScoreProtocol, score_protocol

PROTOCOL_KEYS = tuple(name for name in ScoreProtocol.__dataclass_fields__ if name != "name")
EVERY = slice(None)


@dataclass(frozen=True, eq=False)
class Scored:
    """One animal's recording and predictions, under a protocol; of some `tiers`, of all where none are named."""

    animal: str
    recording: Recording
    predictions: AnimalPredictions
    space: str
    protocol: ScoreProtocol
    tiers: tuple[str, ...] = ()

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Trials that were predicted: `row`, `tier`, `stimulus_class`, `stimulus`, `start` and `stop` of the frames
        that count, and whether they are `withheld` or `shortened`."""
        table, trials = self.predictions.trials, self.recording.trials
        table = table[table["tier"].isin(self.tiers)] if self.tiers else table
        rows = table["row"].to_numpy()
        wanted = self.recording.frames[rows]
        there = np.minimum(wanted, table["frames"].to_numpy())
        spans = [self.protocol.counted(int(frames)) for frames in there]
        classes = trials["stimulus_class"].to_numpy()[rows] if "stimulus_class" in trials else ""
        return pd.DataFrame({"row": rows, "tier": table["tier"].to_numpy()}).assign(
            stimulus_class=classes,
            stimulus=trials["stimulus"].to_numpy()[rows],
            start=[span.start for span in spans],
            stop=[span.stop for span in spans],
            withheld=self.recording.withheld[rows],
            shortened=there < wanted,
        )

    @cached_property
    def scales(self) -> tuple[np.ndarray, np.ndarray]:
        """What raw responses, and predictions, are multiplied by to be in the protocol's space."""
        target = self.protocol.response_space
        std = response_stds(self.recording, train_rows(self.recording), sorted({target, self.space} - {"raw"}))
        frames = np.arange(self.rows["stop"].max())
        of_target, of_source = (response_scale(space, frames, std) for space in (target, self.space))
        return of_target, of_target / of_source if target != self.space else np.ones((1, 1))

    def read(self, trials: pd.DataFrame, neurons: slice) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Responses and predictions (neurons, frames that count) of some trials, float64."""
        spans = trials[["row", "start", "stop"]].to_numpy().tolist()
        responses = [self.responses(row, slice(start, stop), neurons) for row, start, stop in spans]
        return responses, [self.predicted(row, slice(start, stop), neurons) for row, start, stop in spans]

    def responses(self, row: int, window: slice, neurons: slice) -> np.ndarray:
        """Responses to a trial in the protocol's space, float64 (neurons, frames), of an image (neurons, 1)."""
        stored = self.recording.responses
        measured = stored[row, neurons, window] if self.recording.dynamic else stored[row][neurons][:, None]
        return measured * part_of(self.scales[0], neurons, window)

    def predicted(self, row: int, window: slice, neurons: slice = EVERY) -> np.ndarray:
        """Predictions of a trial in the protocol's space, float64 (neurons, frames).

        Raises ValueError where a frame that counts was not predicted."""
        predicted = np.asarray(self.predictions.trial(row)[neurons, window], np.float64)
        known = np.isfinite(predicted[0])
        if not known.all():
            first = window.start + (int(known.argmax()) if known.any() else len(known))
            raise ValueError(
                f"{self.predictions.folder}: trial {row} has no prediction for frames before {first}, and frame "
                f"{window.start} counts; choose first_frame={first} or later"
            )
        return predicted * part_of(self.scales[1], neurons, window)


def part_of(scale: np.ndarray, neurons: slice, frames: slice) -> np.ndarray:
    """The part of a scale (1 or neurons, 1 or frames) that belongs to some neurons and frames."""
    scale = scale if scale.shape[0] == 1 else scale[neurons]
    return scale if scale.shape[1] == 1 else scale[:, frames]


def protocol_of(config: Any, dynamic: bool, video: str = "organisers") -> ScoreProtocol:
    """The protocol of a config, `auto` by whether it is of videos."""
    preset = config.protocol if config.protocol != "auto" else video if dynamic else "sensorium2022"
    return score_protocol(preset, **{key: getattr(config, key, None) for key in PROTOCOL_KEYS})


def scored_animals(config: Any, predictions: Predictions, protocol: ScoreProtocol) -> dict[str, Scored]:
    """Recordings of the animals that were predicted, read under the protocol's rule for where trials end.

    Raises ValueError for an animal that was not predicted, or whose neurons are others."""
    names = config.animals or list(predictions.animals)
    if absent := [name for name in names if name not in predictions.animals]:
        known = ", ".join(predictions.animals)
        raise ValueError(f"{predictions.path}: animal {absent[0]!r} was not predicted; there are {known}")
    facts = predictions.facts["animals"]
    paths = [config.recording] if config.recording else dict.fromkeys(facts[name]["recording"] for name in names)
    found = open_animals(paths, names)
    scored = {}
    for name in names:
        recording, own = ruled(found[name].recording, found[name].path, protocol), predictions.animals[name]
        if recording.neurons["neuron_id"].tolist() != own.neuron_ids:
            raise ValueError(f"{found[name].path}: the neurons of animal {name!r} are not those of {own.folder}")
        scored[name] = Scored(name, recording, own, predictions.response_space, protocol, tuple(config.tiers))
    return scored


def ruled(recording: Recording, path: str, protocol: ScoreProtocol) -> Recording:
    """A recording whose trials end by the protocol's rule, where its format knows more than one."""
    if protocol.trial_length == "all" or not recording.dynamic:
        return recording
    (own,) = recording_paths(Path(path))
    return read_sensorium(own, trial_length=protocol.trial_length) if format_of(own) == "sensorium" else recording
