"""Simulated recordings in files, laid out as those of any supported source, with their truth beside them.

Comes in: a `SimulationConfig`; `format` names the layout, `out` the folder. Goes out: the folder,

    out/                      images in the layout of `arrays.py`: all animals together, the truth as `truth_*` in it
    out/<package>.pkl         images as mouse-vision's packaged file of all animals, the truth in out/truth/simulated/
    out/<animal>[_<area>][.nwb]     all other: a folder or file for each animal, named as those of its source are; of
                              two-photon one for each area of each animal
    out/truth/<animal>[_<area>]/    its truth; see `write_truth`. With movies of a session: `movies.csv`, which row of
                              the stimuli, and how many frames of it, each movie is

Layouts of single animals hold more than simulated images bring: they get tiers, times of presentations, and the running
and pupil of an animal on whose rates these have no effect.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neural_data.arrays import write_arrays
from neural_data.behavior_state import simulate_behavior
from neural_data.calcium import Indicator
from neural_data.recording import Recording
from neural_data.running_modulation import MIN_PRESENTATIONS, NEUROPIXELS_COLUMN, running_p
from neural_data.session_schedule import movie_lengths
from neural_data.simulate_images import Truth, simulate
from neural_data.simulate_videos import simulate_videos
from neural_data.simulation_config import ALLEN_SESSIONS, SimulationConfig, check_simulation
from neural_data.trial_files import TrialFiles
from neural_data.video_session import stream
from neural_data.video_truth import VideoTruth
from neural_data.whole_folder import require_free, whole_folder

IMAGE_TIERS = ("train", "train", "train", "validation", "test")  # of the stimuli, in turn
IMAGE_S = 0.8  # from one image to the next
IMAGE_GAZE_SHIFT = 1.5  # pixels
IMAGE_BEHAVIOR_NAMES = ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
STATE_RATE_HZ = 30.0
NEURONS_PER_BLOCK = 64  # whose receptive fields are made at a time
PACKAGE_NAME = "mouse_neuropixels_visual_data_with_reliabilities.pkl"


@dataclass(frozen=True)
class Layout:
    """Which function writes a recording, `function(recording, path, **options)`, and which one names its folder.

    `options`: what a config and the number of a recording say to the writer. `one_area`: a file has one area.
    """

    module: str
    function: str
    names_folder: str = ""
    suffix: str = ""
    options: Callable[[SimulationConfig, int], dict[str, Any]] = lambda config, number: {}
    one_area: bool = False

    def write(self, recording: Recording, folder: Path, **options: Any) -> Path:
        """Writes the recording into `folder`, under the name that its source would give it."""
        # Imported late: each brings the libraries of its files.
        module = import_module(self.module)
        name = getattr(module, self.names_folder)(recording) if self.names_folder else recording.name
        return getattr(module, self.function)(recording, folder / (name + self.suffix), **options)


def _seed(config: SimulationConfig, number: int) -> dict[str, Any]:
    return {"seed": int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])}


def _seed_and_calcium(config: SimulationConfig, number: int) -> dict[str, Any]:
    calcium = dataclasses.replace(config.videos, response="calcium")
    return _seed(config, number) | {"indicator": Indicator.of(calcium)}


LAYOUTS = {
    "arrays": Layout("neural_data.arrays", "write_arrays"),
    "sensorium_static": Layout("neural_data.sensorium_writer", "write_sensorium_static", "sensorium_folder_name"),
    "sensorium_video": Layout("neural_data.sensorium_writer", "write_sensorium_video", "sensorium_folder_name"),
    "experanto": Layout("neural_data.experanto_writer", "write_experanto"),
    "nwb": Layout("neural_data.allen_writer", "write_neuropixels_nwb", suffix=".nwb", options=_seed),
    "nwb_two_photon": Layout(
        "neural_data.allen_two_photon_writer",
        "write_two_photon_nwb",
        suffix=".nwb",
        options=_seed_and_calcium,
        one_area=True,
    ),
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
    if config.format == "packaged":
        return _write_package(config, Path(config.out))
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
            # Sensorium's ids are whole numbers within an animal.
            neurons=recording.neurons.iloc[own]
            .reset_index(drop=True)
            .assign(neuron_id=[str(n + 1) for n in range(len(own))]),
            behavior=behavior,
            behavior_names=IMAGE_BEHAVIOR_NAMES,
            pupil_center=pupil_center,
        )
        apart.append((alone, _truth_of(truth, own)))
    return apart


def by_area(recording: Recording, truth: Truth | VideoTruth) -> Iterator[tuple[Recording, Truth | VideoTruth]]:
    """A recording of one animal as one for each of its areas, `<name>_<area>`, with the truth of their neurons."""
    for area in recording.neurons["area"].unique():
        own = np.flatnonzero((recording.neurons["area"] == area).to_numpy())
        alone = dataclasses.replace(
            recording,
            name=f"{recording.name}_{area}",
            responses=_of_neurons(recording.responses, own),
            neurons=recording.neurons.iloc[own].reset_index(drop=True),
        )
        yield alone, _truth_of(truth, own)


def _of_neurons(responses: Any, own: np.ndarray) -> Any:
    if isinstance(responses, np.ndarray):
        return responses[:, own]
    shape = (responses.shape[0], len(own), *responses.shape[2:])
    return TrialFiles(lambda row: responses[row][own], shape, responses.dtype)


def _truth_of(truth: Truth | VideoTruth, own: np.ndarray) -> Truth | VideoTruth:
    """The truth of some neurons."""
    if isinstance(truth, VideoTruth):
        neurons = truth.neurons.iloc[own].reset_index(drop=True)
        return dataclasses.replace(truth, weights=truth.weights[own], neurons=neurons)
    parts = {name: getattr(truth, name)[own] for name in ("receptive_fields", "reliability", "kind")}
    return Truth(rates=truth.rates[:, own], gabors=truth.gabors.iloc[own].reset_index(drop=True), **parts)


def _write_package(config: SimulationConfig, folder: Path) -> Path:
    """One file of all animals, with the running p-values of their units."""
    from neural_data.allen_packaged_writer import in_bins, write_packaged

    require_free(folder)
    recording, truth = simulate(config)
    p = np.concatenate([_running_p(alone) for alone, _ in single_animals(config, recording, truth)])
    recording = dataclasses.replace(recording, neurons=recording.neurons.assign(**{NEUROPIXELS_COLUMN: p}))
    with whole_folder(folder) as unfinished:
        of_truth = unfinished / "truth" / recording.name
        of_truth.mkdir(parents=True)
        write_packaged(in_bins(recording, stream(config.seed, "spikes")), unfinished / PACKAGE_NAME)
        write_truth(truth, of_truth)
    return folder


def _running_p(recording: Recording) -> np.ndarray:
    speed = recording.behavior[:, recording.behavior_names.index("running_speed")]
    stimulus = recording.trials["stimulus"].to_numpy()
    return running_p(recording.responses, stimulus, speed, MIN_PRESENTATIONS[NEUROPIXELS_COLUMN])


def _write_animals(config: SimulationConfig, folder: Path) -> Path:
    require_free(folder)
    layout = LAYOUTS[config.format]
    animals = simulate_videos(config) if config.dynamic else single_animals(config, *simulate(config))
    if layout.one_area:
        animals = [part for animal in animals for part in by_area(*animal)]
    with whole_folder(folder) as unfinished:
        for number, (recording, truth) in enumerate(animals):
            of_truth = unfinished / "truth" / recording.name
            of_truth.mkdir(parents=True)
            layout.write(recording, unfinished, **layout.options(config, number))
            write_truth(truth, of_truth)
            if config.dynamic and config.format in ALLEN_SESSIONS:
                movies = movie_lengths(recording.trials)
                rows = [(name, row, frames) for name, (row, frames) in movies.items()]
                pd.DataFrame(rows, columns=["movie", "stimulus", "frames"]).to_csv(of_truth / "movies.csv", index=False)
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
