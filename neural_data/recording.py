"""The one in-memory form of a recording, whatever file it came from.

Comes in: arrays and tables that a reader of some source has made. Goes out: `Recording`, checked; from it one trial as
it was, or the responses of one animal ordered by repeat and stimulus, float64 (repeats, stimuli, neurons[, time]).

Large arrays (stimuli, responses, behavior, pupil_center) may be memory maps or `TrialFiles`: they stay on disk until
a trial is asked for.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from neural_data.recording_checks import check_recording
from neural_data.tables import POSITION_COLUMNS

# Responses looked through at a time, so that a memory map is never read whole.
BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class RepeatedResponses:
    """Responses of one animal.

    `responses`: float64 (repeats, stimuli, neurons), or (repeats, stimuli, neurons, time); NaN where a stimulus has
    fewer repeats than others. `stimuli`: int64 (stimuli,), rows of the recording's stimuli. `neurons`: int64
    (neurons,), rows of its neuron table. `too_few`: how many stimuli it saw, but less often than was asked for.
    """

    responses: np.ndarray
    stimuli: np.ndarray
    neurons: np.ndarray
    too_few: int = 0


@dataclass(frozen=True, eq=False)
class Recording:
    """Stimuli, presentations and responses of one or more animals.

    `stimuli`: array-like, images (stimuli, height, width) or (stimuli, height, width, channels), videos (stimuli,
    frames, height, width) or (..., channels), with 3 channels (RGB) or 2 (UV, green); values 0 to 255.
    `trials`: one row per presentation: `stimulus` (row of stimuli), `repeat` (0, 1, ...), `tier` (such as
    "train"; "" if unknown), and what `tables.py` lists. Animals recorded apart can share a row: the same repeat of the
    same stimulus.
    `responses`: array-like (trials, neurons), or (trials, neurons, time) at `sampling_rate_hz`, in the source's unit,
    NaN where an animal has no response to a trial, where responses are withheld, and after a trial's end. The first
    sample begins `response_start_ms` after the onset of the stimulus; of a video there is one sample per frame.
    `neurons`: `neuron_id`, `animal`, `area`, `layer` (text, "" if unknown), `x_um`, `y_um`, `z_um` (µm, NaN if
    unknown). `behavior`: (trials, K[, time]), its channels named by `behavior_names`. `pupil_center`: (trials, 2[,
    time]). Both belong to the one animal of the recording. `statistics`: the source's own, by name. `source`: where it
    is from, and `notes`: what its reader left out or had to decide, both for people.
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
    behavior_names: tuple[str, ...] = ()
    response_start_ms: float = 0.0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_recording(self)

    @property
    def animals(self) -> list[str]:
        """The animals in the order of the neuron table."""
        return list(self.neurons["animal"].unique())

    @property
    def dynamic(self) -> bool:
        """Whether responses are resolved in time."""
        return len(self.responses.shape) == 3

    @property
    def video(self) -> bool:
        """Whether stimuli are videos; four axes of which the last has 2 or 3 are images in colour."""
        return len(self.stimuli.shape) == 5 or (len(self.stimuli.shape) == 4 and self.stimuli.shape[3] not in (2, 3))

    @property
    def frames(self) -> np.ndarray:
        """Valid samples in time of each trial, int64 (trials,); 1 where responses are not resolved in time."""
        if "frames" in self.trials:
            return self.trials["frames"].to_numpy(np.int64)
        return np.full(len(self.trials), self.responses.shape[2] if self.dynamic else 1)

    @property
    def withheld(self) -> np.ndarray:
        """bool (trials,): whether the responses exist but were not published."""
        return self.trials["withheld"].to_numpy() if "withheld" in self.trials else np.zeros(len(self.trials), bool)

    def trial(self, row: int, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """One presentation, without the padding at its end; only what is asked for is read.

        `start`, `stop`: samples of the time axis, by default all valid ones. Returns `images` (height, width[,
        channels]) or `video` (time, height, width[, channels]), `responses` (neurons[, time]) and, where there are any,
        `behavior` (K[, time]) and `pupil_center` (2[, time]). Raises ValueError for a window outside of the trial.
        """
        frames = int(self.frames[row])
        stop = frames if stop is None else stop
        if not 0 <= start < stop <= frames:
            raise ValueError(f"{self.name}: trial {row} has {frames} frames, found a window from {start} to {stop}")
        stimulus, window = int(self.trials["stimulus"].iat[row]), slice(start, stop)
        found = {}
        if self.video:
            found["video"] = np.asarray(self.stimuli[stimulus, window] if self.dynamic else self.stimuli[stimulus])
        else:
            found["images"] = np.asarray(self.stimuli[stimulus])
        for part in ("responses", "behavior", "pupil_center"):
            values = getattr(self, part)
            if values is not None:
                found[part] = np.asarray(values[row, :, window] if len(values.shape) == 3 else values[row])
        return found

    def repeats(self, animal: str, min_repeats: int = 1, tier: str | None = None) -> RepeatedResponses:
        """The responses of one animal, restricted to the stimuli that it saw at least `min_repeats` times.

        Repeat numbers of the trials are kept in order, so that a repeat is missing at its own place; numbers
        that the animal has for no stimulus are left out. `tier`: only its trials. Raises ValueError for an unknown
        animal or tier, or where the animal has two responses to the same repeat of a stimulus.
        """
        if animal not in self.animals:
            raise ValueError(f"{self.name}: no animal {animal!r}; there are {', '.join(self.animals)}")
        neurons = np.flatnonzero((self.neurons["animal"] == animal).to_numpy())
        rows, too_few = self._rows(animal, min_repeats, tier)
        stimuli, column = np.unique(self.trials["stimulus"].to_numpy()[rows], return_inverse=True)
        numbers, repeat = np.unique(self.trials["repeat"].to_numpy()[rows], return_inverse=True)
        place = repeat * len(stimuli) + column
        twice = np.flatnonzero(np.bincount(place) > 1)
        if len(twice):
            at = rows[np.flatnonzero(place == twice[0])]
            raise ValueError(f"{self.name}: trials {at[0]} and {at[1]} of {animal} are the same repeat and stimulus")
        shape = (len(numbers), len(stimuli), len(neurons), *self.responses.shape[2:])
        ordered = np.full(shape, np.nan)
        for part in self._blocks(len(rows)):
            ordered[repeat[part], column[part]] = np.asarray(self.responses[rows[part]])[:, neurons]
        return RepeatedResponses(ordered, stimuli, neurons, too_few)

    def _rows(self, animal: str, min_repeats: int, tier: str | None) -> tuple[np.ndarray, int]:
        """The trials that the animal has a response to, of stimuli shown often enough; how many were not."""
        seen = self._seen()[:, self.animals.index(animal)]
        if tier is not None:
            tiers = self.trials["tier"].unique()
            if tier not in tiers:
                raise ValueError(f"{self.name}: no tier {tier!r}; there are {', '.join(map(repr, tiers))}")
            seen = seen & (self.trials["tier"] == tier).to_numpy()
        stimulus = self.trials["stimulus"].to_numpy()
        shown = np.bincount(stimulus[seen], minlength=len(self.stimuli))
        too_few = int(((shown > 0) & (shown < min_repeats)).sum())
        return np.flatnonzero(seen & (shown >= min_repeats)[stimulus]), too_few

    def summary(self) -> str:
        """One paragraph: animals, areas, neurons, stimuli, repeats, tiers, what is missing, and the notes."""
        seen, animal_of = self._seen(), self.neurons["animal"]
        counts = [self.trials["stimulus"][seen[:, i]].value_counts() for i in range(seen.shape[1])]
        per_animal = "; ".join(
            f"{animal}: {(animal_of == animal).sum()} neurons, {len(count)} stimuli, {_range(count)} repeats"
            for animal, count in zip(self.animals, counts, strict=True)
        )
        areas = ", ".join(
            f"{area or 'unknown'} {n}" for area, n in self.neurons["area"].value_counts(sort=False).items()
        )
        missing = self._missing()
        notes = f"; note: {'; '.join(self.notes)}" if self.notes else ""
        return (
            f"{self.name}: {len(self.animals)} animals ({per_animal}); neurons by area: {areas}; "
            f"{self._described_stimuli()}, {self._described_trials()}; "
            f"missing: {', '.join(missing) if missing else 'nothing'}{notes}."
        )

    def _described_stimuli(self) -> str:
        height, width = self.stimuli.shape[2:4] if self.video else self.stimuli.shape[1:3]
        kind = "colour" if len(self.stimuli.shape) == (5 if self.video else 4) else "grey"
        if not self.video:
            return f"{len(self.stimuli)} {kind} stimuli of {height} x {width} pixels"
        length = f"{_range(pd.Series(self.frames))} frames at {self.sampling_rate_hz:g} Hz"
        return f"{len(self.stimuli)} {kind} videos of {height} x {width} pixels and {length}"

    def _described_trials(self) -> str:
        tiers = self.trials["tier"].value_counts(sort=False)
        named = ", ".join(f"{tier or 'no tier'} {n}" for tier, n in tiers.items())
        return f"{len(self.trials)} trials" + (f" ({named})" if any(tiers.index) else "")

    def _missing(self) -> list[str]:
        absent = 0
        if isinstance(self.responses, np.ndarray):
            absent = sum(int(np.isnan(self.responses[part]).sum()) for part in self._blocks(len(self.trials)))
        missing = [f"{absent / np.prod(self.responses.shape):.1%} of trials x neurons"] if absent else []
        missing += [f"responses withheld in {self.withheld.sum()} trials"] if self.withheld.any() else []
        missing += [column for column in ("area", "layer") if (self.neurons[column] == "").any()]
        missing += ["positions"] if self.neurons[list(POSITION_COLUMNS)].isna().any(axis=None) else []
        missing += ["tier"] if (self.trials["tier"] == "").any() else []
        return missing + [
            part.replace("_", " ") for part in ("behavior", "pupil_center") if getattr(self, part) is None
        ]

    def _blocks(self, n_rows: int) -> list[slice]:
        """Slices of rows that together hold about BLOCK_BYTES of responses each."""
        step = max(1, BLOCK_BYTES // max(1, 8 * int(np.prod(self.responses.shape[1:]))))
        return [slice(first, first + step) for first in range(0, n_rows, step)]

    def _seen(self) -> np.ndarray:
        """bool (trials, animals): whether any neuron of the animal has a response to the trial."""
        if len(self.animals) == 1 and not isinstance(self.responses, np.ndarray):
            # Trials in files of their own are not all read to find out what their table says.
            return ~self.withheld[:, None]
        columns = [np.flatnonzero((self.neurons["animal"] == animal).to_numpy()) for animal in self.animals]
        seen = np.zeros((len(self.trials), len(columns)), dtype=bool)
        for part in self._blocks(len(self.trials)):
            present = ~np.isnan(self.responses[part])
            present = present.any(axis=2) if self.dynamic else present
            seen[part] = np.stack([present[:, of_animal].any(axis=1) for of_animal in columns], axis=1)
        return seen


def _range(counts: pd.Series) -> str:
    if not len(counts):
        return "0"
    return str(counts.min()) if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
