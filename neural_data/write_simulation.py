"""Simulated recordings in files, laid out as those of any supported source, with their truth beside them.

Comes in: a `SimulationConfig`; `format` names the layout, `out` the folder. Goes out: the folder,

    out/                      images in the layout of `arrays.py`: all animals together, the truth as `truth_*` in it
    out/<animal>[.nwb]        all other: a folder or file for each animal, named as those of its source are
    out/truth/<animal>/       its truth; see `write_truth`

Layouts of single animals hold more than simulated images bring: they get tiers, times of presentations, and the running
and pupil of an animal on whose rates these have no effect.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from neural_data.arrays import write_arrays
from neural_data.behavior_state import simulate_behavior
from neural_data.recording import Recording
from neural_data.simulate_images import Truth, simulate
from neural_data.simulate_videos import simulate_videos
from neural_data.simulation_config import SimulationConfig, check_simulation
from neural_data.video_session import stream
from neural_data.video_truth import VideoTruth
from neural_data.whole_folder import require_free, whole_folder

IMAGE_TIERS = ("train", "train", "train", "validation", "test")  # of the stimuli, in turn
IMAGE_S = 0.8  # from one image to the next
IMAGE_GAZE_SHIFT = 1.5  # pixels
IMAGE_BEHAVIOR_NAMES = ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
STATE_RATE_HZ = 30.0
NEURONS_PER_BLOCK = 64  # whose receptive fields are made at a time


@dataclass(frozen=True)
class Layout:
    """Which function writes a recording, `function(recording, path)`, and which one names its folder."""

    module: str
    function: str
    names_folder: str = ""
    suffix: str = ""

    def write(self, recording: Recording, folder: Path) -> Path:
        """Writes the recording into `folder`, under the name that its source would give it."""
        # Imported late: each brings the libraries of its files.
        module = import_module(self.module)
        name = getattr(module, self.names_folder)(recording) if self.names_folder else recording.name
        return getattr(module, self.function)(recording, folder / (name + self.suffix))


LAYOUTS = {
    "arrays": Layout("neural_data.arrays", "write_arrays"),
    "sensorium_static": Layout("neural_data.sensorium_writer", "write_sensorium_static", "sensorium_folder_name"),
    "sensorium_video": Layout("neural_data.sensorium_writer", "write_sensorium_video", "sensorium_folder_name"),
    "experanto": Layout("neural_data.experanto_writer", "write_experanto"),
    "nwb": Layout("neural_data.allen_writer", "write_neuropixels_nwb", suffix=".nwb"),
}


def write_simulation(config: SimulationConfig) -> Path:
    """Simulates into the new or empty folder `config.out`, which is whole or absent, and returns it.

    Trials of videos are made one by one as they are written. Raises ValueError where a key is out of its range, or the
    folder exists and is not empty.
    """
    if config.out is None:
        raise ValueError("out: name the folder to write the simulation into")
    check_simulation(config)
    if not config.dynamic and config.format == "arrays":
        recording, truth = simulate(config)
        folder = write_arrays(recording, config.out)
        write_truth(truth, folder)
        return folder
    return _write_animals(config, Path(config.out))


def write_truth(truth: Truth | VideoTruth, folder: str | Path) -> None:
    """Adds the truth to a folder that is there.

    Of images: `truth_rates.npy`, `truth_receptive_fields.npy`, `truth_reliability.npy`, `truth_kind.npy` and
    `truth_gabors.csv`; `read_arrays` passes over them. Of videos: `rates.npy` (stimuli, neurons, time),
    `receptive_fields.npy` (neurons, lags, height, width), `arousal.npy`, `gaze.npy`, `camera_to_gaze.npy`,
    `weights.npy`, `features.csv`, `clips.csv`, `trials.csv`, and `neurons.csv` with the noise ceiling of the oracle
    clips; see `VideoTruth`.
    """
    if isinstance(truth, VideoTruth):
        return _write_video_truth(truth, Path(folder))
    for name in ("rates", "receptive_fields", "reliability", "kind"):
        np.save(Path(folder) / f"truth_{name}.npy", getattr(truth, name))
    truth.gabors.to_csv(Path(folder) / "truth_gabors.csv", index=False)


def single_animals(config: SimulationConfig, recording: Recording, truth: Truth) -> list[tuple[Recording, Truth]]:
    """Simulated images as one recording for each animal, of the trials that it saw, with the truth of its neurons.

    `tier` follows from the stimulus: of five in turn the first three are for training, one for validation, one for the
    test. `start_s`: presentations follow each other every 0.8 s. `behavior` (trials, 3) and `pupil_center` (trials, 2)
    are drawn as in videos and have no effect on the responses.
    """
    apart = []
    for number, animal in enumerate(recording.animals, start=1):
        own = np.flatnonzero((recording.neurons["animal"] == animal).to_numpy())
        seen = np.flatnonzero(~np.isnan(recording.responses[:, own]).all(axis=1))
        trials = recording.trials.iloc[seen].reset_index(drop=True)
        tier = np.array(IMAGE_TIERS)[trials["stimulus"] % len(IMAGE_TIERS)]
        behavior, pupil_center = _state_at_trials(config, number, len(trials))
        alone = dataclasses.replace(
            recording,
            name=animal,
            trials=trials.assign(tier=tier.astype(object), start_s=IMAGE_S * np.arange(len(trials))),
            responses=recording.responses[np.ix_(seen, own)],
            neurons=recording.neurons.iloc[own].reset_index(drop=True),
            behavior=behavior,
            behavior_names=IMAGE_BEHAVIOR_NAMES,
            pupil_center=pupil_center,
        )
        parts = {name: getattr(truth, name)[own] for name in ("receptive_fields", "reliability", "kind")}
        gabors = truth.gabors.iloc[own].reset_index(drop=True)
        apart.append((alone, Truth(rates=truth.rates[:, own], gabors=gabors, **parts)))
    return apart


def _write_animals(config: SimulationConfig, folder: Path) -> Path:
    require_free(folder)
    animals = simulate_videos(config) if config.dynamic else single_animals(config, *simulate(config))
    with whole_folder(folder) as unfinished:
        for recording, truth in animals:
            of_truth = unfinished / "truth" / recording.name
            of_truth.mkdir(parents=True)
            LAYOUTS[config.format].write(recording, unfinished)
            write_truth(truth, of_truth)
    return folder


def _state_at_trials(config: SimulationConfig, animal: int, trials: int) -> tuple[np.ndarray, np.ndarray]:
    """Dilation, its change per second and speed (trials, 3), and the place of the pupil (trials, 2), at mid-trial."""
    each = round(IMAGE_S * STATE_RATE_HZ)
    rng = stream(config.seed, "behavior", animal)
    state = simulate_behavior(trials * each, STATE_RATE_HZ, IMAGE_GAZE_SHIFT, rng)
    middle = np.arange(trials) * each + each // 2
    dilation, speed = state.behavior
    change = np.gradient(dilation) * STATE_RATE_HZ
    return np.stack([dilation, change, speed], axis=1)[middle].astype(np.float32), state.pupil_center[:, middle].T


def _write_video_truth(truth: VideoTruth, folder: Path) -> None:
    for name in ("arousal", "gaze", "camera_to_gaze", "weights"):
        np.save(folder / f"{name}.npy", getattr(truth, name))
    truth.core.features.to_csv(folder / "features.csv", index=False)
    for name in ("clips", "trials"):
        getattr(truth, name).to_csv(folder / f"{name}.csv", index_label="row")
    truth.neurons.join(truth.noise_ceiling()).to_csv(folder / "neurons.csv", index=False)
    _save_in_parts(folder / "rates.npy", truth.rates.shape, lambda rows: truth.rates[rows], 1)
    n, first = len(truth.neurons), truth.receptive_fields(np.arange(1))
    shape = (n, *first.shape[1:])
    _save_in_parts(folder / "receptive_fields.npy", shape, truth.receptive_fields, NEURONS_PER_BLOCK)


def _save_in_parts(
    file: Path, shape: tuple[int, ...], make: Callable[[np.ndarray], np.ndarray], rows_per_part: int
) -> None:
    """An array float32 that `make(rows)` gives in parts, which alone are held in memory."""
    stored = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    for first in range(0, shape[0], rows_per_part):
        rows = np.arange(first, min(first + rows_per_part, shape[0]))
        stored[rows[0] : rows[-1] + 1] = make(rows)
    stored.flush()
