"""The one in-memory form of a recording, whatever file it came from.

Comes in: arrays and tables that a reader of some source has made. Goes out: `Recording`, checked; and from it
the responses of one animal ordered by repeat and stimulus, float64 (repeats, stimuli, neurons).

Large arrays (stimuli, responses) may be memory maps: they stay on disk until they are asked for.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

TRIAL_COLUMNS = ("stimulus", "repeat", "tier")
TEXT_COLUMNS = ("neuron_id", "animal", "area", "layer")
POSITION_COLUMNS = ("x_um", "y_um", "z_um")
NEURON_COLUMNS = TEXT_COLUMNS + POSITION_COLUMNS

# Responses looked through at a time, so that a memory map is never read whole.
BLOCK_BYTES = 64 * 2**20


def trial_table(stimulus: np.ndarray, repeat: np.ndarray, tier: Any = "") -> pd.DataFrame:
    """A table of trials: int64 `stimulus` and `repeat`, text `tier`; each an array (trials,), tier also one
    text."""
    columns = {"stimulus": np.asarray(stimulus, np.int64), "repeat": np.asarray(repeat, np.int64)}
    return pd.DataFrame(columns).assign(tier=_text(tier, len(stimulus)))


def neuron_table(
    neuron_id: Any,
    animal: Any,
    area: Any = "",
    layer: Any = "",
    x_um: Any = np.nan,
    y_um: Any = np.nan,
    z_um: Any = np.nan,
) -> pd.DataFrame:
    """A table of neurons; each column an array (neurons,) or, except `neuron_id`, one value for all."""
    n = len(neuron_id)
    texts = dict(zip(TEXT_COLUMNS, (neuron_id, animal, area, layer), strict=True))
    positions = dict(zip(POSITION_COLUMNS, (x_um, y_um, z_um), strict=True))
    columns = {column: _text(values, n) for column, values in texts.items()}
    columns |= {column: np.broadcast_to(np.asarray(values, float), n) for column, values in positions.items()}
    return pd.DataFrame(columns)


def _text(values: Any, n: int) -> pd.Series:
    # Through an object array, so that numbers as names become their digits and no fixed width cuts a text.
    texts = [str(value) for value in np.broadcast_to(np.asarray(values), n).tolist()]
    return pd.Series(texts, dtype="str")


@dataclass(frozen=True)
class RepeatedResponses:
    """Responses of one animal.

    `responses`: float64 (repeats, stimuli, neurons), NaN where a stimulus has fewer repeats than others.
    `stimuli`: int64 (stimuli,), rows of the recording's stimuli. `neurons`: int64 (neurons,), rows of its
    neuron table.
    """

    responses: np.ndarray
    stimuli: np.ndarray
    neurons: np.ndarray


@dataclass(frozen=True, eq=False)
class Recording:
    """Stimuli, presentations and responses of one or more animals.

    `stimuli`: array-like (stimuli, height, width) grey or (stimuli, height, width, 3) RGB, values 0 to 255.
    `trials`: one row per presentation: `stimulus` (row of stimuli), `repeat` (0, 1, ...), `tier` (such as
    "train"; "" if unknown). Animals recorded apart can share a row: the same repeat of the same stimulus.
    `responses`: array-like (trials, neurons), in the source's unit, NaN where an animal has no response to a trial.
    `neurons`: `neuron_id`, `animal`, `area`, `layer` (text, "" if unknown), `x_um`, `y_um`, `z_um` (µm, NaN if
    unknown). `behavior`: (trials, K). `pupil_center`: (trials, 2). `statistics`: the source's own, by name.
    `source`: where it is from, for people.

    Dynamic data keep this form, with time as a further axis: stimuli (n, T, height, width), responses
    (trials, neurons, T), behavior (trials, K, T), at `sampling_rate_hz`; trials and neurons stay the same tables. The
    checks here accept static data only.
    """

    name: str
    stimuli: Any
    trials: pd.DataFrame
    responses: Any
    neurons: pd.DataFrame
    behavior: Any | None = None
    pupil_center: Any | None = None
    sampling_rate_hz: float | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        self._check_stimuli()
        self._check_trials()
        self._check_responses()
        self._check_neurons()
        self._check_behavior()

    @property
    def animals(self) -> list[str]:
        """The animals in the order of the neuron table."""
        return list(self.neurons["animal"].unique())

    def repeats(self, animal: str) -> RepeatedResponses:
        """The responses of one animal, restricted to the stimuli that it saw at least once.

        Repeat numbers of the trials are kept in order, so that a repeat is missing at its own place; numbers
        that the animal has for no stimulus are left out. Raises ValueError for an unknown animal, or where it
        has two responses to the same repeat of a stimulus.
        """
        if animal not in self.animals:
            raise ValueError(f"{self.name}: no animal {animal!r}; there are {', '.join(self.animals)}")
        neurons = np.flatnonzero((self.neurons["animal"] == animal).to_numpy())
        rows = np.flatnonzero(self._seen()[:, self.animals.index(animal)])
        stimuli, column = np.unique(self.trials["stimulus"].to_numpy()[rows], return_inverse=True)
        numbers, repeat = np.unique(self.trials["repeat"].to_numpy()[rows], return_inverse=True)
        place = repeat * len(stimuli) + column
        twice = np.flatnonzero(np.bincount(place) > 1)
        if len(twice):
            at = rows[np.flatnonzero(place == twice[0])]
            raise ValueError(f"{self.name}: trials {at[0]} and {at[1]} of {animal} are the same repeat and stimulus")
        ordered = np.full((len(numbers), len(stimuli), len(neurons)), np.nan)
        for part in self._blocks(len(rows)):
            ordered[repeat[part], column[part]] = np.asarray(self.responses[rows[part]])[:, neurons]
        return RepeatedResponses(ordered, stimuli, neurons)

    def summary(self) -> str:
        """One paragraph: animals, areas, neurons, stimuli, repeats, and what is missing."""
        seen, animal_of = self._seen(), self.neurons["animal"]
        counts = [self.trials["stimulus"][seen[:, i]].value_counts() for i in range(seen.shape[1])]
        per_animal = "; ".join(
            f"{animal}: {(animal_of == animal).sum()} neurons, {len(count)} stimuli, {_range(count)} repeats"
            for animal, count in zip(self.animals, counts, strict=True)
        )
        areas = ", ".join(
            f"{area or 'unknown'} {n}" for area, n in self.neurons["area"].value_counts(sort=False).items()
        )
        height, width = self.stimuli.shape[1:3]
        kind = "grey" if self.stimuli.ndim == 3 else "colour"
        missing = self._missing()
        return (
            f"{self.name}: {len(self.animals)} animals ({per_animal}); neurons by area: {areas}; "
            f"{len(self.stimuli)} {kind} stimuli of {height} x {width} pixels, {len(self.trials)} trials; "
            f"missing: {', '.join(missing) if missing else 'nothing'}."
        )

    def _missing(self) -> list[str]:
        absent = sum(int(np.isnan(self.responses[part]).sum()) for part in self._blocks(len(self.trials)))
        missing = [f"{absent / np.prod(self.responses.shape):.1%} of trials x neurons"] if absent else []
        missing += [column for column in ("area", "layer") if (self.neurons[column] == "").any()]
        missing += ["positions"] if self.neurons[list(POSITION_COLUMNS)].isna().any(axis=None) else []
        missing += ["tier"] if (self.trials["tier"] == "").any() else []
        return missing + [
            part.replace("_", " ") for part in ("behavior", "pupil_center") if getattr(self, part) is None
        ]

    def _blocks(self, n_rows: int) -> list[slice]:
        """Slices of rows that together hold about BLOCK_BYTES of responses each."""
        step = max(1, BLOCK_BYTES // max(1, 8 * self.responses.shape[1]))
        return [slice(first, first + step) for first in range(0, n_rows, step)]

    def _seen(self) -> np.ndarray:
        """bool (trials, animals): whether any neuron of the animal has a response to the trial."""
        columns = [np.flatnonzero((self.neurons["animal"] == animal).to_numpy()) for animal in self.animals]
        seen = np.zeros((len(self.trials), len(columns)), dtype=bool)
        for part in self._blocks(len(self.trials)):
            present = ~np.isnan(self.responses[part])
            seen[part] = np.stack([present[:, of_animal].any(axis=1) for of_animal in columns], axis=1)
        return seen

    def _check_stimuli(self) -> None:
        shape = self.stimuli.shape
        if not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
            raise ValueError(
                f"{self.name}: stimuli have shape {shape}, "
                "expected (stimuli, height, width) or (stimuli, height, width, 3)"
            )

    def _check_trials(self) -> None:
        self._check_columns("trials", self.trials, TRIAL_COLUMNS)
        for column in ("stimulus", "repeat"):
            values = self.trials[column]
            if not pd.api.types.is_integer_dtype(values):
                raise ValueError(f"{self.name}: trials column {column} is {values.dtype}, expected integers")
        stimulus = self.trials["stimulus"].to_numpy()
        outside = np.flatnonzero((stimulus < 0) | (stimulus >= len(self.stimuli)))
        if len(outside):
            raise ValueError(
                f"{self.name}: trial {outside[0]} shows stimulus {stimulus[outside[0]]}, "
                f"expected 0 to {len(self.stimuli) - 1}"
            )
        if (self.trials["repeat"] < 0).any():
            raise ValueError(f"{self.name}: a trial has repeat {self.trials['repeat'].min()}, expected 0 or more")
        self._check_text("trials", self.trials, ("tier",))

    def _check_responses(self) -> None:
        expected = (len(self.trials), len(self.neurons))
        if tuple(self.responses.shape) != expected:
            raise ValueError(
                f"{self.name}: responses have shape {tuple(self.responses.shape)}, "
                f"expected (trials, neurons) = {expected}"
            )

    def _check_neurons(self) -> None:
        self._check_columns("neurons", self.neurons, NEURON_COLUMNS)
        self._check_text("neurons", self.neurons, TEXT_COLUMNS)
        for column in POSITION_COLUMNS:
            if not pd.api.types.is_numeric_dtype(self.neurons[column]):
                raise ValueError(
                    f"{self.name}: neurons column {column} is {self.neurons[column].dtype}, expected µm as numbers"
                )
        if not len(self.neurons):
            raise ValueError(f"{self.name}: the neuron table is empty, expected one row per neuron")
        twice = self.neurons.duplicated(["animal", "neuron_id"])
        if twice.any():
            row = self.neurons[twice].iloc[0]
            raise ValueError(f"{self.name}: neuron_id {row['neuron_id']} occurs twice in animal {row['animal']}")

    def _check_behavior(self) -> None:
        n = len(self.trials)
        for part, width in (("behavior", None), ("pupil_center", 2)):
            values = getattr(self, part)
            if values is None:
                continue
            shape = tuple(values.shape)
            if len(shape) != 2 or shape[0] != n or width not in (None, shape[1]):
                raise ValueError(f"{self.name}: {part} has shape {shape}, expected ({n}, {width or 'channels'})")

    def _check_columns(self, table: str, frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
        absent = [column for column in columns if column not in frame.columns]
        if absent:
            raise ValueError(
                f"{self.name}: {table} lack {', '.join(absent)}; found {', '.join(map(str, frame.columns))}"
            )

    def _check_text(self, table: str, frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
        for column in columns:
            if not frame[column].map(lambda value: isinstance(value, str)).all():
                raise ValueError(f"{self.name}: {table} column {column} is {frame[column].dtype}, expected text")


def _range(counts: pd.Series) -> str:
    if not len(counts):
        return "0"
    return str(counts.min()) if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
