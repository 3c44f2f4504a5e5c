"""Static Sensorium recordings: mice that saw images (Sensorium 2022, Franke et al. 2022).

Comes in: a `SensoriumFolder` with images. Goes out: a `Recording` with images (stimuli, H, W), or (stimuli, H, W, 2)
with the channels UV and green, responses (trials, neurons): deconvolved calcium summed over a window after the image's
onset, behavior (trials, 3) and pupil centre (trials, 2). All of it stays on disk until it is asked for.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from neural_data.recording import Recording
from neural_data.sensorium_folder import SensoriumFolder, TrialPart
from neural_data.sensorium_tables import read_neurons, repeat_number, trial_columns
from neural_data.tables import trial_table
from neural_data.trial_files import TrialFiles
from neural_data.withheld_responses import withheld_trials

BEHAVIOR = {3: ("pupil_dilation", "pupil_dilation_derivative", "running_speed"), 2: ("pupil_dilation", "running_speed")}
# Images of one id that are compared when a folder is opened, and how far they may be apart, in grey levels.
SAMPLED_IDS = 8
SAME_IMAGE = 1.0


@dataclass(frozen=True)
class ImageOfTrial:
    """Reads the image of stimulus `row`, which the trial `trials[row]` shows: (H, W[, channels])."""

    images: TrialPart
    trials: tuple[int, ...]

    def __call__(self, row: int) -> np.ndarray:
        image = np.moveaxis(self.images.read(self.trials[row]), 0, -1)
        return image[..., 0] if image.shape[-1] == 1 else image


@dataclass(frozen=True)
class ValuesOfTrial:
    """Reads what was recorded in a trial, (values,), NaN where it is withheld."""

    part: TrialPart | None
    withheld: np.ndarray
    size: int

    def __call__(self, trial: int) -> np.ndarray:
        if self.part is None or self.withheld[trial]:
            return np.full(self.size, np.nan, np.float32)
        return self.part.read(trial).reshape(-1)


def read_static(folder: SensoriumFolder, share_stimuli: bool) -> Recording:
    """The recording of one mouse; see `sensorium.read_sensorium`."""
    images, responses, behavior, pupil = _parts(folder)
    neurons = read_neurons(folder, responses)
    n = len(folder.tiers)
    withheld = withheld_trials(folder, responses, np.ones(n, bool))
    columns, identity = trial_columns(folder)
    stimulus, shown_by = _stimuli(folder, images, identity if share_stimuli else None)
    trials = trial_table(stimulus, repeat_number(stimulus), folder.tiers)
    read = ImageOfTrial(images, shown_by)
    first = read(0)
    dtype = np.uint8 if first.dtype == np.uint8 else np.float32
    return Recording(
        name=folder.files.name,
        stimuli=TrialFiles(read, (len(shown_by), *first.shape), dtype),
        trials=trials.assign(withheld=withheld).join(columns),
        responses=TrialFiles(ValuesOfTrial(responses, withheld, len(neurons)), (n, len(neurons))),
        neurons=neurons,
        behavior=_values(behavior),
        pupil_center=_values(pupil),
        statistics=folder.statistics,
        source=folder.files.path,
        behavior_names=BEHAVIOR.get(behavior.shape[-1], ()) if behavior else (),
        notes=tuple(folder.notes),
    )


def _parts(folder: SensoriumFolder) -> list[TrialPart | None]:
    """Images, responses, behavior and pupil centre, None where there are none, with shapes that agree."""
    images, *rows = (folder.part(name) for name in ("images", "responses", "behavior", "pupil_center"))
    _check_images(images)
    for part in filter(None, rows):
        _check_row(part)
    return [images, rows[0], *(folder.unless_zero(part) for part in rows[1:])]


def _check_images(images: TrialPart) -> None:
    shape = images.shape
    fits = len(shape) == 3 and shape[0] in (1, 2, 3)
    images.check_shapes("(channels, height, width) with 1, 2 or 3 channels", fits, time_last=False)


def _check_row(part: TrialPart) -> None:
    """One value per neuron or channel, as a row or without the row's axis."""
    shape, pupil = part.shape, part.name == "pupil_center"
    fits = (len(shape) == 1 or (len(shape) == 2 and shape[0] == 1)) and (not pupil or shape[-1] == 2)
    part.check_shapes("(2,) or (1, 2)" if pupil else "(values,) or (1, values)", fits, time_last=False)


def _values(part: TrialPart | None) -> TrialFiles | None:
    if part is None:
        return None
    n, size = len(part.files), part.shape[-1]
    return TrialFiles(ValuesOfTrial(part, np.zeros(n, bool), size), (n, size))


def _stimuli(
    folder: SensoriumFolder, images: TrialPart, identity: np.ndarray | None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Which stimulus each trial shows, int64 (trials,), and the trial whose file has the image of each stimulus."""
    n = len(folder.tiers)
    if identity is None:
        folder.notes.append("which trials repeat an image was not looked up: each is a stimulus of its own")
        return np.arange(n), tuple(range(n))
    stimulus, names = pd.factorize(identity)
    shown_by = np.unique(stimulus, return_index=True)[1]
    last = n - 1 - np.unique(stimulus[::-1], return_index=True)[1]
    several = np.flatnonzero(last > shown_by)
    for row in several[:: max(1, len(several) // SAMPLED_IDS)]:
        first_image, last_image = (images.read(trial).astype(float) for trial in (shown_by[row], last[row]))
        if not np.nanmax(np.abs(first_image - last_image)) <= SAME_IMAGE:
            raise folder.files.wrong(
                images.files[last[row]],
                f"another image than in {images.files[shown_by[row]]}, though both are image {names[row]}",
                "equal ones; share_stimuli=False gives each trial its own",
            )
    return stimulus, tuple(shown_by.tolist())
