"""The recordings that a fit is about, one for each animal.

What comes in: paths of recordings, of folders that hold several, and names to choose by. What goes out: `Animal`s by
name, in the order in which they were found. A recording of several animals (arrays of your own) becomes one for each,
whose responses stay where they are.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from neural_data.formats import format_of, read_recordings
from neural_data.recording import Recording
from neural_data.trial_files import TrialFiles


@dataclass(frozen=True, eq=False)
class Animal:
    """One animal's recording, and the path that it was read from."""

    recording: Recording
    path: str

    @property
    def neuron_ids(self) -> list[str]:
        """In the order of the responses."""
        return self.recording.neurons["neuron_id"].tolist()

    @property
    def coordinates(self) -> np.ndarray | None:
        """Places in cortex (neurons, 3), µm; None where they are not known."""
        positions = self.recording.neurons[["x_um", "y_um", "z_um"]].to_numpy(np.float64)
        return None if np.isnan(positions[:, :2]).any() else np.nan_to_num(positions)


def open_animals(paths: Iterable[str], names: Iterable[str] = (), max_frames: int = 0) -> dict[str, Animal]:
    """Every animal that is recorded at the paths, or those of `names`; trials end after `max_frames` unless it is 0.

    A name is that of an animal or of its recording, such as the folder's. Raises ValueError, one line, where a name is
    not there, an animal is there twice, or its name holds a dot; FileNotFoundError where there is nothing at a path.
    """
    found: dict[str, Animal] = {}
    wanted, there = set(names), {}
    for path in paths:
        for file in recording_paths(Path(path)):
            for recording in read_recordings(file):
                for animal in animals_of(recording):
                    name = animal.animals[0]
                    there |= {name: name, animal.name: name}
                    if wanted and not wanted & {name, animal.name}:
                        continue
                    add(found, name, Animal(shortened(animal, max_frames), str(file)))
    if absent := sorted(wanted - there.keys()):
        raise ValueError(f"animals: no {absent[0]!r}; there are {', '.join(dict.fromkeys(there.values()))}")
    return found


def recording_paths(path: Path) -> list[Path]:
    """The path itself, or those inside of a folder that is no recording but holds some."""
    if not path.is_dir() or format_of(path) is not None:
        return [path]
    return [child for child in sorted(path.iterdir()) if format_of(child)] or [path]


def add(found: dict[str, Animal], name: str, animal: Animal) -> None:
    """Note an animal. Raises ValueError where its name cannot be used."""
    if name in found:
        raise ValueError(f"animal {name!r} is in {found[name].path} and in {animal.path}; expected it once")
    if "." in name:
        raise ValueError(f"{animal.path}: animal {name!r} holds a dot, which names of weights cannot; rename it")
    found[name] = animal


def animals_of(recording: Recording) -> Iterator[Recording]:
    """A recording of one animal as it is, one of several as one for each, without the trials that it did not see."""
    if len(recording.animals) == 1:
        yield recording
        return
    for animal in recording.animals:
        own = np.flatnonzero((recording.neurons["animal"] == animal).to_numpy())
        seen = np.flatnonzero(
            [not np.isnan(recording.responses[row][own]).all() for row in range(len(recording.trials))]
        )
        yield dataclasses.replace(
            recording,
            name=f"{recording.name}-{animal}",
            trials=recording.trials.iloc[seen].reset_index(drop=True),
            responses=TrialFiles(
                OwnNeurons(recording, seen, own), (len(seen), len(own), *recording.responses.shape[2:])
            ),
            neurons=recording.neurons.iloc[own].reset_index(drop=True),
        )


@dataclass(frozen=True, eq=False)
class OwnNeurons:
    """Reads the responses of some neurons to the trial `trials[row]`."""

    recording: Recording
    trials: np.ndarray
    neurons: np.ndarray

    def __call__(self, row: int) -> np.ndarray:
        return np.asarray(self.recording.responses[int(self.trials[row])])[self.neurons]


def shortened(recording: Recording, max_frames: int) -> Recording:
    """The recording with trials that end after `max_frames`, as those of DwiseNeuro and ViV1T do; 0 leaves it."""
    if not max_frames or not recording.dynamic:
        return recording
    frames = pd.Series(np.minimum(recording.frames, max_frames), index=recording.trials.index)
    return dataclasses.replace(recording, trials=recording.trials.assign(frames=frames))
